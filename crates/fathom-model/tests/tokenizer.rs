//! Tokenizers: ids and texts as in HuggingFace, and invalid tokenizer files.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use fathom_model::{Tokenizer, check_bos};
use proptest::prelude::*;
use serde_json::Value;

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/tokenizers");
const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/tokenizer");

fn from_files(files: &[(&str, &str)]) -> Result<Tokenizer, String> {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(dir.path().join(name), text).unwrap();
    }
    Tokenizer::from_dir(dir.path()).map_err(|error| error.to_string())
}

/// The Llama-like tokenizer with a `tokenizer_config.json`.
fn metaspace_with(config: &str) -> Tokenizer {
    let json = fs::read_to_string(format!("{DATA}/metaspace.json")).unwrap();
    from_files(&[("tokenizer.json", &json), ("tokenizer_config.json", config)]).unwrap()
}

fn metaspace() -> Tokenizer {
    metaspace_with(r#"{"bos_token": "<s>", "eos_token": {"content": "</s>"}}"#)
}

fn byte_level() -> Tokenizer {
    Tokenizer::from_dir(Path::new(FIXTURE)).unwrap()
}

fn expected() -> Vec<Value> {
    let text = fs::read_to_string(format!("{DATA}/expected.json")).unwrap();
    serde_json::from_str::<Value>(&text).unwrap()["cases"].as_array().unwrap().clone()
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

#[test]
fn encodes_and_decodes_as_hugging_face() {
    let (metaspace, byte_level) = (metaspace(), byte_level());
    let cases = expected();
    assert_eq!(cases.len(), 18);
    for case in cases {
        let tokenizer = if case["tokenizer"] == "metaspace" { &metaspace } else { &byte_level };
        let text = case["text"].as_str().unwrap();
        assert_eq!(tokenizer.encode(text, false).unwrap(), ids(&case["ids"]), "{case}");
        let full = tokenizer.encode(text, true).unwrap();
        assert_eq!(full, ids(&case["ids_with_special"]), "{case}");
        assert_eq!(tokenizer.decode(&full).unwrap(), case["decoded"].as_str().unwrap(), "{case}");
    }
}

#[test]
fn special_tokens_and_sizes() {
    let tokenizer = metaspace();
    assert_eq!((tokenizer.bos_id(), tokenizer.eos_id()), (Some(1), Some(2)));
    assert_eq!(tokenizer.special_tokens().pad, None);
    let tokenizer = byte_level();
    assert_eq!(tokenizer.vocab_size(), 4096);
    assert_eq!((tokenizer.bos_id(), tokenizer.eos_id()), (None, Some(2)));
    assert_eq!(tokenizer.id_to_token(1).as_deref(), Some("<|im_start|>"));
    assert_eq!(tokenizer.token_to_id("<|im_end|>"), Some(2));
    assert_eq!(tokenizer.id_to_token(4096), None);
}

/// As in transformers 5. In transformers 4, `add_bos_token` decided for some classes; see
/// docs/parity.md.
#[test]
fn the_post_processor_decides_about_the_bos() {
    let off = metaspace_with(r#"{"bos_token": "<s>", "add_bos_token": false}"#);
    assert_eq!(off.encode("the", true).unwrap(), metaspace().encode("the", true).unwrap());
    let on = metaspace_with(r#"{"bos_token": "<s>", "add_bos_token": true}"#);
    assert_eq!(on.encode("the", true).unwrap(), metaspace().encode("the", true).unwrap());

    let json = fs::read_to_string(format!("{DATA}/metaspace.json")).unwrap();
    let mut bare: Value = serde_json::from_str(&json).unwrap();
    bare["post_processor"] = Value::Null;
    let config = r#"{"bos_token": "<s>", "add_bos_token": true}"#;
    let files = [("tokenizer.json", &*bare.to_string()), ("tokenizer_config.json", config)];
    let added = from_files(&files).unwrap();
    assert_eq!(added.encode("the", true).unwrap(), added.encode("the", false).unwrap());
}

/// HuggingFace applies `truncation` and `padding` of tokenizer.json only on request.
#[test]
fn stored_truncation_and_padding_are_off() {
    let json = fs::read_to_string(format!("{DATA}/metaspace.json")).unwrap();
    let mut stored: Value = serde_json::from_str(&json).unwrap();
    stored["truncation"] = serde_json::json!(
        {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0});
    stored["padding"] = serde_json::json!({"strategy": {"Fixed": 64}, "direction": "Right",
        "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>"});
    let tokenizer = from_files(&[("tokenizer.json", &stored.to_string())]).unwrap();
    let text = "the quick brown fox";
    assert_eq!(tokenizer.encode(text, true).unwrap(), metaspace().encode(text, true).unwrap());
}

#[test]
fn token_text_is_what_a_person_reads() {
    let tokenizer = metaspace();
    let text = |token: &str| tokenizer.token_text(tokenizer.token_to_id(token).unwrap());
    assert_eq!(text("▁the"), " the", "the leading space is kept");
    assert_eq!(text("▁"), " ");
    assert_eq!(text("<0x0A>"), "\n");
    assert_eq!(text("<0xE4>"), "<0xE4>");
    assert_eq!(text("<s>"), "<s>");
    assert_eq!(tokenizer.token_text(99_999), "<unknown 99999>");

    let tokenizer = byte_level();
    assert_eq!(tokenizer.token_text(223), " ");
    assert_eq!(tokenizer.token_text(1792), "the");
    assert_eq!(tokenizer.token_text(1), "<|im_start|>");
    let pieces = tokenizer.encode("😀", false).unwrap();
    assert!(pieces.len() > 1);
    let shown: String = pieces.iter().map(|id| tokenizer.token_text(*id)).collect();
    assert_eq!(shown, "<0xF0><0x9F><0x98><0x80>");
}

/// The bytes of a text's tokens are its bytes, also of characters that several tokens share.
#[test]
fn the_bytes_of_tokens_join_to_the_text() {
    for (tokenizer, special) in [(metaspace(), "<s>"), (byte_level(), "<|im_end|>")] {
        let bytes = tokenizer.bytes_of_tokens(5_000);
        assert_eq!(bytes.len(), 5_000);
        for text in ["the héllo wörld, 你好 😀", "{\"a\": [1, 2]}\n", "  é\u{FFFD}\t<0x0A>"]
        {
            let ids = tokenizer.encode_continuation(text).unwrap();
            let joined = ids.iter().flat_map(|&id| bytes[id as usize].clone()).collect::<Vec<u8>>();
            assert_eq!(String::from_utf8_lossy(&joined), text);
        }
        assert!(bytes[tokenizer.token_to_id(special).unwrap() as usize].is_empty());
        assert!(bytes[4_999].is_empty(), "an id without a token");
    }
}

/// The pieces of a streamed decoding, the last one from `finish`.
fn stream(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<String> {
    let mut stream = tokenizer.decode_stream();
    let mut pieces: Vec<String> = ids.iter().map(|id| stream.push(*id).unwrap()).collect();
    pieces.push(stream.finish().unwrap());
    pieces
}

#[test]
fn streamed_pieces_join_to_the_text() {
    let (metaspace, byte_level) = (metaspace(), byte_level());
    for case in expected() {
        let tokenizer = if case["tokenizer"] == "metaspace" { &metaspace } else { &byte_level };
        let pieces = stream(tokenizer, &ids(&case["ids_with_special"]));
        assert_eq!(pieces.concat(), case["decoded"].as_str().unwrap(), "{case}");
        assert!(pieces.iter().all(|piece| !piece.contains('\u{FFFD}')), "{pieces:?}");
    }
}

#[test]
fn a_character_is_returned_when_it_is_complete() {
    let tokenizer = byte_level();
    let pieces = stream(&tokenizer, &tokenizer.encode("a😀b", false).unwrap());
    let texts: Vec<&str> = pieces.iter().map(String::as_str).filter(|p| !p.is_empty()).collect();
    assert_eq!(texts, ["a", "😀", "b"]);
    // An incomplete character is returned only by `finish`.
    let pieces = stream(&tokenizer, &tokenizer.encode("😀", false).unwrap()[..2]);
    assert_eq!(pieces, ["", "", "\u{FFFD}"]);
}

/// An invalid run of byte tokens is decoded to replacement characters, even where it contains
/// complete characters.
#[test]
fn a_broken_run_of_byte_tokens() {
    let tokenizer = metaspace();
    let byte = |byte: u8| tokenizer.token_to_id(&format!("<0x{byte:02X}>")).unwrap();
    let the = tokenizer.token_to_id("▁the").unwrap();
    let ids = [the, byte(0xE4), byte(0xBD), byte(0xA0), byte(0xE4), the];
    let text = tokenizer.decode(&ids).unwrap();
    assert!(text.contains('\u{FFFD}'));
    assert_eq!(stream(&tokenizer, &ids).concat(), text);
}

/// An id outside the vocabulary has no text and does not interrupt a run of byte tokens.
#[test]
fn a_run_of_byte_tokens_around_an_unknown_id() {
    let tokenizer = metaspace();
    let byte = |byte: u8| tokenizer.token_to_id(&format!("<0x{byte:02X}>")).unwrap();
    let ids = [byte(0), 99_999, byte(0x80)];
    assert_eq!(stream(&tokenizer, &ids).concat(), tokenizer.decode(&ids).unwrap());
}

#[test]
fn two_leading_bos_explain_themselves() {
    let tokenizer = metaspace();
    let ids = tokenizer.encode("<s>the", true).unwrap();
    let message = check_bos(&ids, 1).unwrap_err().to_string();
    assert!(message.contains("BOS (1) twice") && message.contains("primary sink"), "{message}");
    check_bos(&tokenizer.encode("the", true).unwrap(), 1).unwrap();
    check_bos(&[1], 1).unwrap();
    check_bos(&[], 1).unwrap();
    check_bos(&[5, 1, 1], 1).unwrap();
}

/// The `tokenizers` crate panics on each of these files.
#[test]
fn faults_of_the_library_are_contained() {
    let json = fs::read_to_string(format!("{DATA}/metaspace.json")).unwrap();
    let cut: String = json.chars().take(934).collect();
    assert!(from_files(&[("tokenizer.json", &cut)]).err().unwrap().contains("is not valid JSON"));
    let mut tree: Value = serde_json::from_str(&json).unwrap();
    tree["post_processor"]["special_tokens"] = serde_json::json!({});
    let message = from_files(&[("tokenizer.json", &tree.to_string())]).err().unwrap();
    assert!(message.contains("tokenizer.json: ") && !message.contains('\n'), "{message}");
}

#[test]
fn unusable_files_are_named() {
    let message = from_files(&[]).err().unwrap();
    assert!(message.contains("tokenizer.json: does not exist; copy it"), "{message}");
    for text in ["", "{"] {
        let message = from_files(&[("tokenizer.json", text)]).err().unwrap();
        assert!(message.contains("tokenizer.json: is not valid JSON"), "{message}");
    }
    for text in ["{}", "[]", "null", r#"{"version": "1.0", "model": {"type": "Nope"}}"#] {
        let message = from_files(&[("tokenizer.json", text)]).err().unwrap();
        assert!(message.contains("tokenizer.json: is not a usable tokenizer"), "{message}");
        assert!(!message.contains('\n'), "{message}");
    }
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("tokenizer.json"), b"\xff\xfe").unwrap();
    let message = Tokenizer::from_dir(dir.path()).err().unwrap().to_string();
    assert!(message.contains("is not UTF-8 text (byte 0)"), "{message}");
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("tokenizer.json")).unwrap();
    let message = Tokenizer::from_dir(dir.path()).err().unwrap().to_string();
    assert!(message.contains("is not a regular file"), "{message}");
    assert!(Tokenizer::find(tempfile::tempdir().unwrap().path()).unwrap().is_none());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_ids_stream_to_their_text(
        byte_ids in prop::collection::vec(0u32..4200, 0..40),
        meta_ids in prop::collection::vec(prop_oneof![0u32..370, 240u32..264], 0..40),
    ) {
        for (tokenizer, ids) in [(byte_level(), byte_ids), (metaspace(), meta_ids)] {
            let text = tokenizer.decode(&ids).unwrap();
            prop_assert_eq!(stream(&tokenizer, &ids).concat(), text, "{:?}", ids);
        }
    }

    #[test]
    fn any_text_comes_back(text in ".*") {
        let tokenizer = byte_level();
        let ids = tokenizer.encode(&text, false).unwrap();
        prop_assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    }
}

/// Replaces the `nth` value of a JSON tree by `new`.
fn replace_nth(value: &mut Value, nth: &mut usize, new: &Value) {
    if *nth == 0 {
        *nth = usize::MAX;
        *value = new.clone();
        return;
    }
    *nth -= 1;
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| replace_nth(item, nth, new)),
        Value::Object(map) => map.values_mut().for_each(|item| replace_nth(item, nth, new)),
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_tokenizer_file_panics(
        fault in prop_oneof![
            (0usize..60, 0usize..9).prop_map(Some),
            (0usize..1200, 0usize..9).prop_map(Some),
            Just(None)
        ],
        cut in 0usize..6000,
    ) {
        let json = fs::read_to_string(format!("{DATA}/metaspace.json")).unwrap();
        let text = match fault {
            Some((mut nth, kind)) => {
                let others = serde_json::json!(
                    [null, 3, -1, 1e300, "", "<s>", [], {}, 18446744073709551615u64]);
                let mut tree: Value = serde_json::from_str(&json).unwrap();
                replace_nth(&mut tree, &mut nth, &others[kind]);
                tree.to_string()
            }
            None => json.chars().take(cut).collect(),
        };
        if let Ok(tokenizer) = from_files(&[("tokenizer.json", &text)]) {
            for text in ["the quick fox", "😀 <s>"] {
                for special in [true, false] {
                    if let Ok(ids) = tokenizer.encode(text, special) {
                        let _ = tokenizer.decode(&ids);
                        ids.iter().for_each(|id| drop(tokenizer.token_text(*id)));
                    }
                }
            }
        }
    }
}
