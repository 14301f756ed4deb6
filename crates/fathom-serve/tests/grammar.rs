//! Masks of JSON grammars, against brute force and a parser of JSON.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::Instant;

use fathom_decode::Constraint;
use fathom_model::Tokenizer;
use fathom_serve::grammar::Grammars;
use serde_json::{Value, json};

const VOCAB: usize = 4096;
const EOS: [u32; 2] = [0, 2];

fn tokenizer() -> Tokenizer {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models/draft");
    Tokenizer::from_dir(&dir).unwrap()
}

fn grammars() -> Grammars {
    Grammars::new(&tokenizer(), VOCAB, &EOS).unwrap()
}

/// A number below `below`, from a counter.
fn random(state: &mut u64, below: usize) -> usize {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) as usize % below
}

fn allowed(constraint: &mut dyn Constraint) -> Vec<u32> {
    let mask = constraint.allowed().unwrap();
    (0..VOCAB as u32).filter(|&id| mask.allows(id)).collect()
}

/// The language of an enum is known: a token is allowed exactly if its bytes continue a prefix
/// of one of the texts, and the end exactly after a whole one. Also after roll-backs and forks.
#[test]
fn masks_are_those_of_brute_force() {
    let texts = ["\"red\"", "\"reddish\"", "\"blue\"", "\"é\"", "17", "true", "[1,2]"];
    let values: Vec<Value> = texts.iter().map(|text| serde_json::from_str(text).unwrap()).collect();
    let grammar = grammars().json_schema(&json!({"enum": values})).unwrap();
    let words = tokenizer().bytes_of_tokens(VOCAB);
    let mut constraint = grammar.constraint();
    let (mut written, mut state): (Vec<u32>, u64) = (Vec::new(), 1);
    let mut ended = 0;
    for _ in 0..400 {
        let prefix: Vec<u8> = written.iter().flat_map(|&id| words[id as usize].clone()).collect();
        // White space is only possible inside of the array.
        let spaced = prefix.first() == Some(&b'[');
        let continues = |bytes: &[u8]| {
            let text = [&prefix, bytes].concat();
            !bytes.is_empty() && texts.iter().any(|whole| whole.as_bytes().starts_with(&text))
        };
        let complete = texts.iter().any(|whole| whole.as_bytes() == prefix);
        let got = allowed(constraint.as_mut());
        assert_eq!(EOS.map(|id| got.contains(&id)), [complete; 2]);
        for id in (0..VOCAB as u32).filter(|id| !EOS.contains(id)) {
            let bytes = &words[id as usize];
            let blank = bytes.iter().any(u8::is_ascii_whitespace);
            if !(spaced && blank) {
                assert_eq!(got.contains(&id), continues(bytes), "{prefix:?} {id} {bytes:?}");
            }
        }
        let choices: Vec<u32> = got
            .into_iter()
            .filter(|&id| !words[id as usize].iter().any(u8::is_ascii_whitespace))
            .collect();
        if random(&mut state, 3) == 0 || choices.is_empty() {
            let dropped = random(&mut state, written.len() + 1);
            constraint.roll_back(dropped).unwrap();
            written.truncate(written.len() - dropped);
        } else {
            let token = choices[random(&mut state, choices.len())];
            constraint.advance(token).unwrap();
            if EOS.contains(&token) {
                assert_eq!(allowed(constraint.as_mut()), EOS, "nothing follows the end");
                constraint.advance(EOS[1]).unwrap();
                constraint.roll_back(2).unwrap();
                ended += 1;
            } else {
                written.push(token);
            }
        }
        if random(&mut state, 10) == 0 {
            constraint = constraint.fork();
        }
    }
    assert!(ended > 10, "{ended}");
}

