//! Configs: both layouts, HuggingFace's defaults, and every error.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use fathom_model::{About, Architecture, Checkpoint, ModelConfig, RopeKind, check_file};
use proptest::prelude::*;
use serde_json::{Value, json};

fn crate_file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn goldens() -> Vec<PathBuf> {
    let dirs = std::fs::read_dir(crate_file("../../tests/fixtures/golden")).unwrap();
    let dirs: Vec<_> =
        dirs.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect();
    assert!(dirs.len() >= 9);
    dirs
}

fn parse(config: &Value) -> Result<ModelConfig, String> {
    ModelConfig::parse(Path::new("m/config.json"), &config.to_string()).map_err(|e| e.to_string())
}

/// A small valid config of a family, for tests to change.
fn base(family: &str) -> Value {
    let class = match family {
        "llama" => "LlamaForCausalLM",
        "mistral" => "MistralForCausalLM",
        "qwen2" => "Qwen2ForCausalLM",
        "qwen3" => "Qwen3ForCausalLM",
        "phi3" => "Phi3ForCausalLM",
        other => panic!("{other}"),
    };
    json!({
        "architectures": [class], "model_type": family, "hidden_act": "silu", "hidden_size": 64,
        "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 320, "rope_theta": 1e6,
        "max_position_embeddings": 256,
    })
}

