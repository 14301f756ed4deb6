//! Unusable checkpoints: each is refused in one sentence that names file and field.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;

use common::{Checkpoint, assert_refused, fathom};
use serde_json::{Value, json};

const WEIGHTS: &str = "model.safetensors";
const DOWN: &str = "model.layers.3.mlp.down_proj.weight";

#[test]
fn truncated_weights() {
    let checkpoint = Checkpoint::planted();
    let bytes = fs::read(checkpoint.file(WEIGHTS)).unwrap();
    for keep in [bytes.len() - 1, bytes.len() / 2, 100, 8, 7, 0] {
        checkpoint.write(WEIGHTS, &bytes[..keep]);
        checkpoint.scan_is_refused(&[WEIGHTS]);
    }
}

#[test]
fn header_length_beyond_the_file() {
    let checkpoint = Checkpoint::planted();
    let mut bytes = fs::read(checkpoint.file(WEIGHTS)).unwrap();
    for length in [bytes.len() as u64, 1 << 40, u64::MAX] {
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        checkpoint.write(WEIGHTS, &bytes);
        checkpoint.scan_is_refused(&[WEIGHTS, "header"]);
    }
}

#[test]
fn header_that_is_not_json() {
    let checkpoint = Checkpoint::planted();
    let mut bytes = fs::read(checkpoint.file(WEIGHTS)).unwrap();
    bytes[8] = b'!';
    checkpoint.write(WEIGHTS, &bytes);
    checkpoint.scan_is_refused(&[WEIGHTS, "header"]);
}

#[test]
fn overlapping_and_out_of_range_offsets() {
    let checkpoint = Checkpoint::planted();
    let original = fs::read(checkpoint.file(WEIGHTS)).unwrap();
    let spoil = |offsets: Value| {
        checkpoint.write(WEIGHTS, &original);
        checkpoint.edit_weights(WEIGHTS, |header, _| {
            header[DOWN]["data_offsets"] = offsets;
        });
        checkpoint.scan_is_refused(&[WEIGHTS]);
    };
    let size = 96 * 40 * 2;
    spoil(json!([0, size])); // overlaps lm_head
    spoil(json!([original.len(), original.len() + size]));
    spoil(json!([u64::MAX - 1, u64::MAX]));
    spoil(json!([size, 0]));
    spoil(json!([-1, size]));
    spoil(json!("here"));
}

#[test]
fn wrong_shape_and_dtype() {
    let checkpoint = Checkpoint::planted();
    checkpoint.edit_weights(WEIGHTS, |header, _| header[DOWN]["shape"] = json!([40, 96]));
    checkpoint.scan_is_refused(&[WEIGHTS, DOWN, "[96, 40]", "[40, 96]"]);
    checkpoint.edit_weights(WEIGHTS, |header, _| {
        header[DOWN]["shape"] = json!([96, 40]);
        header[DOWN]["dtype"] = json!("I16");
    });
    checkpoint.scan_is_refused(&[WEIGHTS, DOWN, "I16"]);
    // A shape whose product overflows.
    checkpoint.edit_weights(WEIGHTS, |header, _| {
        header[DOWN]["dtype"] = json!("BF16");
        header[DOWN]["shape"] = json!([u64::MAX, 4]);
    });
    checkpoint.scan_is_refused(&[WEIGHTS]);
}

#[test]
fn missing_tensor() {
    let checkpoint = Checkpoint::planted();
    checkpoint.edit_weights(WEIGHTS, |header, _| {
        let entry = header.remove(DOWN).unwrap();
        header.insert("model.layers.3.mlp.up_and_down.weight".to_owned(), entry);
    });
    checkpoint.scan_is_refused(&[DOWN]);
}

#[test]
fn weights_that_are_not_finite() {
    for (value, kind) in [(0x7FC0u16, "NaN"), (0xFF80, "inf")] {
        let checkpoint = Checkpoint::planted();
        checkpoint.edit_weights(WEIGHTS, |header, data| {
            let start = header[DOWN]["data_offsets"][0].as_u64().unwrap() as usize;
            data[start + 2000..start + 2002].copy_from_slice(&value.to_le_bytes());
        });
        let output = checkpoint.scan().output().unwrap();
        assert_refused(&output, &[WEIGHTS, DOWN]);
        assert!(!checkpoint.run_dir().exists(), "{kind}");
    }
}

#[test]
fn index_that_leaves_the_directory() {
    for name in
        ["../../x", "/etc/passwd", "a/../../x.safetensors", "", "..", "model-\u{0}.safetensors"]
    {
        let checkpoint = sharded();
        checkpoint.edit_json("model.safetensors.index.json", |index| {
            index["weight_map"]["model.norm.weight"] = json!(name);
        });
        let output = scan_sharded(&checkpoint);
        assert_refused(&output, &["model.safetensors.index.json", "model.norm.weight"]);
    }
}

