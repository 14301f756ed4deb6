//! LoRA adapters: merges compared with PEFT's (`tests/fixtures/adapters`), and errors.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use common::{cpu, fixture, relative_error};
use fathom_backend::Precision;
use fathom_model::{
    AdapterConfig, Checkpoint, LogitRows, ModelConfig, SequenceOptions, Step, Transformer,
};
use proptest::prelude::*;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

/// The token ids of `generate.py`.
const IDS: [u32; 8] = [1, 17, 5, 42, 63, 8, 8, 30];
const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// Every family and its adapters.
const ADAPTERS: [(&str, &[&str]); 5] = [
    ("llama", &["plain", "patterns", "embeddings", "saved"]),
    ("mistral", &["all-linear"]),
    ("qwen2", &["bias", "lora-bias", "tied-embedding", "tied-head", "tied-both", "tied-saved"]),
    ("qwen3", &["excluded"]),
    ("phi3", &["fused"]),
];

fn adapters(path: &str) -> PathBuf {
    fixture("adapters").join(path)
}

/// Type, shape and bytes of every tensor of a file.
type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn tensors(path: &Path) -> Tensors {
    let bytes = fs::read(path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap().tensors();
    let tensor = |(name, view): (String, safetensors::tensor::TensorView<'_>)| {
        (name, (view.dtype(), view.shape().to_vec(), view.data().to_vec()))
    };
    tensors.into_iter().map(tensor).collect()
}

fn floats(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    match dtype {
        Dtype::F32 => bytes.as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect(),
        Dtype::BF16 => {
            let float = |x: &[u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(*x)) << 16);
            bytes.as_chunks().0.iter().map(float).collect()
        }
        other => panic!("{other:?}"),
    }
}

fn open(base: &Path, adapter: &Path) -> Result<Checkpoint, String> {
    let config = ModelConfig::from_dir(base).unwrap();
    Checkpoint::open_adapted(base, Some(adapter), &config).map_err(|error| error.to_string())
}

fn logits(base: &Path, adapter: Option<&Path>) -> Vec<f32> {
    let cpu = cpu(Precision::F32, 2, None);
    let model = Transformer::load_adapted(base, adapter, cpu, &mut |_, _| {}).unwrap();
    let mut sequence = model.new_sequence(SequenceOptions::default());
    let step = Step { sequence: &mut sequence, tokens: &IDS, logits: LogitRows::All };
    let logits = model.forward(&mut [step], None).unwrap();
    logits.step(model.backend(), 0).unwrap()
}

#[test]
fn merged_tensors_have_the_bits_of_peft() {
    for (family, names) in ADAPTERS {
        for precision in ["f32", "bf16"] {
            let base = adapters(family).join(precision);
            let config = ModelConfig::from_dir(&base).unwrap();
            let stored = tensors(&base.join("model.safetensors"));
            for name in names {
                let what = format!("{family}/{name} {precision}");
                let checkpoint = open(&base, &adapters(family).join(name)).unwrap();
                let merged =
                    adapters(family).join(name).join(format!("merged.{precision}.safetensors"));
                let mut expected = stored.clone();
                let changed = tensors(&merged);
                expected.extend(changed.into_iter().filter(|(name, _)| name != "logits"));
                let tied = checkpoint.ties_word_embeddings(&config).unwrap();
                if tied {
                    assert_eq!(expected.contains_key(HEAD), name.starts_with("tied"), "{what}");
                    let head = expected.remove(HEAD);
                    assert!(head.is_none_or(|head| head == expected[EMBEDDING]), "{what}");
                }
                for (tensor, (dtype, shape, bytes)) in expected {
                    if let [rows, columns] = shape[..] {
                        let matrix = checkpoint.matrix(&tensor, rows, columns).unwrap();
                        assert!(matrix.view().bytes == bytes, "{what} {tensor}");
                    } else {
                        let vector = checkpoint.vector(&tensor, shape[0]).unwrap();
                        assert_eq!(vector, floats(dtype, &bytes), "{what} {tensor}");
                    }
                }
            }
        }
    }
}