fn with(family: &str, changes: Value) -> Value {
    let mut config = base(family);
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

fn without(mut config: Value, key: &str) -> Value {
    config.as_object_mut().unwrap().remove(key);
    config
}

#[test]
fn both_layouts_of_every_golden_are_one_config() {
    for dir in goldens() {
        let read = |name: &str| {
            let path = dir.join(name);
            ModelConfig::parse(&path, &std::fs::read_to_string(&path).unwrap()).unwrap()
        };
        let config = read("config.json");
        assert_eq!(config, read("config.v5.json"), "{}", dir.display());
        assert_eq!(config, ModelConfig::from_dir(&dir).unwrap());

        let reference = std::fs::read_to_string(dir.join("reference.json")).unwrap();
        let reference: Value = serde_json::from_str(&reference).unwrap();
        assert_eq!(config.architecture.to_string(), reference["architecture"]);
        let shape = json!({
            "layers": config.layers, "hidden": config.hidden, "intermediate": config.intermediate,
            "heads": config.heads, "kv_heads": config.kv_heads, "head_dim": config.head_dim,
            "vocab": config.vocab,
        });
        assert_eq!(shape, reference["shape"], "{}", dir.display());
        assert_eq!(
            json!(config.windows),
            reference["attention_window_per_layer"],
            "{}",
            dir.display()
        );
    }
}

#[test]
fn defaults_and_windows_are_those_of_transformers() {
    let path = crate_file("tests/data/huggingface/configs.json");
    let cases: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let cases = cases["cases"].as_array().unwrap();
    assert!(cases.len() > 30);
    for case in cases {
        let config = parse(&case["config"]).unwrap();
        let found = json!({
            "layers": config.layers, "hidden": config.hidden, "intermediate": config.intermediate,
            "heads": config.heads, "kv_heads": config.kv_heads, "head_dim": config.head_dim,
            "vocab": config.vocab, "theta": config.rope.theta,
            "max_position_embeddings": config.max_position_embeddings,
            "tie_word_embeddings": config.tie_word_embeddings, "qkv_bias": config.qkv_bias,
            "o_bias": config.o_bias, "mlp_bias": config.mlp_bias,
            "bos_token_id": config.bos_token_id, "eos_token_ids": config.eos_token_ids,
            "pad_token_id": config.pad_token_id,
            "windows": config.windows,
        });
        let mut expected = case["expected"].clone();
        let eps = expected.as_object_mut().unwrap().remove("rms_norm_eps").unwrap();
        assert_eq!(config.rms_norm_eps, eps.as_f64().unwrap() as f32);
        assert_eq!(found, expected, "{} of {}", case["name"], config.architecture);
        assert_eq!(config.qk_norm, config.architecture == Architecture::Qwen3);
        assert_eq!(config.fused_projections, config.architecture == Architecture::Phi3);
    }
}

/// A missing base of the rotary embedding is filled in only if the checkpoint must have used it.
#[test]
fn a_missing_base_is_ten_thousand_only_for_the_families_that_used_it() {
    let theta = |family, changes| {
        parse(&without(with(family, changes), "rope_theta")).map(|config| config.rope.theta)
    };
    // Llama 1 and 2, also with longer contexts; Mistral 7B v0.1; Phi-3.
    let linear =
        json!({"max_position_embeddings": 16384, "rope_scaling": {"type": "linear", "factor": 4}});
    let yarn = json!({"type": "yarn", "factor": 16, "original_max_position_embeddings": 4096});
    let yarn = json!({"max_position_embeddings": 65536, "rope_scaling": yarn});
    for (family, changes) in [
        ("llama", json!({"max_position_embeddings": 4096})),
        (
            "llama",
            json!({"max_position_embeddings": 4096, "rope_parameters": {"rope_type": "default"}}),
        ),
        ("llama", linear),
        ("llama", yarn),
        ("mistral", json!({"max_position_embeddings": 32768, "sliding_window": 4096})),
        ("phi3", json!({"max_position_embeddings": 4096})),
    ] {
        assert_eq!(theta(family, changes.clone()), Ok(10000.0), "{family} {changes}");
    }
    // CodeLlama, Llama 3, Mistral v0.3, Qwen, Phi-4.
    let llama3 = json!({"rope_type": "llama3", "factor": 8, "low_freq_factor": 1,
        "high_freq_factor": 4,
        "original_max_position_embeddings": 128});
    for (family, class, changes) in [
        ("llama", "LlamaForCausalLM", json!({"max_position_embeddings": 16384})),
        ("llama", "LlamaForCausalLM", json!({"rope_scaling": llama3.clone()})),
        ("llama", "LlamaForCausalLM", json!({"rope_parameters": llama3})),
        ("mistral", "MistralForCausalLM", json!({"sliding_window": null})),
        ("qwen2", "Qwen2ForCausalLM", json!({})),
        ("qwen2", "Qwen2ForCausalLM", json!({"rope_theta": null})),
        ("qwen3", "Qwen3ForCausalLM", json!({"rope_parameters": {"rope_type": "default"}})),
        ("phi3", "Phi3ForCausalLM", json!({"max_position_embeddings": 16384})),
    ] {
        let message = format!(
            "m/config.json: `rope_theta` is missing, expected a number: 10000, HuggingFace's \
             default, is not the base of such {class} checkpoints"
        );
        assert_eq!(theta(family, changes.clone()), Err(message), "{family} {changes}");
    }
}

#[test]
fn rope_parameters_may_be_nested_per_layer_type() {
    let default = |theta: f64| json!({"rope_type": "default", "rope_theta": theta});
    let windowed = json!({"use_sliding_window": true, "sliding_window": 8, "max_window_layers": 2});
    let nested = |full: Value, sliding: Value| {
        let mut config = with("qwen3", windowed.clone());
        config["rope_parameters"] = json!({"full_attention": full, "sliding_attention": sliding});
        without(config, "rope_theta")
    };
    assert_eq!(parse(&nested(default(5e5), default(5e5))).unwrap().rope.theta, 5e5);
    assert_eq!(
        parse(&nested(default(5e5), default(1e4))).unwrap_err(),
        "m/config.json: `rope_parameters.sliding_attention` differs from that of full_attention, \
         which is not supported: all layers share one rotary embedding"
    );
    assert_eq!(
        parse(&nested(default(5e5), Value::Null)).unwrap_err(),
        "m/config.json: `rope_parameters.sliding_attention` is missing although the model has \
         layers of this type"
    );
    // A layer type that does not occur has no effect.
    let mut unused = nested(default(5e5), default(1e4));
    unused["use_sliding_window"] = json!(false);
    assert_eq!(parse(&unused).unwrap().rope.theta, 5e5);
}

/// If both layouts are present, the newer one is used.
#[test]
fn rope_parameters_win_over_rope_scaling() {
    let config = with(
        "llama",
        json!({
            "rope_scaling": {"type": "linear", "factor": 2.0},
            "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 7e5},
        }),
    );
    let rope = parse(&config).unwrap().rope;
    assert_eq!((rope.theta, rope.kind), (7e5, RopeKind::Linear { factor: 4.0 }));
}

#[test]
fn an_absent_architecture_falls_back_to_the_model_type() {
    for family in ["llama", "mistral", "qwen2", "qwen3", "phi3"] {
        let named = parse(&base(family)).unwrap();
        assert_eq!(parse(&without(base(family), "architectures")).unwrap(), named);
        assert_eq!(parse(&without(base(family), "model_type")).unwrap(), named);
        let stem = named.architecture.to_string().replace("ForCausalLM", "Model");
        assert_eq!(parse(&with(family, json!({"architectures": [stem]}))).unwrap(), named);
    }
}

#[test]
fn generation_config_takes_precedence_and_is_merged_with_the_config() {
    let read = |config: Value, generation: Value| {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        std::fs::write(dir.path().join("generation_config.json"), generation.to_string()).unwrap();
        let config = ModelConfig::from_dir(dir.path()).unwrap();
        (config.bos_token_id, config.eos_token_ids, config.pad_token_id)
    };
    let config =
        with("llama", json!({"eos_token_id": [2, 9], "bos_token_id": 1, "pad_token_id": -1}));
    let generation = json!({"eos_token_id": [7, 9], "bos_token_id": 5});
    assert_eq!(read(config.clone(), generation), (Some(5), vec![7, 9, 2], None));
    assert_eq!(read(config, json!({"eos_token_id": 2})), (Some(1), vec![2, 9], None));
    // The class's default eos, 2, applies only if neither file names one.
    assert_eq!(read(base("llama"), json!({"eos_token_id": 7})), (Some(1), vec![7], None));
    assert_eq!(read(base("llama"), json!({})), (Some(1), vec![2], None));
}

#[test]
fn every_refusal_names_file_field_and_expectation() {
    let llama = |changes| with("llama", changes);
    let supported = "supported are LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, \
                     Qwen3ForCausalLM, Phi3ForCausalLM";
    let cases: Vec<(Value, &str, String)> =
        vec![
        (llama(json!({"architectures": ["GPT2LMHeadModel"]})), "architectures",
         format!("is `GPT2LMHeadModel`, which is not supported; {supported}")),
        (llama(json!({"architectures": ["LlamaForSequenceClassification"]})), "architectures",
         format!("is `LlamaForSequenceClassification`, which is not supported; {supported}")),
        (llama(json!({"architectures": "LlamaForCausalLM"})), "architectures",
         r#"is "LlamaForCausalLM", expected a list of strings"#.into()),
        (without(llama(json!({"model_type": "gpt2"})), "architectures"), "model_type",
         format!("is `gpt2`, which is not supported; {supported}")),
        (llama(json!({"model_type": "qwen2"})), "model_type",
         "is `qwen2`, expected `llama` as `architectures` names LlamaForCausalLM".into()),
        (json!({}), "architectures", "is missing, expected the name of a model class".into()),
        (llama(json!({"num_hidden_layers": 0})), "num_hidden_layers",
         "is 0, expected a whole number from 1 to 1000".into()),
        (llama(json!({"num_hidden_layers": 1e9})), "num_hidden_layers",
         "is 1000000000.0, expected a whole number from 1 to 1000".into()),
        (llama(json!({"hidden_size": 0})), "hidden_size",
         "is 0, expected a whole number from 1 to 1048576".into()),
        (llama(json!({"hidden_size": -64})), "hidden_size",
         "is -64, expected a whole number from 1 to 1048576".into()),
        (llama(json!({"hidden_size": "64"})), "hidden_size",
         r#"is "64", expected a whole number from 1 to 1048576"#.into()),
        (llama(json!({"intermediate_size": 0})), "intermediate_size",
         "is 0, expected a whole number from 1 to 1048576".into()),
        (llama(json!({"num_attention_heads": 0})), "num_attention_heads",
         "is 0, expected a whole number from 1 to 16384".into()),
        (llama(json!({"num_key_value_heads": 0})), "num_key_value_heads",
         "is 0, expected a whole number from 1 to 16384".into()),
        (llama(json!({"num_key_value_heads": 3})), "num_key_value_heads",
         "is 3, expected a divisor of num_attention_heads, 4".into()),
        (without(base("qwen2"), "num_key_value_heads"), "num_key_value_heads",
         "is absent and so 32, expected a divisor of num_attention_heads, 4".into()),
        (llama(json!({"head_dim": 0})), "head_dim",
         "is 0, expected a whole number from 1 to 16384".into()),
        (llama(json!({"head_dim": 15})), "head_dim",
         "makes the rotary width 15, expected an even number above 0".into()),
        (with("phi3", json!({"head_dim": 15, "rope_parameters": {"partial_rotary_factor": 1.0}})),
         "head_dim",
         "makes the rotary width 15, expected an even number above 0".into()),
        (llama(json!({"head_dim": null, "hidden_size": 66})), "hidden_size",
         "is 66, expected a multiple of num_attention_heads, 4, as there is no head_dim".into()),
        (llama(json!({"vocab_size": 18446744073709551615u64})), "vocab_size",
         "is 18446744073709551615, expected a whole number from 1 to 16777216".into()),
        (llama(json!({"max_position_embeddings": 0})), "max_position_embeddings",
         "is 0, expected a whole number from 1 to 16777216".into()),
        (llama(json!({"rms_norm_eps": -1e-6})), "rms_norm_eps",
         "is -1e-6, expected a number from 0 to 1".into()),
        (llama(json!({"hidden_act": "gelu"})), "hidden_act", "is `gelu`, expected `silu`".into()),
        (llama(json!({"tie_word_embeddings": 1})), "tie_word_embeddings",
         "is 1, expected true or false".into()),
        (llama(json!({"quantization_config": {"quant_method": "gptq"}})), "quantization_config",
         "is present; quantised checkpoints are not supported, expected BF16, F16 or F32 \
          weights".into()),
        (llama(json!({"num_local_experts": 8})), "num_local_experts",
         "is present; mixtures of experts are not supported, expected a dense model".into()),
        (with("phi3", json!({"attention_bias": true})), "attention_bias",
         "is true, but Phi3ForCausalLM has no such bias".into()),
        (with("phi3", json!({"lm_head_bias": true})), "lm_head_bias",
         "is true, but Phi3ForCausalLM has no such bias".into()),
        (llama(json!({"eos_token_id": "</s>"})), "eos_token_id",
         r#"is "</s>", expected a token id or a list of token ids"#.into()),
        (llama(json!({"eos_token_id": vec![0; 1001]})), "eos_token_id",
         "lists 1001 token ids, expected at most 1000".into()),
        (llama(json!({"bos_token_id": 4294967296u64})), "bos_token_id",
         "is 4294967296, expected a token id".into()),
        // windows
        (with("mistral", json!({"sliding_window": 0})), "sliding_window",
         "is 0, expected a whole number from 1 to 2147483648".into()),
        (with("mistral", json!({"sliding_window": 8, "layer_types": vec!["full_attention"; 4]})),
         "layer_types",
         "is full_attention for layer 0, where MistralForCausalLM has a sliding window".into()),
        (llama(json!({"layer_types": vec!["sliding_attention"; 4]})), "layer_types",
         "is sliding_attention for layer 0, where LlamaForCausalLM has full attention".into()),
        (with("qwen3", json!({"layer_types": vec!["full_attention"; 3]})), "layer_types",
         "has 3 entries, expected one for each of the 4 layers".into()),
        (with("qwen3", json!({"layer_types": vec!["linear_attention"; 4]})), "layer_types",
         "holds `linear_attention`, expected full_attention or sliding_attention".into()),
        (with("qwen3", json!({"layer_types": vec!["sliding_attention"; 4]})), "layer_types",
         "names sliding_attention, but `use_sliding_window` and `sliding_window` enable no \
          window".into()),
        // rope
        (llama(json!({"rope_theta": 0})), "rope_theta", "is 0, expected a number above 1".into()),
        (llama(json!({"rope_theta": 1e300})), "rope_theta",
         "is 1e+300, expected a number above 1".into()),
        (llama(json!({"rope_scaling": "linear"})), "rope_scaling",
         r#"is "linear", expected an object"#.into()),
        (llama(json!({"rope_scaling": {"type": "mrope", "factor": 2}})), "rope_scaling.type",
         "is `mrope`, which is not supported; supported are default, linear, dynamic, llama3, \
          yarn and longrope (su)".into()),
        (llama(json!({"rope_parameters": {"rope_type": "spiral"}})), "rope_parameters.rope_type",
         "is `spiral`, which is not supported; supported are default, linear, dynamic, llama3, \
          yarn and longrope (su)".into()),
        (llama(json!({"rope_scaling": {"factor": 2}})), "rope_scaling.rope_type",
         "is missing, expected the name of a rope type".into()),
        (llama(json!({"rope_scaling": {"type": "linear"}})), "rope_scaling.factor",
         "is missing, expected a number above 0".into()),
        (llama(json!({"rope_scaling": {"type": "linear", "factor": -2.0}})), "rope_scaling.factor",
         "is -2.0, expected a number above 0".into()),
        (llama(json!({"head_dim": 2, "rope_scaling": {"type": "dynamic", "factor": 2.0}})),
         "rope_scaling.type",
         "is `dynamic`, which needs a rotary width above 2".into()),
        (llama(json!({"rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4,
            "high_freq_factor": 4}})),
         "rope_scaling.high_freq_factor", "is 4, expected more than low_freq_factor, 4".into()),
        (llama(json!({"rope_scaling": {"type": "yarn"}})), "rope_scaling.factor",
         "is missing, expected a number above 0".into()),
        (llama(json!({"rope_scaling": {"type": "yarn", "factor": 4,
            "original_max_position_embeddings": 1}})),
         "rope_scaling.original_max_position_embeddings",
         "is 1, expected a whole number from 2 to 16777216".into()),
        (llama(json!({"rope_scaling": {"type": "yarn", "factor": 4, "attention_factor": -1}})),
         "rope_scaling.attention_factor", "is -1, expected a number of at least 0".into()),
        (llama(json!({"rope_scaling": {"type": "longrope", "long_factor": [1, 1]}})),
         "rope_scaling.short_factor",
         "is missing, expected a list of 8 numbers".into()),
        (llama(json!({"rope_scaling": {"type": "su", "short_factor": [1, 1],
            "long_factor": [1, 1]}})),
         "rope_scaling.short_factor", "has 2 numbers, expected 8, half the rotary width".into()),
        (llama(json!({"rope_scaling": {"type": "su", "short_factor": vec![0; 8],
            "long_factor": [1, 1]}})),
         "rope_scaling.short_factor", "holds 0, expected numbers above 0".into()),
        (llama(json!({"partial_rotary_factor": 0.5})), "partial_rotary_factor",
         "is 0.5, expected 1: LlamaForCausalLM rotates whole heads".into()),
        (with("phi3", json!({"partial_rotary_factor": 0.0})), "partial_rotary_factor",
         "is 0.0, expected a number above 0 and at most 1".into()),
        (with("phi3", json!({"partial_rotary_factor": 0.2})), "partial_rotary_factor",
         "makes the rotary width 3, expected an even number above 0".into()),
        (with("phi3", json!({"rope_scaling": {"type": "linear", "factor": 2}})),
         "rope_scaling.type",
         "is `linear`, expected default or longrope for Phi3ForCausalLM".into()),
    ];
    for (config, field, problem) in cases {
        assert_eq!(parse(&config), Err(format!("m/config.json: `{field}` {problem}")), "{config}");
    }
}

#[test]
fn files_that_are_not_configs_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    let message = |bytes: Option<&[u8]>| {
        if let Some(bytes) = bytes {
            std::fs::write(&path, bytes).unwrap();
        }
        let error = ModelConfig::from_dir(dir.path()).unwrap_err().to_string();
        error.strip_prefix(&format!("{}: ", path.display())).unwrap().to_owned()
    };
    assert_eq!(message(None), "does not exist, expected the config of a HuggingFace checkpoint");
    assert_eq!(message(Some(b"")), "is not JSON: EOF while parsing a value at line 1 column 0");
    assert_eq!(message(Some(b"[1]")), "is a list, expected a JSON object");
    // A byte order mark is skipped.
    assert_eq!(message(Some(b"\xef\xbb\xbf[1]")), "is a list, expected a JSON object");
    assert_eq!(
        message(Some(b"{\"rms_norm_eps\": NaN}")),
        "is not JSON: expected value at line 1 column 18"
    );
    assert_eq!(
        message(Some(b"{\"rope_theta\": 1e999}")),
        "is not JSON: number out of range at line 1 column 20"
    );
    assert_eq!(message(Some(b"{\"a\": \"\xff\"}")), "is not UTF-8 text (byte 7)");
    let deep = "[".repeat(100_000);
    assert_eq!(
        message(Some(deep.as_bytes())),
        "is not JSON: recursion limit exceeded at line 1 column 128"
    );

    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    assert_eq!(message(None), "is not a regular file");
}

/// The displayed remarks of a config.
fn remarks(config: &Value) -> Vec<String> {
    parse(config).unwrap().remarks.iter().map(ToString::to_string).collect()
}

#[test]
fn configs_without_ignored_fields_have_no_remarks() {
    for dir in goldens() {
        for name in ["config.json", "config.v5.json"] {
            let text = std::fs::read_to_string(dir.join(name)).unwrap();
            let config = ModelConfig::parse(Path::new(name), &text).unwrap();
            assert_eq!(config.remarks, [], "{}", dir.display());
        }
    }
    let path = crate_file("tests/data/huggingface/configs.json");
    let cases: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    for case in cases["cases"].as_array().unwrap() {
        // Llama's class ignores windows.
        let expected = usize::from(
            case["config"]["model_type"] == "llama" && !case["config"]["sliding_window"].is_null(),
        );
        assert_eq!(remarks(&case["config"]).len(), expected, "{}", case["name"]);
    }
}

/// Rotary fields that the rope type does not use have no effect and cause a remark.
#[test]
fn rope_fields_without_effect_are_named() {
    let yarn = |more: Value| {
        let mut rope =
            json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64});
        rope.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        remarks(&with("qwen3", json!({"rope_scaling": rope})))
    };
    let expected = |names: &str, has: &str, it: &str, kind: &str| {
        vec![format!(
            "m/config.json: {names} {has} no effect: the rope type {kind} does not use {it}, here \
             or in transformers"
        )]
    };
    assert_eq!(yarn(json!({})), [""; 0]);
    assert_eq!(
        yarn(json!({"attn_factor": 0.878})),
        expected("`rope_scaling.attn_factor`", "has", "it", "yarn")
    );
    assert_eq!(
        yarn(
            json!({"attn_factor": 0.8, "beta_fats": 32, "low_freq_factor": null, "finetuned": true})
        ),
        expected("`rope_scaling.attn_factor`, `rope_scaling.beta_fats`", "have", "them", "yarn")
    );
    // These two have an effect only together, and only without attention_factor.
    assert_eq!(yarn(json!({"mscale": 0.7, "mscale_all_dim": 0.8})), [""; 0]);
    assert_eq!(
        yarn(json!({"mscale": 0.7})),
        expected("`rope_scaling.mscale`", "has", "it", "yarn")
    );
    assert_eq!(
        yarn(json!({"mscale": 0.7, "mscale_all_dim": 0.8, "attention_factor": 1.0})),
        expected("`rope_scaling.mscale`, `rope_scaling.mscale_all_dim`", "have", "them", "yarn")
    );
    // Both names of the type.
    assert_eq!(yarn(json!({"type": "yarn"})), [""; 0]);
    assert_eq!(
        yarn(json!({"type": "linear"})),
        expected("`rope_scaling.type`", "has", "it", "yarn")
    );

    let rope = json!({"rope_type": "default", "rope_theta": 1e6, "factor": 8.0});
    assert_eq!(
        remarks(&with("llama", json!({"rope_parameters": rope}))),
        expected("`rope_parameters.factor`", "has", "it", "default")
    );
    let nested = json!({"full_attention": {"rope_type": "linear", "factor": 2.0, "mscale": 2}});
    assert_eq!(
        remarks(&with("qwen2", json!({"rope_parameters": nested}))),
        expected("`rope_parameters.full_attention.mscale`", "has", "it", "linear")
    );
    // Phi3 reads the trained length from the top level, or uses its default.
    let phi3 = |nested: u32| {
        let factors = vec![1.0; 8];
        let rope = json!({"rope_type": "longrope", "short_factor": factors, "long_factor": factors,
            "original_max_position_embeddings": nested});
        remarks(&with(
            "phi3",
            json!({"rope_parameters": rope, "original_max_position_embeddings": 64}),
        ))
    };
    assert_eq!(phi3(64), [""; 0]);
    let name = "`rope_parameters.original_max_position_embeddings`";
    assert_eq!(phi3(128), expected(name, "has", "it", "longrope"));
    // Untrusted names are shortened.
    let many: serde_json::Map<String, Value> =
        (0..100).map(|i| (format!("{i}\n{}", "x".repeat(10_000)), json!(1))).collect();
    let [text] = &yarn(json!(many))[..] else { panic!() };
    assert!(text.contains(" and 95 more have no effect") && text.len() < 2000, "{text}");
    assert!(!text.contains(char::is_control));
}

#[test]
fn two_layouts_that_differ_cause_a_remark() {
    let both = |factor: f64| {
        remarks(&with(
            "llama",
            json!({
                "rope_scaling": {"type": "linear", "factor": factor},
                "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e6},
            }),
        ))
    };
    assert_eq!(both(4.0), [""; 0]);
    assert!(both(2.0)[0].contains("holds both `rope_parameters` and `rope_scaling`"));
}

/// Fields of other families that would change the computation, which these classes do not read.
#[test]
fn fields_of_other_families_are_named() {
    let remarks_of = |changes: Value| remarks(&with("llama", changes));
    assert_eq!(
        remarks_of(
            json!({"attn_logit_softcapping": 50.0, "logit_scale": 0.0625, "qk_layernorm": true})
        ),
        ["m/config.json: `attn_logit_softcapping` (50.0), `logit_scale` (0.0625), \
             `qk_layernorm` (true) have no effect: LlamaForCausalLM does not read them, here or in \
             transformers"]
    );
    assert_eq!(remarks_of(json!({"attention_multiplier": 0.0078125})).len(), 1);
    assert_eq!(remarks_of(json!({"no_rope_layers": [1, 1, 1, 0]})).len(), 1);
    assert!(
        remarks_of(json!({"sliding_window": 64}))[0]
            .contains("`sliding_window` (64) has no effect")
    );
    // Values without effect.
    let neutral = json!({"attn_logit_softcapping": null, "logit_scale": 1, "qk_layernorm": false,
        "attention_multiplier": 0.25, "embedding_multiplier": 1.0, "no_rope_layers": [],
        "clip_qkv": null, "sliding_window": null});
    assert_eq!(remarks_of(neutral), [""; 0]);
}

#[test]
fn token_ids_in_the_spellings_of_published_configs() {
    let ids = |changes: Value| {
        let config = parse(&with("llama", changes)).unwrap();
        (config.bos_token_id, config.eos_token_ids, config.remarks.len())
    };
    assert_eq!(ids(json!({"eos_token_id": -1})), (Some(1), vec![], 0));
    assert_eq!(ids(json!({"eos_token_id": [-1, 7]})), (Some(1), vec![7], 0));
    assert_eq!(ids(json!({"bos_token_id": [5], "eos_token_id": 3})), (Some(5), vec![3], 0));
    assert_eq!(ids(json!({"bos_token_id": [], "eos_token_id": 3})), (None, vec![3], 0));
    assert_eq!(ids(json!({"bos_token_id": [5, 6], "eos_token_id": 3})), (Some(5), vec![3], 1));
    assert_eq!(
        remarks(&with("llama", json!({"bos_token_id": [5, 6]}))),
        ["m/config.json: `bos_token_id` lists 2 tokens; the first, 5, is used"]
    );
    let message = parse(&with("llama", json!({"bos_token_id": ["<s>"]}))).unwrap_err();
    assert_eq!(message, "m/config.json: `bos_token_id` is a list, expected a token id");
}

/// transformers loads by `model_type`, so an unknown class is run as that of its `model_type`.
#[test]
fn an_unknown_causal_class_is_run_as_that_of_its_model_type() {
    for (family, class) in [
        ("llama", "LLaMAForCausalLM"),
        ("mistral", "MyMistralForCausalLM"),
        ("phi3", "Phi3SmallForCausalLM"),
    ] {
        let config = parse(&with(family, json!({"architectures": [class]}))).unwrap();
        let named = parse(&base(family)).unwrap();
        assert_eq!(config.architecture, named.architecture);
        let [remark] = &config.remarks[..] else { panic!("{:?}", config.remarks) };
        assert_eq!(remark.kind, "unknown-class");
        let run_as = format!("names `{class}`, and the model is run as {}", named.architecture);
        assert!(remark.text.contains(&run_as), "{remark}");
    }
    for class in
        ["LlamaForTokenClassification", "LlamaForQuestionAnswering", "LlamaRewardModel", ""]
    {
        let message = parse(&with("llama", json!({"architectures": [class]}))).unwrap_err();
        assert!(message.contains("is not supported"), "{message}");
    }
    let unknown = json!({"architectures": ["NewForCausalLM"], "model_type": "new"});
    assert!(parse(&with("llama", unknown)).unwrap_err().contains("`NewForCausalLM`, which is not"));
}

/// Notepad and PowerShell write a byte order mark, and UTF-16.
#[test]
fn configs_may_begin_with_a_byte_order_mark() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    let text = base("llama").to_string();
    let read = |bytes: Vec<u8>| {
        std::fs::write(&path, bytes).unwrap();
        ModelConfig::from_dir(dir.path()).map_err(|error| error.to_string())
    };
    let utf16 = |bytes: fn(u16) -> [u8; 2]| {
        let marked = format!("\u{FEFF}{text}");
        marked.encode_utf16().flat_map(bytes).collect::<Vec<u8>>()
    };
    let plain = read(text.clone().into_bytes()).unwrap();
    assert_eq!(read(format!("\u{FEFF}{text}").into_bytes()).unwrap(), plain);
    assert_eq!(read(utf16(u16::to_le_bytes)).unwrap(), plain);
    assert_eq!(read(utf16(u16::to_be_bytes)).unwrap(), plain);
    let mut cut = utf16(u16::to_le_bytes);
    cut.pop();
    for bytes in [cut, vec![0xFF, 0xFE, 0x00, 0xD8]] {
        let message = read(bytes).unwrap_err();
        assert!(
            message.ends_with("begins like UTF-16 text, but is not; expected UTF-8"),
            "{message}"
        );
    }
}

