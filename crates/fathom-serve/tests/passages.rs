//! Grammars of text with passages of JSON, against a parser of JSON.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use fathom_model::Tokenizer;
use fathom_serve::grammar::Grammars;
use serde_json::{Value, json};

const VOCAB: usize = 4096;
const EOS: u32 = 2;

/// A number below `below`, from a counter.
fn random(state: &mut u64, below: usize) -> usize {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) as usize % below
}

/// The token to write next: a random one, or now and then one that goes on with `<call>`.
fn choose(choices: &[u32], text: &[u8], words: &[Vec<u8>], state: &mut u64) -> u32 {
    let written = (1..6).rev().find(|&n| text.ends_with(&b"<call>"[..n]));
    let wanted = &b"<call>"[written.unwrap_or(0)..];
    let goes_on = |id: &&u32| {
        let word = &words[**id as usize];
        !word.is_empty() && wanted.starts_with(word)
    };
    let eager = written.is_some() || random(state, 8) == 0;
    let next = choices.iter().find(goes_on).filter(|_| eager);
    next.copied().unwrap_or_else(|| choices[random(state, choices.len())])
}

#[test]
fn passages_of_json_follow_their_schema_and_other_text_is_free() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models/draft");
    let tokenizer = Tokenizer::from_dir(&dir).unwrap();
    let words = tokenizer.bytes_of_tokens(VOCAB);
    let grammars = Grammars::new(&tokenizer, VOCAB, &[EOS]).unwrap();
    let schema = json!({"enum": [{"name": "f", "x": 1}, {"name": "g"}]});
    for several in [true, false] {
        let grammar = grammars.json_between("<call>", "</call>", &schema, several).unwrap();
        let (mut state, mut passages, mut free) = (3, 0, 0);
        for _ in 0..30 {
            let mut constraint = grammar.constraint();
            let mut text: Vec<u8> = Vec::new();
            for _ in 0..200 {
                let mask = constraint.allowed().unwrap();
                let choices: Vec<u32> = (0..VOCAB as u32).filter(|&id| mask.allows(id)).collect();
                let token = choose(&choices, &text, &words, &mut state);
                if token == EOS {
                    break;
                }
                constraint.advance(token).unwrap();
                text.extend_from_slice(&words[token as usize]);
            }
            let text = String::from_utf8_lossy(&text).into_owned();
            let mut parts = text.split("<call>");
            free += parts.next().unwrap().len();
            let parts: Vec<&str> = parts.collect();
            for (number, part) in parts.iter().enumerate() {
                match part.split_once("</call>") {
                    Some((inner, _)) => {
                        let value: Value = serde_json::from_str(inner.trim()).unwrap();
                        assert!(value == json!({"name": "g"}) || value["x"] == 1, "{value}");
                    }
                    None => assert_eq!(number + 1, parts.len(), "only the end is cut off: {text}"),
                }
            }
            assert!(several || parts.len() <= 1, "{text}");
            passages += parts.len();
        }
        assert!(passages > 10 && free > 100, "{passages} {free}");
    }
}