#[test]
fn logits_are_those_of_the_merged_model() {
    for (family, names) in ADAPTERS {
        for precision in ["f32", "bf16"] {
            let base = adapters(family).join(precision);
            let of_base = logits(&base, None);
            for name in names {
                let what = format!("{family}/{name} {precision}");
                let dir = adapters(family).join(name);
                let ours = logits(&base, Some(&dir));
                let merged = tensors(&dir.join(format!("merged.{precision}.safetensors")));
                let (dtype, shape, bytes) = &merged["logits"];
                assert_eq!(shape, &[IDS.len(), 64], "{what}");
                let expected = floats(*dtype, bytes);
                let error = relative_error(&ours, &expected);
                assert!(error <= 1e-6, "{what}: {error:.2e}");
                assert!(relative_error(&of_base, &expected) > 1e-2, "{what}: changes nothing");
            }
        }
    }
}

/// A copy of an adapter, for tests to damage.
struct Copy {
    dir: TempDir,
    base: PathBuf,
}

impl Copy {
    fn of(family: &str, name: &str) -> Copy {
        let copy = Copy { dir: tempfile::tempdir().unwrap(), base: adapters(family).join("f32") };
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            fs::copy(adapters(family).join(name).join(file), copy.path(file)).unwrap();
        }
        copy
    }

    fn plain() -> Copy {
        Copy::of("llama", "plain")
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    fn config(self, edit: impl FnOnce(&mut Map<String, Value>)) -> Copy {
        let path = self.path("adapter_config.json");
        let mut json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        edit(json.as_object_mut().unwrap());
        fs::write(path, json.to_string()).unwrap();
        self
    }

    fn set(self, field: &str, value: Value) -> Copy {
        self.config(|config| drop(config.insert(field.to_owned(), value)))
    }

    fn tensors(self, edit: impl FnOnce(&mut Tensors)) -> Copy {
        let path = self.path("adapter_model.safetensors");
        let mut all = tensors(&path);
        edit(&mut all);
        let views = all.iter().map(|(name, (dtype, shape, bytes))| {
            let view = safetensors::tensor::TensorView::new(*dtype, shape.clone(), bytes);
            (name, view.unwrap())
        });
        fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
        self
    }

    /// Renames a tensor.
    fn rename(self, from: &str, to: &str) -> Copy {
        self.tensors(|tensors| {
            let tensor = tensors.remove(&named(from)).unwrap();
            tensors.insert(named(to), tensor);
        })
    }

    fn add(self, name: &str, shape: &[usize], value: f32) -> Copy {
        let bytes = value.to_le_bytes().repeat(shape.iter().product());
        self.tensors(|tensors| {
            tensors.insert(named(name), (Dtype::F32, shape.to_vec(), bytes));
        })
    }

    fn open(&self) -> Result<Checkpoint, String> {
        open(&self.base, self.dir.path())
    }

    #[track_caller]
    fn is_refused(&self, parts: &[&str]) {
        let message = self.open().unwrap_err();
        assert!(!message.contains('\n') && message.len() < 600, "{message}");
        for part in parts {
            assert!(message.contains(part), "`{part}` is not in: {message}");
        }
    }

    /// Remarks of the checkpoint with the adapter. The checkpoint alone has none.
    #[track_caller]
    fn remarks(&self) -> Vec<String> {
        let config = ModelConfig::from_dir(&self.base).unwrap();
        let remarks = self.open().unwrap().remarks(&config).unwrap();
        remarks.iter().map(|remark| format!("{}: {}", remark.kind, remark.text)).collect()
    }
}

fn named(name: &str) -> String {
    format!("base_model.model.{name}")
}

const Q: &str = "model.layers.0.self_attn.q_proj";

#[test]
fn valid_adapters_cause_a_remark_only_if_they_change_tied_matrices() {
    for (family, names) in ADAPTERS {
        for name in names {
            let remarks = Copy::of(family, name).remarks();
            let tied = remarks.iter().all(|remark| remark.starts_with("tied-adapter: "));
            assert_eq!(
                (remarks.len(), tied),
                (usize::from(name.starts_with("tied")), true),
                "{remarks:?}"
            );
        }
    }
}