#[test]
fn index_with_a_missing_shard() {
    let checkpoint = sharded();
    fs::remove_file(checkpoint.file("model-00002-of-00003.safetensors")).unwrap();
    assert_refused(&scan_sharded(&checkpoint), &["model-00002-of-00003.safetensors"]);
}

#[test]
fn index_that_is_not_an_index() {
    for text in
        ["", "[]", "{}", r#"{"weight_map": 3}"#, r#"{"weight_map": {"a": 3}}"#, "{\"weight_map\":"]
    {
        let checkpoint = sharded();
        checkpoint.write("model.safetensors.index.json", text);
        assert_refused(&scan_sharded(&checkpoint), &["model.safetensors.index.json"]);
    }
}

fn sharded() -> Checkpoint {
    let checkpoint = Checkpoint::copy_of("golden/codellama-sharded");
    checkpoint.write("traces.jsonl", r#"{"input_ids": [1, 2, 3]}"#);
    checkpoint
}

fn scan_sharded(checkpoint: &Checkpoint) -> std::process::Output {
    let output = checkpoint.scan().output().unwrap();
    assert!(!checkpoint.run_dir().exists());
    output
}

#[test]
fn no_weights_at_all() {
    let checkpoint = Checkpoint::planted();
    fs::remove_file(checkpoint.file(WEIGHTS)).unwrap();
    checkpoint.scan_is_refused(&[WEIGHTS]);
}

/// (`config.json` field, its new value or `None`, parts of the message)
type Spoilt = (&'static str, Option<Value>, &'static [&'static str]);

#[test]
fn configs_that_cannot_be() {
    let cases: &[Spoilt] = &[
        (
            "architectures",
            Some(json!(["GPT2LMHeadModel"])),
            &["GPT2LMHeadModel", "Qwen2ForCausalLM"],
        ),
        ("rope_scaling", Some(json!({"rope_type": "spiral", "factor": 2.0})), &["spiral", "yarn"]),
        ("rope_scaling", Some(json!({"rope_type": "yarn"})), &["factor"]),
        ("rope_theta", None, &["rope_theta"]),
        ("hidden_size", Some(json!(97)), &["hidden_size"]),
        ("num_attention_heads", Some(json!(0)), &["num_attention_heads"]),
        ("num_key_value_heads", Some(json!(0)), &["num_key_value_heads"]),
        ("num_key_value_heads", Some(json!(3)), &["num_key_value_heads"]),
        ("num_hidden_layers", Some(json!(0)), &["num_hidden_layers"]),
        ("num_hidden_layers", Some(json!(-2)), &["num_hidden_layers"]),
        ("num_hidden_layers", Some(json!(4_000_000_000u64)), &["num_hidden_layers"]),
        ("hidden_size", Some(json!("96")), &["hidden_size"]),
        ("vocab_size", Some(json!(1.5)), &["vocab_size"]),
        ("head_dim", Some(json!(0)), &["head_dim"]),
        ("rms_norm_eps", Some(json!("small")), &["rms_norm_eps"]),
        ("hidden_act", Some(json!("relu6")), &["hidden_act"]),
    ];
    for (field, value, parts) in cases {
        let checkpoint = Checkpoint::planted();
        checkpoint.edit_config(|config| match value {
            Some(value) => drop(config.insert((*field).to_owned(), value.clone())),
            None => drop(config.remove(*field)),
        });
        println!("{field} = {value:?}");
        let mut parts = parts.to_vec();
        parts.push("config.json");
        checkpoint.scan_is_refused(&parts);
    }
}

#[test]
fn config_that_is_not_json_or_not_text_or_not_there() {
    let checkpoint = Checkpoint::planted();
    for bytes in [&b"{"[..], b"", b"[]", b"{\"architectures\": [\"\xff\xfe\"]}"] {
        checkpoint.write("config.json", bytes);
        checkpoint.scan_is_refused(&["config.json"]);
    }
    fs::remove_file(checkpoint.file("config.json")).unwrap();
    checkpoint.scan_is_refused(&["config.json"]);
}

#[test]
fn a_model_that_is_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    for model in ["no/such-model", "/no/such/dir", ""] {
        let mut scan = fathom();
        scan.env("HF_HUB_CACHE", dir.path())
            .arg("scan")
            .args(["--model", model, "--traces", "t.jsonl"]);
        assert_refused(&scan.arg("--out").arg(&out).output().unwrap(), &[model]);
        assert!(!out.exists());
    }
}

/// Opening a named pipe in place of a file would block.
#[cfg(unix)]
#[test]
fn pipes_in_place_of_files_do_not_hang() {
    for name in ["config.json", WEIGHTS] {
        let checkpoint = Checkpoint::planted();
        fs::remove_file(checkpoint.file(name)).unwrap();
        let made =
            std::process::Command::new("mkfifo").arg(checkpoint.file(name)).status().unwrap();
        assert!(made.success());
        checkpoint.scan_is_refused(&[name]);
    }
}

const LFS: &str = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 2740656\n";

/// A checkpoint with a tokenizer and a trace of text.
fn with_tokenizer() -> Checkpoint {
    let checkpoint = Checkpoint::copy_of("models/draft");
    checkpoint.write("traces.jsonl", r#"{"prompt": "a", "output": "b"}"#);
    checkpoint
}

/// The files of [`with_tokenizer`].
const FILES: [&str; 6] = [
    "config.json",
    "generation_config.json",
    WEIGHTS,
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
];

/// `git clone` without Git LFS leaves pointer files.
#[test]
fn git_lfs_pointers_in_place_of_any_file() {
    for name in FILES {
        let checkpoint = with_tokenizer();
        checkpoint.write(name, LFS);
        checkpoint.scan_is_refused(&[name, "is a Git LFS pointer", "`git lfs pull`"]);
    }
}

/// A download that was interrupted, or a cache without its blobs.
#[cfg(unix)]
#[test]
fn links_to_nothing_in_place_of_any_file() {
    for name in FILES.into_iter().chain(["special_tokens_map.json", "adapter_config.json"]) {
        let checkpoint = with_tokenizer();
        let _ = fs::remove_file(checkpoint.file(name));
        std::os::unix::fs::symlink("../../blobs/none", checkpoint.file(name)).unwrap();
        let link = "is a link to ../../blobs/none, which does not exist";
        checkpoint.scan_is_refused(&[name, link]);
    }
}

#[test]
fn an_adapter_alone() {
    let checkpoint = Checkpoint::planted();
    fs::remove_file(checkpoint.file("config.json")).unwrap();
    fs::remove_file(checkpoint.file(WEIGHTS)).unwrap();
    let adapter = json!({"base_model_name_or_path": "org/base", "peft_type": "LORA", "r": 8});
    checkpoint.write("adapter_config.json", adapter.to_string());
    checkpoint.scan_is_refused(&[
        "adapter_config.json",
        "LoRA adapter (r 8) of `org/base`",
        "merge",
    ]);
}

#[test]
fn tensor_names_of_a_part_and_of_an_adapter() {
    let checkpoint = Checkpoint::planted();
    let original = fs::read(checkpoint.file(WEIGHTS)).unwrap();
    let rename = |rename: &dyn Fn(&str) -> String| {
        checkpoint.write(WEIGHTS, &original);
        checkpoint.edit_weights(WEIGHTS, |header, _| {
            let renamed = std::mem::take(header).into_iter();
            header.extend(renamed.map(|(name, entry)| match name.as_str() {
                "__metadata__" => (name, entry),
                _ => (rename(&name), entry),
            }));
        });
    };
    rename(&|name| match name {
        "lm_head.weight" => name.to_owned(),
        _ => format!("language_model.{name}"),
    });
    checkpoint
        .scan_is_refused(&["is missing; the file has `language_model.model.embed_tokens.weight`"]);
    rename(&|name| name.replace("up_proj.", "up_proj.base_layer."));
    checkpoint.scan_is_refused(&["up_proj.base_layer.weight`", "an adapter that is not merged"]);
    // A prefix shared by all names is accepted.
    rename(&|name| format!("_orig_mod.{name}"));
    checkpoint.scan_succeeds(&[]);
}

#[test]
fn a_folder_of_the_cache_or_a_url_in_place_of_a_model() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("models--org--name");
    fs::create_dir_all(root.join("snapshots/0123abc")).unwrap();
    fs::create_dir_all(root.join("refs")).unwrap();
    fs::write(root.join("refs/main"), "0123abc").unwrap();
    for model in [root.to_str().unwrap(), "https://hub.example/org/name/tree/main", "org/name/"] {
        let mut scan = fathom();
        scan.env("HUGGINGFACE_HUB_CACHE", dir.path()).arg("scan");
        scan.args(["--model", model, "--traces", "t.jsonl", "--out"]).arg(dir.path().join("run"));
        assert_refused(&scan.output().unwrap(), &["give `org/name`"]);
    }
}

#[test]
fn a_slow_tokenizer_alone_says_how_to_convert_it() {
    let checkpoint = with_tokenizer();
    fs::rename(checkpoint.file("tokenizer.json"), checkpoint.file("tokenizer.model")).unwrap();
    checkpoint.scan_is_refused(&["has no tokenizer.json", "tokenizer.model", "save_pretrained"]);
}
