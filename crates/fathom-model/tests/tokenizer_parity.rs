//! Compares token ids with those of transformers 5.24, recorded by
//! `data/tokenizers/parity/generate.py`.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use fathom_model::{RenderOptions, TextEncoder, Tokenizer, TokenizerFiles};
use proptest::prelude::*;
use serde_json::{Value, json};

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/tokenizers/parity");
const KINDS: [&str; 6] = [
    "byte_level",
    "byte_level_prefix",
    "metaspace_first",
    "legacy_prepend",
    "unigram",
    "wordpiece",
];

fn json_of(kind: &str) -> String {
    fs::read_to_string(format!("{DATA}/{kind}.json")).unwrap()
}

fn expected() -> Value {
    serde_json::from_str(&json_of("expected")).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

fn text_of(value: &Value) -> Option<String> {
    (!value.is_null()).then(|| value.to_string())
}

/// A tokenizer from `tokenizer.json` and the contents of the three other files (null: no such
/// file).
fn load(tokenizer: &str, config: &Value, map: &Value, added: &Value) -> Result<Tokenizer, String> {
    Tokenizer::from_files(&TokenizerFiles {
        dir: "m".into(),
        tokenizer: tokenizer.to_owned(),
        config: text_of(config),
        special_tokens_map: text_of(map),
        added_tokens: text_of(added),
    })
    .map_err(|error| error.to_string())
}

fn with_config(kind: &str, config: Value) -> Tokenizer {
    load(&json_of(kind), &config, &Value::Null, &Value::Null).unwrap()
}

fn remarks(tokenizer: &Tokenizer) -> Vec<String> {
    tokenizer.remarks().iter().map(ToString::to_string).collect()
}

#[test]
fn awkward_texts() {
    let expected = expected();
    let texts: Vec<String> = serde_json::from_value(expected["texts"].clone()).unwrap();
    assert_eq!(expected["plain"].as_array().unwrap().len(), KINDS.len());
    for case in expected["plain"].as_array().unwrap() {
        let tokenizer = with_config(case["kind"].as_str().unwrap(), Value::Null);
        assert_eq!(remarks(&tokenizer), [""; 0]);
        for (text, bare) in texts.iter().zip(case["ids"].as_array().unwrap()) {
            let bare = ids(bare);
            assert_eq!(tokenizer.encode(text, false).unwrap(), bare, "{} {text:?}", case["kind"]);
            let full = [ids(&case["frame"][0]), bare, ids(&case["frame"][1])].concat();
            assert_eq!(tokenizer.encode(text, true).unwrap(), full, "{} {text:?}", case["kind"]);
        }
    }
}

/// Tokens declared in `tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json`.
#[test]
fn overlays() {
    let expected = expected();
    let texts: Vec<String> = serde_json::from_value(expected["short"].clone()).unwrap();
    let cases = expected["overlays"].as_array().unwrap();
    assert_eq!(cases.len(), 116);
    for case in cases {
        let name = format!("{}: {}", case["kind"], case["name"]);
        let json = json_of(case["kind"].as_str().unwrap());
        let tokenizer =
            load(&json, &case["config"], &case["special_tokens_map"], &case["added_tokens"]);
        let tokenizer = tokenizer.unwrap_or_else(|error| panic!("{name}: {error}"));
        for (content, id) in case["tokens"].as_object().unwrap() {
            let id = u32::try_from(id.as_u64().unwrap()).unwrap();
            assert_eq!(tokenizer.token_to_id(content), Some(id), "{name}: {content}");
        }
        assert_eq!(tokenizer.vocab_size() as u64, case["size"].as_u64().unwrap(), "{name}");
        let special = tokenizer.special_tokens();
        let named = json!([special.bos, special.eos, special.unk, special.pad]);
        assert_eq!(named, case["named"], "{name}");
        for (text, bare) in texts.iter().zip(case["ids"].as_array().unwrap()) {
            assert_eq!(tokenizer.encode(text, false).unwrap(), ids(bare), "{name}: {text:?}");
        }
    }
}

/// The post-processor decides about BOS and EOS for every tokenizer class but CodeLlama's: there,
/// transformers replaces the post-processor by one that adds BOS.
#[test]
fn bos_and_eos_are_the_post_processors() {
    let expected = expected();
    let bare: Value = serde_json::from_str(&json_of("metaspace_first")).unwrap();
    let mut compared = 0;
    for case in expected["bos"].as_array().unwrap() {
        if case["class"].as_str().is_some_and(|class| class.starts_with("CodeLlama")) {
            continue;
        }
        compared += 1;
        let mut json = bare.clone();
        match case["post_processor"].as_str().unwrap() {
            "none" => json["post_processor"] = Value::Null,
            "both" => {
                let single = json["post_processor"]["single"].as_array_mut().unwrap();
                single.push(json!({"SpecialToken": {"id": "</s>", "type_id": 0}}));
                json["post_processor"]["special_tokens"]["</s>"] =
                    json!({"id": "</s>", "ids": [2], "tokens": ["</s>"]});
            }
            _ => {}
        }
        let mut config = case["config"].clone();
        config["bos_token"] = "<s>".into();
        config["eos_token"] = "</s>".into();
        let tokenizer = load(&json.to_string(), &config, &Value::Null, &Value::Null).unwrap();
        let text = tokenizer.encode("the", false).unwrap();
        let frame = [ids(&case["frame"][0]), text, ids(&case["frame"][1])].concat();
        assert_eq!(tokenizer.encode("the", true).unwrap(), frame, "{case}");
        // A key that contradicts the post-processor gets a remark.
        for (key, end) in [("add_bos_token", 0), ("add_eos_token", 1)] {
            let adds = !case["frame"][end].as_array().unwrap().is_empty();
            let contradicts = case["config"].get(key).is_some_and(|value| value != &json!(adds));
            let remarked = remarks(&tokenizer).iter().any(|text| text.contains(key));
            assert_eq!(remarked, contradicts, "{case}: {:?}", remarks(&tokenizer));
        }
    }
    assert_eq!(compared, 531);
}

#[test]
fn the_user_decides_about_bos() {
    let config = json!({"bos_token": "<s>", "add_bos_token": false});
    let mut tokenizer = with_config("metaspace_first", config);
    assert_eq!(
        remarks(&tokenizer),
        ["m/tokenizer_config.json: `add_bos_token` is false, but BOS is added: transformers 5 \
             follows the post-processor of tokenizer.json; `--bos no` leaves it out"]
    );
    let text = tokenizer.encode("the", false).unwrap();
    let own = tokenizer.encode("<s>the", false).unwrap();
    let one_bos = [&[1][..], &text].concat();
    for (bos, the, of_its_own) in [
        (Some(true), &one_bos, own.clone()),
        (Some(false), &text, own.clone()),
        (None, &one_bos, { [&[1][..], &own].concat() }),
    ] {
        tokenizer.set_bos(bos).unwrap();
        assert_eq!(&tokenizer.encode("the", true).unwrap(), the, "{bos:?}");
        assert_eq!(tokenizer.encode("<s>the", true).unwrap(), of_its_own, "{bos:?}");
        assert_eq!(remarks(&tokenizer), [""; 0], "the user has decided");
    }

    // A tokenizer whose post-processor adds no BOS.
    let mut json: Value = serde_json::from_str(&json_of("metaspace_first")).unwrap();
    json["post_processor"] = Value::Null;
    let config = json!({"bos_token": "<s>", "add_bos_token": true});
    let mut bare = load(&json.to_string(), &config, &Value::Null, &Value::Null).unwrap();
    assert!(remarks(&bare)[0].contains("is true, but no BOS is added"), "{:?}", remarks(&bare));
    assert_eq!(bare.encode("the", true).unwrap(), text);
    bare.set_bos(Some(true)).unwrap();
    assert_eq!(bare.encode("the", true).unwrap(), one_bos);

    let mut nameless = with_config("metaspace_first", Value::Null);
    let message = nameless.set_bos(Some(true)).unwrap_err().to_string();
    assert_eq!(
        message,
        "m/tokenizer_config.json: names no BOS token that could be added or left out"
    );
}

/// Checks that `prompt` and the continuation `output` have the ids of the concatenated text.
/// Returns false, without checking, if no token of that text ends at the seam.
fn check_seam(
    (kind, tokenizer, library): &(&str, Tokenizer, tokenizers::Tokenizer),
    prompt: &str,
    output: &str,
) -> bool {
    let prompt_ids = tokenizer.encode(prompt, false).unwrap();
    let whole = library.encode(format!("{prompt}{output}"), false).unwrap();
    let (before, after) = whole.get_offsets().split_at(prompt_ids.len().min(whole.len()));
    let seam = whole.get_ids().starts_with(&prompt_ids)
        && before.iter().all(|(_, end)| *end <= prompt.len())
        && after.iter().all(|(start, _)| *start >= prompt.len());
    if seam {
        let rest = tokenizer.encode_continuation(output).unwrap();
        assert_eq!(rest, whole.get_ids()[before.len()..], "{kind}: {prompt:?} + {output:?}");
    }
    seam
}

/// The tokenizer `kind`, loaded by this crate and by the `tokenizers` crate.
fn both(kind: &str) -> (&str, Tokenizer, tokenizers::Tokenizer) {
    (kind, with_config(kind, Value::Null), json_of(kind).parse().unwrap())
}

/// The ids of a prompt and its continuation are those of the concatenated text, if a token ends at
/// the seam.
#[test]
fn continuations_have_the_ids_of_the_concatenated_text() {
    let expected = expected();
    let mut outputs: Vec<String> = serde_json::from_value(expected["texts"].clone()).unwrap();
    outputs
        .extend(["\n<s>the", "the</s>the fox", "  </s>  the", " the<mask> the"].map(str::to_owned));
    for kind in KINDS {
        let tokenizers = both(kind);
        let mut compared = 0;
        for prompt in ["the quick", "a sink:", "fox\n", "x ", "(12)", "é", "user\nthe </b>"] {
            // The first word of the output depends on white space dropped from the prompt
            // (unigram) or on the prompt's last word (wordpiece).
            let depends = match kind {
                "unigram" => prompt.ends_with(char::is_whitespace),
                "wordpiece" => prompt.ends_with(char::is_alphanumeric),
                _ => false,
            };
            for output in outputs.iter().filter(|_| !depends) {
                compared += usize::from(check_seam(&tokenizers, prompt, output));
            }
        }
        assert!(compared > 150, "{kind}: {compared}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_continuation_has_the_ids_of_the_concatenated_text(
        prompt in "([a-z ▁\\n\u{e9}\u{1f642}]|the |fox|<s>|</s>){0,8}[a-z.:)\n]",
        output in "([a-zA-Z0-9 ▁\\t\\r\\n\u{e9}\u{301}\u{200d}\u{1f642}\u{4f60}]\
            | the|fox|<s>|</s>|<mask>|<unk>){0,12}",
    ) {
        for kind in ["byte_level", "byte_level_prefix", "metaspace_first", "legacy_prepend"] {
            check_seam(&both(kind), &prompt, &output);
        }
    }
}

/// Only the start of a continuation has no `▁` prefix.
#[test]
fn prefixes_in_continuations() {
    for (kind, after_added) in
        [("metaspace_first", "the"), ("legacy_prepend", "▁the"), ("byte_level", "the")]
    {
        let config = json!({"extra_special_tokens": ["<think>"]});
        let tokenizer = with_config(kind, config);
        let tokens = |text: &str| -> Vec<String> {
            let ids = tokenizer.encode_continuation(text).unwrap();
            ids.iter().map(|id| tokenizer.id_to_token(*id).unwrap()).collect()
        };
        let space = if kind == "byte_level" { "Ġthe" } else { "▁the" };
        assert_eq!(tokens("the").concat(), "the", "{kind}");
        assert_eq!(tokens(" the").concat(), space, "{kind}");
        assert_eq!(tokens("the<think>the").concat(), format!("the<think>{after_added}"), "{kind}");
        assert_eq!(tokens("<think>the").concat(), format!("<think>{after_added}"), "{kind}");
        assert_eq!(tokens("").concat(), "", "{kind}");
    }
    let unigram = with_config("unigram", Value::Null);
    let ids = unigram.encode_continuation("the the</s>the").unwrap();
    let tokens: Vec<String> = ids.iter().map(|id| unigram.id_to_token(*id).unwrap()).collect();
    assert_eq!(tokens.concat(), "the▁the</s>▁the");
    let roberta = with_config("byte_level_prefix", Value::Null);
    let ids = roberta.encode_continuation("the the</s>the").unwrap();
    let tokens: Vec<String> = ids.iter().map(|id| roberta.id_to_token(*id).unwrap()).collect();
    assert_eq!(tokens.concat(), "theĠthe</s>Ġthe");
}

/// With [`TextEncoder`], a Llama-like answer gets no `▁` prefix.
#[test]
fn answers_of_traces_continue_their_prompts() {
    for kind in ["metaspace_first", "legacy_prepend"] {
        let tokenizer = with_config(kind, Value::Null);
        let render = RenderOptions::default();
        let encoder =
            TextEncoder { tokenizer: Some(&tokenizer), template: None, render, vocab_size: 380 };
        for output in ["\nthe", " the fox", "(the)"] {
            let ids = [encoder.prompt_ids("a sink:").unwrap(), encoder.output_ids(output).unwrap()];
            let whole = tokenizer.encode(&format!("a sink:{output}"), true).unwrap();
            assert_eq!(ids.concat(), whole, "{kind}: {output:?}");
        }
    }
}

#[test]
fn contradictions_get_a_remark() {
    let remark = |config: Value, map: Value, added: Value| {
        remarks(&load(&json_of("legacy_prepend"), &config, &map, &added).unwrap()).join("\n")
    };
    let token = |content: &str| json!({"content": content, "special": true, "normalized": false});
    let decoder = |tokens: Value| json!({ "added_tokens_decoder": tokens });
    let null = || Value::Null;
    let order = "ids are given in order from the end of the vocabulary, as transformers does";
    assert_eq!(
        remark(decoder(json!({"380": token("<x>"), "390": token("<y>")})), null(), null()),
        format!(
            "m/tokenizer_config.json: token `<y>` is declared as id 390, but gets id 381: {order}"
        )
    );
    assert_eq!(remark(decoder(json!({"380": token("<x>")})), null(), null()), "");
    assert_eq!(
        remark(decoder(json!({})), json!({"unk_token": "<x>"}), null()).matches("<x>").count(),
        1
    );
    assert_eq!(
        remark(null(), null(), json!({"<x>": 500, "<y>": 600})),
        format!(
            "m/added_tokens.json: token `<x>` is declared as id 500, but gets id 380 (and 1 more): \
             {order}"
        )
    );
    assert_eq!(
        remark(null(), null(), json!({"<x>": 1})),
        "m/added_tokens.json: `<x>` declares `<x>` as id 1: not read, as in transformers, because \
         another declaration takes precedence"
    );
    assert_eq!(
        remark(
            decoder(json!({"1": {"content": "<s>", "lstrip": true, "special": true}})),
            null(),
            null()
        ),
        "m/tokenizer_config.json: token `<s>` has different flags in tokenizer.json: the flags \
         given here are used, as transformers does"
    );
    assert_eq!(
        remark(json!({"pad_token": "[PAD]", "eos_token": "</s>"}), null(), null()),
        "m/tokenizer_config.json: token `[PAD]` is named, but is not in tokenizer.json; it \
         gets id 380: the model may never have seen it"
    );
    let map = json!({"eos_token": "</s>", "bos_token": "<s>"});
    let mut config = decoder(json!({"0": token("<unk>")}));
    config["eos_token"] = "<unk>".into();
    config["bos_token"] = "<s>".into();
    assert_eq!(
        remark(config, map.clone(), json!({"</s>": 2, "<z>": 3})),
        "m/special_tokens_map.json: `eos_token` declares `</s>`: not read, as in transformers, \
         because another declaration takes precedence\n\
         m/added_tokens.json: `<z>` declares `<z>` as id 3: not read, as in transformers, because \
         another declaration takes precedence"
    );
    assert_eq!(
        remark(json!({"eos_token": "<unk>", "bos_token": "<s>"}), map, null()),
        "m/tokenizer_config.json: `eos_token` declares `<unk>`: not read, as in transformers, \
         because another declaration takes precedence"
    );
    // An id declared by tokenizer.json itself.
    let mut tree: Value = serde_json::from_str(&json_of("legacy_prepend")).unwrap();
    let mut last = tree["added_tokens"][2].clone();
    last["content"] = "<y>".into();
    last["id"] = 400.into();
    tree["added_tokens"].as_array_mut().unwrap().push(last);
    let tokenizer = load(&tree.to_string(), &null(), &null(), &null()).unwrap();
    assert_eq!(
        remarks(&tokenizer),
        [format!("m/tokenizer.json: token `<y>` is declared as id 400, but gets id 380: {order}")]
    );
}

#[test]
fn declarations_of_other_kinds_are_refused_by_name() {
    let json = json_of("legacy_prepend");
    let refusal =
        |config: Value, map: Value, added: Value| load(&json, &config, &map, &added).err().unwrap();
    let null = || Value::Null;
    for (config, problem) in [
        (json!({"added_tokens_decoder": []}), "`added_tokens_decoder` must be an object"),
        (json!({"added_tokens_decoder": {"-1": {"content": "<x>"}}}), "not by `-1`"),
        (json!({"added_tokens_decoder": {"9": "<x>"}}), "`added_tokens_decoder.9` must be a"),
        (
            json!({"added_tokens_decoder": {"9": {"content": "<x>", "lstrip": 1}}}),
            "`added_tokens_decoder.9.lstrip` must be true or false",
        ),
        (json!({"extra_special_tokens": "<x>"}), "`extra_special_tokens` must be a list"),
        (json!({"extra_special_tokens": [1]}), "`extra_special_tokens[0]` must be a string"),
        (json!({"pad_token": false}), "`pad_token` must be a string"),
        (json!([]), "must hold a JSON object"),
    ] {
        let message = refusal(config, null(), null());
        assert!(message.starts_with("m/tokenizer_config.json: "), "{message}");
        assert!(message.contains(problem), "{message}");
    }
    let message = refusal(null(), json!({"eos_token": 1}), null());
    assert!(message.starts_with("m/special_tokens_map.json: `eos_token` must be"), "{message}");
    for id in [json!(-1), json!(1e300), json!(4294967296u64), json!("7"), null()] {
        let message = refusal(null(), null(), json!({ "<x>": id }));
        assert!(message.starts_with("m/added_tokens.json: `<x>` must be a token id"), "{message}");
    }
}

/// Declared ids and tokens cannot make the vocabulary arbitrarily large.
#[test]
fn the_size_of_declarations_is_limited() {
    let json = json_of("legacy_prepend");
    let null = Value::Null;
    let highest = load(&json, &null, &null, &json!({"<x>": u32::MAX})).unwrap();
    assert_eq!(highest.token_to_id("<x>"), Some(380));
    let many: serde_json::Map<String, Value> =
        (0..20_000).map(|i| (format!("<{i}>"), json!(380 + i))).collect();
    let many = load(&json_of("metaspace_first"), &null, &null, &many.into()).unwrap();
    assert_eq!(many.encode("a<19999>", false).unwrap().last(), Some(&20_379));
    let long = "x".repeat(5 << 20);
    let message = load(&json, &json!({ "pad_token": long }), &null, &null).err().unwrap();
    let start = "m/tokenizer.json: cannot be extended by 1 tokens of 5242896 bytes";
    assert!(message.starts_with(start), "{message}");
}

/// Without a `pad_token` key, the padding stored in `tokenizer.json` names the padding token.
#[test]
fn stored_padding_names_the_padding_token() {
    let mut tree: Value = serde_json::from_str(&json_of("legacy_prepend")).unwrap();
    tree["padding"] = json!({"strategy": {"Fixed": 64}, "direction": "Right",
        "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>"});
    let stored = tree.clone();
    let pad = |config: Value| {
        let tokenizer = load(&stored.to_string(), &config, &Value::Null, &Value::Null).unwrap();
        tokenizer.special_tokens().pad.clone()
    };
    assert_eq!(pad(Value::Null).as_deref(), Some("<unk>"));
    assert_eq!(pad(json!({"pad_token": "</s>"})).as_deref(), Some("</s>"));
    assert_eq!(pad(json!({"pad_token": null})), None);
    tree["padding"]["pad_token"] = "[PAD]".into();
    let tokenizer = load(&tree.to_string(), &Value::Null, &Value::Null, &Value::Null).unwrap();
    assert_eq!(tokenizer.token_to_id("[PAD]"), Some(380));
}

#[test]
fn files_of_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    assert!(TokenizerFiles::read(dir.path()).unwrap().is_none());
    write("tokenizer.json", &json_of("legacy_prepend"));
    write("added_tokens.json", r#"{"<x>": 380}"#);
    write("special_tokens_map.json", r#"{"pad_token": "<x>"}"#);
    let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
    assert_eq!(tokenizer.encode("<x>", false).unwrap(), [380]);
    assert_eq!(tokenizer.special_tokens().pad.as_deref(), Some("<x>"));
    assert_eq!(remarks(&tokenizer), [""; 0]);
    write("added_tokens.json", "{");
    let message = Tokenizer::from_dir(dir.path()).err().unwrap().to_string();
    assert!(message.contains("added_tokens.json: is not valid JSON"), "{message}");
    assert!(Path::new(&message.split(": ").next().unwrap()).is_absolute(), "{message}");
}