#[test]
fn other_kinds_of_adapters_are_refused_by_name() {
    for (field, value, problem) in [
        ("peft_type", json!("LOHA"), "`peft_type` is LOHA, and only LORA"),
        ("peft_type", json!("IA3"), "`peft_type` is IA3"),
        ("peft_type", json!("PREFIX_TUNING"), "`peft_type` is PREFIX_TUNING"),
        ("peft_type", json!(null), "`peft_type` is missing"),
        ("use_dora", json!(true), "`use_dora` is true: DoRA"),
        ("use_qalora", json!(true), "`use_qalora` is true"),
        ("layer_replication", json!([[0, 1], [0, 1]]), "`layer_replication` is a list"),
        ("trainable_token_indices", json!({"embed_tokens": [1]}), "`trainable_token_indices`"),
        ("target_parameters", json!(["experts.down_proj"]), "`target_parameters` is a list"),
        ("init_lora_weights", json!("pissa_niter_4"), "may change the base's weights"),
        ("init_lora_weights", json!("loftq"), "`init_lora_weights` is \"loftq\""),
        ("r", json!(0), "`r` is 0, expected a whole number from 1 to 65536"),
        ("r", json!(-1), "`r` is -1"),
        ("r", json!(4.5), "`r` is 4.5"),
        ("r", json!("4"), "`r` is \"4\""),
        ("lora_alpha", json!("8"), "`lora_alpha` is \"8\", expected a number"),
        ("rank_pattern", json!({"q_proj": 0}), "`rank_pattern.q_proj` is 0"),
        ("rank_pattern", json!({"(": 4}), "`rank_pattern.(` is not a usable regular expression"),
        ("rank_pattern", json!([4]), "`rank_pattern` is a list, expected an object"),
        ("alpha_pattern", json!({"q_proj": null}), "`alpha_pattern.q_proj` is null"),
        ("target_modules", json!(null), "`target_modules` is missing"),
        ("target_modules", json!(7), "`target_modules` is 7"),
        ("target_modules", json!("a)|(b"), "`target_modules` is not a usable regular expression"),
        ("target_modules", json!(["c_attn"]), "`target_modules` names no module of this model"),
        ("exclude_modules", json!(".*"), "`target_modules` names no module of this model"),
        ("layers_to_transform", json!("all"), "`layers_to_transform` is not a list of layers"),
        ("layers_pattern", json!("layers"), "`layers_pattern` needs `layers_to_transform`"),
        ("modules_to_save", json!("lm_head"), "`modules_to_save` is \"lm_head\", expected a list"),
        ("modules_to_save", json!(["lm_head"]), "names `lm_head`, but the file does not hold its"),
        ("lora_bias", json!(true), "`lora_bias` is true, but the file has no bias for"),
        ("bias", json!("some"), "`bias` is \"some\", expected none, all or lora_only"),
    ] {
        let copy = Copy::plain().set(field, value);
        copy.is_refused(&["adapter_config.json: ", problem]);
    }
    let both = Copy::plain().set("target_modules", json!(".*q_proj"));
    both.set("layers_to_transform", json!([0]))
        .is_refused(&["needs `target_modules` to be a list"]);
}

#[test]
fn adapters_of_other_models_are_refused_by_tensor_and_shape() {
    let a = format!("{Q}.lora_A.weight");
    let named_a = format!("adapter_model.safetensors: tensor `base_model.model.{a}` ");
    Copy::plain().set("r", json!(8)).is_refused(&[&named_a, "has shape [4, 32], but", "[8, 32]"]);
    // The tensors of a wider model.
    Copy::plain().add(&a, &[4, 48], 0.5).is_refused(&[&named_a, "[4, 48]", "[4, 32]"]);
    Copy::plain().rename(&a, "model.layers.9.self_attn.q_proj.lora_A.weight").is_refused(&[
        "layers.9.",
        "does not have (LlamaForCausalLM, 2 layers)",
        "another model",
    ]);
    let phi = Copy { base: adapters("phi3/f32"), ..Copy::plain() };
    phi.is_refused(&["a module that this model does not have (Phi3ForCausalLM"]);
    Copy::plain()
        .tensors(|tensors| {
            let renamed = |(name, tensor): (String, _)| (name.replace("base_model.", ""), tensor);
            *tensors = std::mem::take(tensors).into_iter().map(renamed).collect();
        })
        .is_refused(&["does not begin with `base_model.model.`"]);
}