#[test]
fn git_lfs_pointers_are_named() {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n";
    let dir = tempfile::tempdir().unwrap();
    for name in ["config.json", "generation_config.json", "adapter_config.json"] {
        std::fs::write(dir.path().join("config.json"), base("llama").to_string()).unwrap();
        std::fs::write(dir.path().join(name), pointer).unwrap();
        let message = ModelConfig::from_dir(dir.path()).unwrap_err().to_string();
        let expected =
            format!("{name}: is a Git LFS pointer, not the file itself; run `git lfs pull`");
        assert!(message.contains(&expected), "{message}");
        std::fs::remove_file(dir.path().join(name)).unwrap();
    }
    // `check_file` is also for other files. A longer file is not a pointer.
    let path = dir.path().join("traces.jsonl");
    check_file(&path).unwrap();
    std::fs::write(&path, pointer).unwrap();
    assert!(check_file(&path).unwrap_err().to_string().contains("is a Git LFS pointer"));
    std::fs::write(&path, pointer.repeat(50)).unwrap();
    check_file(&path).unwrap();
    check_file(dir.path()).unwrap();
}

#[cfg(unix)]
#[test]
fn dangling_links_are_named_even_if_the_file_is_optional() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["config.json", "generation_config.json", "adapter_config.json"] {
        std::fs::write(dir.path().join("config.json"), base("llama").to_string()).unwrap();
        let path = dir.path().join(name);
        let _ = std::fs::remove_file(&path);
        std::os::unix::fs::symlink("../../blobs/none", &path).unwrap();
        let message = ModelConfig::from_dir(dir.path()).unwrap_err().to_string();
        let expected = format!(
            "{name}: is a link to ../../blobs/none, which does not exist (an interrupted download?)"
        );
        assert!(message.ends_with(&expected), "{message}");
        assert!(check_file(&path).unwrap_err().to_string().ends_with(&expected));
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn adapters_are_named_alone_and_next_to_a_model() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    let adapter = r#"{"base_model_name_or_path": "org/base", "peft_type": "LORA", "r": 8}"#;
    let named = "adapter_config.json: is a LoRA adapter (r 8) of `org/base`";
    write("adapter_config.json", adapter);
    let message = ModelConfig::from_dir(dir.path()).unwrap_err().to_string();
    assert!(message.contains(&format!("{named}, not a model; merge it")), "{message}");
    let message = Checkpoint::open(dir.path()).unwrap_err().to_string();
    assert!(message.contains(&format!("{named}, not a model; merge it")), "{message}");

    write("config.json", &base("llama").to_string());
    let remark = |adapter: &str| {
        write("adapter_config.json", adapter);
        let config = ModelConfig::from_dir(dir.path()).unwrap();
        let [remark] = &config.remarks[..] else { panic!("{:?}", config.remarks) };
        assert_eq!(remark.kind, "adapter");
        remark.to_string()
    };
    assert!(remark(adapter).contains(&format!("{named}, which is not applied")));
    for odd in ["", "[]", r#"{"r": "8", "peft_type": 3, "base_model_name_or_path": ""}"#] {
        assert!(remark(odd).contains("adapter_config.json: is an adapter, which is not"), "{odd}");
    }
}

