//! Streamed text equals the whole text, with characters spread over tokens and with stop strings.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use fathom_decode::TextStream;
use fathom_model::Tokenizer;
use proptest::prelude::*;

fn tokenizer() -> Tokenizer {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models/draft");
    Tokenizer::from_dir(&dir).unwrap()
}

/// Texts of words, digits, characters of two to four bytes, and joined emoji.
fn text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        "[a-z ]{1,6}",
        "[0-9]{1,3}",
        "[äéñ世界]{1,3}",
        Just("👩\u{200d}👧".to_owned()),
        Just("\n\n".to_owned()),
    ];
    prop::collection::vec(piece, 1..12).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn pieces_joined_are_the_text_up_to_the_stop_string(
        text in text(),
        stops in prop::collection::vec("[a-z世 0]{1,2}", 0..3),
    ) {
        let tokenizer = tokenizer();
        let ids = tokenizer.encode(&text, false).unwrap();
        let mut check = TextStream::stop_check(&tokenizer, &stops);
        prop_assert_eq!(check.is_none(), stops.is_empty());
        let mut stream = TextStream::new(&tokenizer, stops.clone());
        let mut streamed = String::new();
        let mut taken = Vec::new();
        for id in ids {
            streamed.push_str(&stream.push(id).unwrap());
            taken.push(id);
            if let Some(check) = &mut check && check(id).unwrap() {
                break;
            }
        }
        streamed.push_str(&stream.finish().unwrap());

        // The text before the last token contains no stop string: the check stops as soon as one is
        // complete.
        let whole = tokenizer.decode(&taken).unwrap();
        let cut = stops.iter().filter_map(|stop| whole.find(stop).map(|at| (at + stop.len(), at)));
        let cut = cut.min().map_or(whole.len(), |(_, start)| start);
        prop_assert_eq!(&streamed, &whole[..cut]);
        let before = tokenizer.decode(&taken[..taken.len() - 1]).unwrap();
        prop_assert!(!stops.iter().any(|stop| before.contains(stop)), "{:?} {:?}", before, stops);
    }
}

/// ` é` is two tokens: the space with the first byte of the letter, and the second byte.
#[test]
fn a_stop_string_is_found_before_the_next_character_is_complete() {
    let tokenizer = tokenizer();
    let ids = tokenizer.encode(" é", false).unwrap();
    assert_eq!(ids.len(), 2);
    let mut check = TextStream::stop_check(&tokenizer, &[" ".to_owned()]).unwrap();
    assert!(check(ids[0]).unwrap());
    let mut stream = TextStream::new(&tokenizer, Vec::new());
    let pieces = ids.iter().map(|id| stream.push(*id).unwrap()).collect::<Vec<_>>();
    assert_eq!(pieces, [" ", "é"]);
}

/// Stop strings complete within the first `min_tokens` are ignored by both the check and the text.
/// One that a later token completes counts, wherever it starts.
#[test]
fn stop_strings_wait_for_min_tokens() {
    let tokenizer = tokenizer();
    let ids = tokenizer.encode("one two one two one", false).unwrap();
    let text_of = |count: usize| tokenizer.decode(&ids[..count]).unwrap();
    let stop = "one";
    for min_tokens in 0..=ids.len() {
        let stream =
            || TextStream::new(&tokenizer, vec![stop.to_owned()]).with_min_tokens(min_tokens);
        let mut check = stream().into_stop_check().unwrap();
        let stopped_at = ids.iter().position(|&id| check(id).unwrap());
        let completed = |count: &usize| {
            let (before, text) = (text_of(count - 1), text_of(*count));
            text.matches(stop).count() > before.matches(stop).count()
        };
        let expected = (min_tokens + 1..=ids.len()).find(completed);
        assert_eq!(stopped_at.map(|at| at + 1), expected, "{min_tokens}");

        let mut own = stream();
        let taken = &ids[..expected.unwrap_or(ids.len())];
        let pieces: String = taken.iter().map(|&id| own.push(id).unwrap()).collect();
        let streamed = pieces + &own.finish().unwrap();
        let whole = text_of(taken.len());
        let cut = if expected.is_some() { whole.rfind(stop).unwrap() } else { whole.len() };
        assert_eq!(streamed, whole[..cut], "{min_tokens}");
    }
}