#[test]
fn inconsistent_tensors_are_refused() {
    let (a, b) = (format!("{Q}.lora_A.weight"), format!("{Q}.lora_B.weight"));
    let lone = Copy::plain().tensors(|tensors| drop(tensors.remove(&named(&b))));
    lone.is_refused(&[&a, "has no counterpart"]);
    let twice = Copy::plain().add(&format!("{Q}.lora_A.default.weight"), &[4, 32], 0.1);
    twice.is_refused(&["duplicates `", &a]);
    let two = Copy::plain().rename(&a, &format!("{Q}.lora_A.x.weight"));
    let two = two.rename(&b, &format!("{Q}.lora_B.y.weight"));
    two.is_refused(&["is of an adapter", "expected one adapter in a file"]);
    let dora = Copy::plain().add(&format!("{Q}.lora_magnitude_vector"), &[32], 1.0);
    dora.is_refused(&["lora_magnitude_vector` belongs to DoRA"]);
    let bias = Copy::plain().add(&format!("{Q}.lora_B.bias"), &[32], 1.0);
    bias.is_refused(&["is a bias, but `lora_bias` is not true"]);
    let bias = Copy::plain().add(&format!("{Q}.base_layer.bias"), &[32], 1.0);
    bias.is_refused(&["is a bias, but", "of this model has none"]);
    let embedding = Copy::plain().add(&format!("{Q}.lora_embedding_A"), &[4, 32], 1.0);
    embedding.is_refused(&["does not fit", "which is a linear layer"]);
}

#[test]
fn values_and_types_that_cannot_be_merged_are_refused() {
    let a = format!("{Q}.lora_A.weight");
    for value in [f32::NAN, f32::INFINITY] {
        let message = "is NaN or infinite at [0, 0], expected finite numbers";
        Copy::plain().add(&a, &[4, 32], value).is_refused(&[&a, message]);
    }
    let typed = Copy::plain().tensors(|tensors| {
        tensors.insert(named(&a), (Dtype::I32, vec![4, 32], vec![0; 4 * 32 * 4]));
    });
    typed.is_refused(&["is of dtype I32, expected BF16, F16 or F32"]);
    // Finite in the file, but not after the merge.
    let large = Copy::plain().set("lora_alpha", json!(1e6)).add(&a, &[4, 32], 3e38);
    let large = large.open().unwrap();
    let message = large.matrix(&format!("{Q}.weight"), 32, 32).err().unwrap().to_string();
    assert!(message.contains("with the adapter is too large for F32 at ["), "{message}");
}

#[test]
fn missing_and_invalid_files_are_named() {
    let copy = Copy::plain();
    let weights = copy.path("adapter_model.safetensors");
    fs::remove_file(&weights).unwrap();
    copy.is_refused(&["adapter_model.safetensors: does not exist, expected the adapter's tensors"]);
    fs::write(copy.path("adapter_model.bin"), "PK").unwrap();
    copy.is_refused(&["adapter_model.bin is not read; convert it with", "torch.load"]);
    fs::write(&weights, "version https://git-lfs.github.com/spec/v1\noid sha256:0\n").unwrap();
    copy.is_refused(&["adapter_model.safetensors: is a Git LFS pointer"]);
    fs::write(&weights, u64::MAX.to_le_bytes()).unwrap();
    copy.is_refused(&["declares a header of 18446744073709551615 bytes"]);
    fs::remove_file(&weights).unwrap();
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("nowhere", &weights).unwrap();
        copy.is_refused(&["adapter_model.safetensors: is a link to nowhere"]);
    }

    fs::write(copy.path("adapter_config.json"), "{").unwrap();
    copy.is_refused(&["adapter_config.json: is not JSON"]);
    fs::remove_file(copy.path("adapter_config.json")).unwrap();
    copy.is_refused(&["holds no adapter: there is no adapter_config.json"]);
    let model = open(&copy.base, &copy.base).unwrap_err();
    assert!(model.contains("holds no adapter") && model.contains("it holds a model"), "{model}");
    let nowhere = open(&copy.base, &copy.path("x")).unwrap_err();
    assert!(nowhere.contains("is not a directory"), "{nowhere}");
}