#[test]
fn recommended_sampling_is_reported() {
    let recommendation = |generation: Value| {
        let path = Path::new("config.json");
        let (config, generation) = (base("llama").to_string(), generation.to_string());
        let config = ModelConfig::parse_with_generation(path, &config, path, &generation).unwrap();
        assert_eq!(config.remarks, []);
        config.recommended_sampling.remark().map(|remark| {
            assert_eq!(
                (remark.kind.as_ref(), remark.about),
                ("sampling-recommended", About::Advice)
            );
            remark.to_string()
        })
    };
    assert_eq!(
        recommendation(json!({"do_sample": true, "temperature": 0.6, "top_p": 0.95, "top_k": 20}))
            .unwrap(),
        "generation_config.json recommends temperature 0.6, top-p 0.95, top-k 20; greedy decoding \
         is used: --sampling recommended applies the recommendation"
    );
    assert_eq!(
        recommendation(json!({"do_sample": true, "min_p": 0.05, "repetition_penalty": 1.05}))
            .unwrap(),
        "generation_config.json recommends temperature 1, min-p 0.05, repetition-penalty 1.05; \
         greedy decoding is used: --sampling recommended applies the recommendation"
    );
    assert_eq!(
        recommendation(
            json!({"do_sample": true, "typical_p": 0.9, "encoder_repetition_penalty": 1.5})
        )
        .unwrap(),
        "generation_config.json recommends temperature 1, encoder_repetition_penalty 1.5, \
         typical_p 0.9; greedy decoding is used: --sampling recommended applies the \
         recommendation; there is no option for encoder_repetition_penalty 1.5 and typical_p 0.9"
    );
    // Fields that affect greedy decoding too.
    assert_eq!(
        recommendation(json!({"repetition_penalty": 1.1, "min_p": 0.2})).unwrap(),
        "generation_config.json recommends repetition-penalty 1.1; greedy decoding is used: \
         --sampling recommended applies the recommendation"
    );
    assert_eq!(
        recommendation(json!({"no_repeat_ngram_size": 3})).unwrap(),
        "generation_config.json recommends no_repeat_ngram_size 3; greedy decoding is used: there \
         is no option for no_repeat_ngram_size 3"
    );
    // Greedy, as transformers is without do_sample; and values without effect.
    for quiet in [
        json!({}),
        json!({"do_sample": false, "temperature": 0.6, "top_p": 0.9, "min_p": 0.1}),
        json!({"temperature": 0.6, "top_k": 50, "repetition_penalty": 1.0}),
        json!({"do_sample": "yes", "repetition_penalty": "much"}),
    ] {
        assert_eq!(recommendation(quiet), None);
    }
}