/// Texts of random allowed tokens are JSON of the schema.
#[test]
fn random_texts_are_json_of_the_schema() {
    let schema = json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "size": {"type": "integer", "minimum": 3, "maximum": 90},
            "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
        },
        "required": ["name", "size"],
        "additionalProperties": false,
    });
    let (grammar, words) =
        (grammars().json_schema(&schema).unwrap(), tokenizer().bytes_of_tokens(VOCAB));
    let (mut state, mut masks, mut seconds) = (7, 0, 0.0);
    for _ in 0..40 {
        let mut constraint = grammar.constraint();
        let mut text: Vec<u8> = Vec::new();
        loop {
            let start = Instant::now();
            let mask = constraint.allowed().unwrap();
            (masks, seconds) = (masks + 1, seconds + start.elapsed().as_secs_f64());
            let choices: Vec<u32> = (0..VOCAB as u32).filter(|&id| mask.allows(id)).collect();
            let token = choices[random(&mut state, choices.len())];
            constraint.advance(token).unwrap();
            if EOS.contains(&token) {
                break;
            }
            text.extend_from_slice(&words[token as usize]);
        }
        let value: Value = serde_json::from_slice(&text).unwrap();
        let fields = value.as_object().unwrap();
        assert!(fields["name"].as_str().unwrap().chars().count() <= 12, "{value}");
        assert!((3..=90).contains(&fields["size"].as_i64().unwrap()), "{value}");
        if let Some(tags) = fields.get("tags") {
            let tags = tags.as_array().unwrap();
            assert!(tags.len() <= 3 && tags.iter().all(|tag| tag == "a" || tag == "b"));
        }
    }
    println!("{masks} masks, {:.1} µs each", 1e6 * seconds / f64::from(masks));
}

#[test]
fn white_space_is_limited() {
    let grammar = grammars().json_object().unwrap();
    let words = tokenizer().bytes_of_tokens(VOCAB);
    let token = |text: &str| (0..VOCAB as u32).find(|&id| words[id as usize] == text.as_bytes());
    let (open, space) = (token("{").unwrap(), token(" ").unwrap());
    let mut constraint = grammar.constraint();
    constraint.advance(open).unwrap();
    let spaces = (0..100).take_while(|_| {
        constraint.allowed().unwrap().allows(space) && constraint.advance(space).is_ok()
    });
    assert_eq!(spaces.count(), 1);
    assert!(allowed(constraint.as_mut()).iter().all(|&id| words[id as usize][0] != b' '));
}

#[test]
fn unusable_schemas_are_refused_in_a_sentence() {
    let grammars = grammars();
    let deep = (0..200).fold(json!({}), |inner, _| json!({"not": inner}));
    let wide: Vec<Value> = (0..30_000).map(Value::from).collect();
    for (schema, problem) in [
        (json!(true), "no object"),
        (json!({"type": "nonsense"}), "cannot be used"),
        (json!({"type": "string", "minLength": 5, "maxLength": 2}), "cannot be used"),
        (json!({"$ref": "https://example.com/schema"}), "cannot be used"),
        (json!({"x-guidance": {}}), "x-guidance"),
        (deep, "at most 64 levels"),
        (json!({"enum": wide}), "at most 20000 values"),
        (json!({"const": "x".repeat(200_000)}), "at most 120000 bytes"),
    ] {
        let start = Instant::now();
        let refused = grammars.json_schema(&schema).err();
        let message = refused.unwrap_or_else(|| panic!("{schema} is accepted")).to_string();
        assert!(message.contains(problem), "{message}");
        assert!(!message.contains('\n') && message.len() < 400, "{message}");
        assert!(start.elapsed().as_secs() < 10, "{message}");
    }
    let message = Grammars::new(&tokenizer(), VOCAB, &[]).err().unwrap().to_string();
    assert!(message.contains("no end-of-text token"), "{message}");
}

/// Small schemas of huge languages are refused, or their masks are bounded in time; a text that
/// exceeds a limit ends with a sentence.
#[test]
fn schemas_of_huge_languages_take_bounded_time() {
    let grammars = grammars();
    for schema in [
        json!({"type": "string", "pattern": "(a{1,1000}){1,1000}b{1,1000}"}),
        json!({"type": "string", "pattern": "(.*a.{0,900}){30}"}),
        json!({"type": "array", "items": {"type": "integer"}, "minItems": 1_000_000}),
        json!({"type": "string", "minLength": 1_000_000}),
        json!({"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {"type": "null"}]}},
               "$ref": "#/$defs/a"}),
    ] {
        let start = Instant::now();
        let Ok(grammar) = grammars.json_schema(&schema) else { continue };
        let mut constraint = grammar.constraint();
        for _ in 0..20 {
            let Ok(mask) = constraint.allowed() else { break };
            let Some(token) = (0..VOCAB as u32).rev().find(|&id| mask.allows(id)) else { break };
            if let Err(error) = constraint.advance(token) {
                assert!(!error.to_string().contains('\n'), "{error}");
                break;
            }
        }
        assert!(start.elapsed().as_secs() < 20, "{schema}: {:?}", start.elapsed());
    }
}