#[test]
fn tensors_that_peft_does_not_load_are_not_merged_and_cause_a_remark() {
    let view = |copy: &Copy| {
        let checkpoint = copy.open().unwrap();
        checkpoint.matrix(&format!("{Q}.weight"), 32, 32).unwrap().view().bytes.to_vec()
    };
    let (whole, base) = (view(&Copy::plain()), tensors(&adapters("llama/f32/model.safetensors")));
    let stored = &base[&format!("{Q}.weight")].2;
    assert_ne!(&whole, stored);

    // A module that the config does not target.
    let fewer = Copy::plain().set("target_modules", json!(["k_proj", "v_proj"]));
    assert_eq!(&view(&fewer), stored);
    let remarks = fewer.remarks();
    let [remark] = &remarks[..] else { panic!("{remarks:?}") };
    assert!(remark.starts_with("unused-adapter-tensors: holds `base_model.model."), "{remark}");
    assert!(remark.contains(" and 19 more, which PEFT does not load"), "{remark}");

    // A targeted module without tensors.
    let lacking = Copy::plain().tensors(|tensors| tensors.retain(|name, _| !name.contains(Q)));
    assert_eq!(&view(&lacking), stored);
    let remarks = lacking.remarks();
    let [remark] = &remarks[..] else { panic!("{remarks:?}") };
    assert!(remark.contains(&format!("targets `{Q}`, but the file holds no tensors")), "{remark}");

    // A weight next to a low-rank change of the same module.
    let own = Copy::plain().add(&format!("{Q}.weight"), &[32, 32], 0.0);
    assert_eq!((view(&own), own.remarks().len()), (whole.clone(), 1));

    // Unknown fields; those that are not set cause no remark.
    let odd = Copy::plain().set("some_new_switch", json!(false));
    assert_eq!(odd.remarks(), [""; 0]);
    let odd = odd.set("some_new_method", json!({"a": 1}));
    assert!(odd.remarks()[0].contains("an unknown field `some_new_method`: ignored"));
    assert_eq!(view(&odd), whole);
}

#[test]
fn names_may_contain_the_name_of_the_adapter() {
    let of = |copy: &Copy| {
        let checkpoint = copy.open().unwrap();
        checkpoint.matrix(&format!("{Q}.weight"), 32, 32).unwrap().view().bytes.to_vec()
    };
    let plain = Copy::plain();
    let with_name = Copy::plain().tensors(|tensors| {
        let renamed = |(name, tensor): (String, _)| {
            let name = name.replace("lora_A.", "lora_A.default.");
            (name.replace("lora_B.", "lora_B.default."), tensor)
        };
        *tensors = std::mem::take(tensors).into_iter().map(renamed).collect();
    });
    assert_eq!(of(&with_name), of(&plain));
}

#[test]
fn a_scale_of_zero_changes_only_the_fingerprint() {
    let base = adapters("llama/f32");
    let fingerprint = |copy: &Copy| copy.open().unwrap().fingerprint();
    let (plain, zero) = (Copy::plain(), Copy::plain().set("lora_alpha", json!(0)));
    assert_eq!(logits(&base, Some(zero.dir.path())), logits(&base, None));
    let all = [
        Checkpoint::open(&base).unwrap().fingerprint(),
        fingerprint(&plain),
        fingerprint(&zero),
        fingerprint(&Copy::plain().add(&format!("{Q}.lora_A.weight"), &[4, 32], 0.5)),
    ];
    for (i, one) in all.iter().enumerate() {
        assert!(one.starts_with("sampled-sha256:") && !all[..i].contains(one), "{all:?}");
    }
    let cpu = cpu(Precision::F32, 1, None);
    let loaded =
        Transformer::load_adapted(&base, Some(plain.dir.path()), cpu, &mut |_, _| {}).unwrap();
    assert_eq!(loaded.weights_fingerprint(), fingerprint(&Copy::plain()));
}

proptest! {
    /// A damaged config is parsed or refused, and matching its patterns terminates.
    #[test]
    fn damaged_configs_are_refused_or_read(
        seed in 0..3usize,
        places in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        pattern in r#"[a-z.*+?()|\[\]\\{}^$0-9]{0,20}"#,
    ) {
        let seed = ["llama/patterns", "llama/saved", "mistral/all-linear"][seed];
        let path = adapters(seed).join("adapter_config.json");
        let mut json: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        json["exclude_modules"] = json!(pattern);
        json["rank_pattern"] = json!({ pattern: 2 });
        let mut text = json.to_string().into_bytes();
        for (place, byte) in &places {
            let place = place.index(text.len());
            text[place] = *byte;
        }
        let text = String::from_utf8_lossy(&text);
        if let Ok(config) = AdapterConfig::parse(Path::new("adapter_config.json"), &text) {
            let _ = config.targets("model.layers.11.self_attn.q_proj", true);
            let _ = config.targets("model.embed_tokens", false);
        }
    }
}