/// JSON values of the types in configs, valid and not.
fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (0u64..70).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        (1e-3..20.0f64).prop_map(Value::from),
        prop::sample::select(
            &["yarn", "longrope", "su", "dynamic", "llama3", "linear", "silu", "full_attention"][..]
        )
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 16, 8, |inner| prop::collection::vec(inner, 0..9).prop_map(Value::from))
}

const KEYS: &[&str] = &[
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "rms_norm_eps",
    "rope_theta",
    "max_position_embeddings",
    "sliding_window",
    "use_sliding_window",
    "max_window_layers",
    "layer_types",
    "partial_rotary_factor",
    "eos_token_id",
    "original_max_position_embeddings",
    "architectures",
    "model_type",
    "tie_word_embeddings",
];
const ROPE_KEYS: &[&str] = &[
    "type",
    "rope_type",
    "factor",
    "rope_theta",
    "low_freq_factor",
    "high_freq_factor",
    "attention_factor",
    "original_max_position_embeddings",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "truncate",
    "short_factor",
    "long_factor",
    "partial_rotary_factor",
    "full_attention",
];

proptest! {
    /// With any values parsing returns a config or an error, and a config's rope has finite
    /// numbers.
    #[test]
    fn no_field_can_break_the_parser(
        family in prop::sample::select(&["llama", "mistral", "qwen2", "qwen3", "phi3"][..]),
        kind in prop::sample::select(&["linear", "dynamic", "llama3", "yarn", "longrope"][..]),
        top in prop::collection::vec((prop::sample::select(KEYS), any_value()), 0..3),
        nested in prop::collection::vec((prop::sample::select(ROPE_KEYS), any_value()), 0..5),
    ) {
        let mut rope = json!({"rope_type": kind, "factor": 4.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "short_factor": [1, 1, 1, 1, 1, 1, 1, 1], "long_factor": [1, 2, 3, 4, 5, 6, 7, 8]});
        for (key, value) in nested {
            rope[key] = value;
        }
        let mut config = with(family, json!({"rope_parameters": rope}));
        for (key, value) in top {
            config[key] = value;
        }
        if let Ok(config) = parse(&config) {
            for length in [1, 100, 1 << 20] {
                let frequencies = config.rope.inv_freq(length);
                prop_assert_eq!(frequencies.inv_freq.len(), config.rope.rotary_dim / 2);
                prop_assert!(frequencies.inv_freq.iter().all(|f| f.is_finite()), "{:?}",
                    config.rope);
                prop_assert!(frequencies.attention_scaling.is_finite());
            }
        }
    }

    /// Bytes of a real config, some of them overwritten.
    #[test]
    fn no_text_can_break_the_parser(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<char>()), 1..6),
    ) {
        let path = crate_file("../../tests/fixtures/golden/phi4-mini/config.json");
        let mut text: Vec<char> = std::fs::read_to_string(&path).unwrap().chars().collect();
        for (place, char) in edits {
            let place = place.index(text.len());
            text[place] = char;
        }
        let _ = ModelConfig::parse(&path, &text.into_iter().collect::<String>());
    }
}
