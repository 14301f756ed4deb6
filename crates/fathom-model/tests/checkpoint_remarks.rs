//! Checkpoints with unused, renamed or missing tensors: remarks and errors.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use fathom_kernels::{Cpu, CpuOptions};
use fathom_model::{Checkpoint, ModelConfig, Transformer};
use half::bf16;
use proptest::prelude::*;
use safetensors::SafeTensors;
use serde_json::{Value, json};
use tempfile::TempDir;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/golden").join(name)
}

/// A tensor: name, shape, BF16 bytes.
type Tensor = (String, Vec<usize>, Vec<u8>);

struct View<'a>(&'a Tensor);

impl safetensors::View for View<'_> {
    fn dtype(&self) -> safetensors::Dtype {
        safetensors::Dtype::BF16
    }
    fn shape(&self) -> &[usize] {
        &self.0.1
    }
    fn data(&self) -> std::borrow::Cow<'_, [u8]> {
        self.0.2.as_slice().into()
    }
    fn data_len(&self) -> usize {
        self.0.2.len()
    }
}

fn bytes_of(tensors: &[Tensor]) -> Vec<u8> {
    let views = tensors.iter().map(|tensor| (tensor.0.as_str(), View(tensor)));
    safetensors::serialize(views, None).unwrap()
}

/// The tensors of a golden checkpoint that consists of one file.
fn tensors_of(name: &str) -> Vec<Tensor> {
    let bytes = fs::read(golden(name).join(SINGLE)).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap().tensors();
    let own = |(name, view): (String, safetensors::tensor::TensorView<'_>)| {
        (name, view.shape().to_vec(), view.data().to_vec())
    };
    tensors.into_iter().map(own).collect()
}

fn ones(name: &str, shape: &[usize]) -> Tensor {
    (name.to_owned(), shape.to_vec(), bf16::ONE.to_le_bytes().repeat(shape.iter().product()))
}

/// A checkpoint with the config of a golden checkpoint and these tensors.
fn checkpoint_of(name: &str, tensors: &[Tensor]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(golden(name).join("config.json"), dir.path().join("config.json")).unwrap();
    fs::write(dir.path().join(SINGLE), bytes_of(tensors)).unwrap();
    dir
}

/// The remarks of a checkpoint, without the directory.
fn remarks(dir: &Path) -> Vec<String> {
    let config = ModelConfig::from_dir(dir).unwrap();
    let checkpoint = Checkpoint::open(dir).unwrap();
    checkpoint.check(&config).unwrap();
    let remarks = checkpoint.remarks(&config).unwrap();
    remarks.iter().map(|remark| relative(&remark.to_string(), dir)).collect()
}

fn relative(message: &str, dir: &Path) -> String {
    let dir = dir.display().to_string();
    message.replace(&format!("{dir}/"), "").replace(&dir, "DIR")
}

/// The error of checking a checkpoint, without the directory.
fn refusal(dir: &Path) -> String {
    let config = ModelConfig::from_dir(dir).unwrap();
    let message = Checkpoint::open(dir).unwrap().check(&config).unwrap_err().to_string();
    let loading = Transformer::load(dir, Cpu::new(CpuOptions::default()).unwrap()).err().unwrap();
    assert_eq!(loading.to_string(), message);
    relative(&message, dir)
}

/// For every supported class, the list of tensors to read is exactly that of its golden checkpoint.
#[test]
fn goldens_hold_the_tensors_that_are_read_and_no_others() {
    let mut seen = 0;
    for entry in fs::read_dir(golden("")).unwrap() {
        let dir = entry.unwrap().path();
        if dir.is_dir() {
            assert_eq!(remarks(&dir), [""; 0], "{}", dir.display());
            seen += 1;
        }
    }
    assert_eq!(seen, 9);
}

#[test]
fn tensors_that_are_not_read_are_counted_and_the_first_is_named() {
    let with = |more: &[(&str, &[usize])]| {
        let mut tensors = tensors_of("qwen3");
        tensors.extend(more.iter().map(|(name, shape)| ones(name, shape)));
        remarks(checkpoint_of("qwen3", &tensors).path())
    };
    assert_eq!(
        with(&[("model.layers.0.self_attn.q_proj.bias", &[64])]),
        ["model.safetensors: holds a tensor that the config does not account for, \
          `model.layers.0.self_attn.q_proj.bias`: it is not used"]
    );
    let vision =
        with(&[("vision_tower.a", &[2]), ("vision_tower.b", &[2]), ("lm_head.bias", &[2])]);
    assert_eq!(vision.len(), 1);
    assert!(vision[0].starts_with("model.safetensors: holds 3 tensors that"), "{vision:?}");
    let layers = ["model.layers.77.mlp.up_proj.weight", "model.layers.78.mlp.up_proj.weight"];
    let layers = with(&layers.map(|name| (name, &[2][..])));
    assert!(layers[0].contains("up_proj.weight` (`num_hidden_layers` is "), "{layers:?}");
    // Constants that older checkpoints saved.
    let buffers = [
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.rotary_emb.inv_freq",
        "model.layers.0.self_attn.masked_bias",
        "model.layers.0.self_attn.bias",
    ];
    assert_eq!(with(&buffers.map(|name| (name, &[2][..]))), [""; 0]);
}

#[test]
fn tensors_of_shards_that_no_index_names_are_counted_too() {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(golden("codellama-sharded")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    assert_eq!(remarks(dir.path()), [""; 0]);
    // An index that omits a tensor of a shard it names: the tensor is missing, although stored.
    let index = dir.path().join(INDEX);
    let original: Value = serde_json::from_slice(&fs::read(&index).unwrap()).unwrap();
    let mut edited = original.clone();
    edited["weight_map"].as_object_mut().unwrap().remove("model.norm.weight");
    fs::write(&index, edited.to_string()).unwrap();
    assert!(refusal(dir.path()).contains("tensor `model.norm.weight` is missing"));

    fs::write(&index, original.to_string()).unwrap();
    let stray = bytes_of(&[ones("model.norm.weight", &[64])]);
    fs::write(dir.path().join("model-00004-of-00003.safetensors"), &stray).unwrap();
    assert_eq!(
        remarks(dir.path()),
        ["DIR: holds `model-00004-of-00003.safetensors`, which no index names: ignored"]
    );
    // The consolidated weights that some authors publish next to shards are not another shard.
    fs::remove_file(dir.path().join("model-00004-of-00003.safetensors")).unwrap();
    fs::write(dir.path().join("consolidated.safetensors"), &stray).unwrap();
    assert_eq!(remarks(dir.path()), [""; 0]);
}

#[test]
fn a_single_file_takes_precedence_over_shards_with_a_remark() {
    let dir = checkpoint_of("qwen3", &tensors_of("qwen3"));
    let index = json!({"weight_map": {"a": "model-00001-of-00001.safetensors"}});
    fs::write(dir.path().join(INDEX), index.to_string()).unwrap();
    assert_eq!(remarks(dir.path()), [""; 0], "without shards there is nothing to choose");
    let shard = dir.path().join("model-00001-of-00001.safetensors");
    fs::write(shard, bytes_of(&[ones("a", &[1])])).unwrap();
    assert_eq!(
        remarks(dir.path()),
        ["model.safetensors.index.json: is not read, nor are its shards: model.safetensors \
             takes precedence, as in transformers"]
    );
    fs::remove_file(dir.path().join(INDEX)).unwrap();
    assert_eq!(
        remarks(dir.path()),
        ["DIR: holds `model-00001-of-00001.safetensors`, which no index names: ignored"]
    );
}

#[test]
fn an_output_head_that_differs_despite_tying_causes_a_remark() {
    let mut tensors = tensors_of("qwen2");
    let embed = tensors.iter().find(|(name, ..)| name == "model.embed_tokens.weight").unwrap();
    let (shape, bytes) = (embed.1.clone(), embed.2.clone());
    tensors.retain(|(name, ..)| name != "lm_head.weight");
    let tied = |head: Vec<u8>| {
        let mut tensors = tensors.clone();
        tensors.push(("lm_head.weight".to_owned(), shape.clone(), head));
        let dir = checkpoint_of("qwen2", &tensors);
        let path = dir.path().join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config["tie_word_embeddings"] = json!(true);
        fs::write(&path, config.to_string()).unwrap();
        remarks(dir.path())
    };
    assert_eq!(tied(bytes.clone()), [""; 0]);
    let other = bf16::ONE.to_le_bytes().repeat(bytes.len() / 2);
    assert_eq!(
        tied(other),
        ["model.safetensors: holds an `lm_head.weight` that differs from the embedding although \
          `tie_word_embeddings` is true: it is used, as transformers does"]
    );
}

/// Prefixes that wrappers add to all names are removed; the tensors are those of the plain
/// checkpoint.
#[test]
fn a_prefix_that_all_names_share_is_removed() {
    for name in ["qwen3", "qwen2", "phi3"] {
        let plain = tensors_of(name);
        let reference = Checkpoint::open(&golden(name)).unwrap();
        for prefix in
            ["_orig_mod.", "base_model.model.", "module.", "language_model.", "a.b.model."]
        {
            let renamed: Vec<Tensor> = plain
                .iter()
                .map(|(n, s, b)| (format!("{prefix}{n}"), s.clone(), b.clone()))
                .collect();
            let dir = checkpoint_of(name, &renamed);
            assert_eq!(
                remarks(dir.path()),
                [format!(
                    "model.safetensors: all tensor names begin with `{prefix}`, which is removed"
                )]
            );
            let checkpoint = Checkpoint::open(dir.path()).unwrap();
            for (name, ..) in &plain {
                let (ours, theirs) =
                    (checkpoint.tensor(name).unwrap(), reference.tensor(name).unwrap());
                assert_eq!((ours.shape, ours.bytes), (theirs.shape, theirs.bytes));
            }
        }
    }
    // A model without its output head.
    let bare = [ones("module.embed_tokens.weight", &[1]), ones("module.norm.weight", &[1])];
    let checkpoint = Checkpoint::open(checkpoint_of("qwen3", &bare).path()).unwrap();
    assert!(checkpoint.contains("model.norm.weight") && !checkpoint.contains("lm_head.weight"));
}

#[test]
fn missing_tensors_are_reported_with_the_most_similar_name() {
    let renamed = |rename: &dyn Fn(&str) -> String, more: &[Tensor]| {
        let mut tensors = tensors_of("qwen3");
        tensors.iter_mut().for_each(|(name, ..)| *name = rename(name));
        tensors.extend_from_slice(more);
        refusal(checkpoint_of("qwen3", &tensors).path())
    };
    let vision = [ones("vision_tower.encoder.layers.0.weight", &[1])];
    let part = renamed(&|name| format!("language_model.{name}"), &vision);
    assert!(
        part.starts_with(
            "model.safetensors: tensor `model.embed_tokens.weight` is missing; the file has \
             `language_model.model.embed_tokens.weight` and all other tensors of the model under \
             `language_model.`, next to other tensors"
        ),
        "{part}"
    );
    let some = renamed(&|name| name.replace("model.layers.1.mlp", "model.layers.1.inner.mlp"), &[]);
    assert_eq!(
        some,
        "model.safetensors: tensor `model.layers.1.mlp.gate_proj.weight` is missing; the file has \
         `model.layers.1.inner.mlp.gate_proj.weight`"
    );
    let adapter = renamed(
        &|name| format!("base_model.model.{}", name.replace("q_proj.", "q_proj.base_layer.")),
        &[ones("base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight", &[1])],
    );
    assert_eq!(
        adapter,
        "model.safetensors: tensor `model.layers.0.self_attn.q_proj.weight` is missing; the file \
         has `base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight`, from a model \
         with an adapter that is not merged: merge it (`merge_and_unload`) and save again"
    );
    let other = refusal(checkpoint_of("qwen3", &[ones("tok_embeddings.weight", &[1])]).path());
    assert_eq!(
        other,
        "model.safetensors: tensor `model.embed_tokens.weight` is missing, and so is every other; \
         the file has names such as `tok_embeddings.weight`"
    );
    let headless = {
        let mut tensors = tensors_of("qwen3");
        tensors.retain(|(name, ..)| name != "lm_head.weight");
        checkpoint_of("qwen3", &tensors)
    };
    let path = headless.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["tie_word_embeddings"] = json!(false);
    fs::write(&path, config.to_string()).unwrap();
    let message = refusal(headless.path());
    assert!(message.contains("`lm_head.weight` is missing, and `tie_word_embeddings` is not true"));
}

/// Values of fused projections are checked too, and reported by their index in the stored tensor.
#[test]
fn a_value_that_is_not_finite_is_found_in_every_part_of_a_fused_tensor() {
    let plain = tensors_of("phi3");
    let name = "model.layers.0.self_attn.qkv_proj.weight";
    let index = plain.iter().position(|(n, ..)| n == name).unwrap();
    let [rows, columns] = plain[index].1[..] else { panic!() };
    for row in [0, rows / 2, rows - 1] {
        let mut tensors = plain.clone();
        let at = 2 * (row * columns + 3);
        tensors[index].2[at..at + 2].copy_from_slice(&bf16::NAN.to_le_bytes());
        let dir = checkpoint_of("phi3", &tensors);
        let message = Transformer::load(dir.path(), Cpu::new(CpuOptions::default()).unwrap()).err();
        let message = message.unwrap().to_string();
        let expected =
            format!("tensor `{name}` is NaN or infinite at [{row}, 3], expected finite numbers");
        assert!(message.ends_with(&expected), "{message}");
    }
}

#[test]
fn git_lfs_pointers_in_place_of_weights_are_named() {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n";
    let dir = checkpoint_of("qwen3", &[ones("a", &[1])]);
    let opened = || relative(&Checkpoint::open(dir.path()).unwrap_err().to_string(), dir.path());
    let expected = "is a Git LFS pointer, not the file itself; run `git lfs pull` in the \
                    repository it is from";
    fs::write(dir.path().join(SINGLE), pointer).unwrap();
    assert_eq!(opened(), format!("model.safetensors: {expected}"));
    fs::remove_file(dir.path().join(SINGLE)).unwrap();
    fs::write(dir.path().join(INDEX), pointer).unwrap();
    assert_eq!(opened(), format!("{INDEX}: {expected}"));
    fs::write(dir.path().join(INDEX), json!({"weight_map": {"a": "s0"}}).to_string()).unwrap();
    fs::write(dir.path().join("s0"), pointer).unwrap();
    assert_eq!(opened(), format!("s0: {expected}"));
}

#[cfg(unix)]
#[test]
fn links_to_nothing_in_place_of_weights_are_named() {
    use std::os::unix::fs::symlink;
    let dir = tempfile::tempdir().unwrap();
    let opened = || relative(&Checkpoint::open(dir.path()).unwrap_err().to_string(), dir.path());
    let expected = "is a link to ../blobs/0, which does not exist (an interrupted download?)";
    symlink("../blobs/0", dir.path().join(INDEX)).unwrap();
    assert_eq!(opened(), format!("{INDEX}: {expected}"));
    fs::remove_file(dir.path().join(INDEX)).unwrap();
    fs::write(dir.path().join(INDEX), json!({"weight_map": {"a": "s0"}}).to_string()).unwrap();
    symlink("../blobs/0", dir.path().join("s0")).unwrap();
    assert_eq!(opened(), format!("s0: {expected}"));
    symlink("../blobs/0", dir.path().join(SINGLE)).unwrap();
    assert_eq!(opened(), format!("model.safetensors: {expected}"));
}

proptest! {
    /// With any tensor names nothing panics, and tensors that are read cause no remark.
    #[test]
    fn no_names_can_break_the_remarks(
        names in prop::collection::btree_set(
            prop_oneof![
                "\\PC{0,12}",
                "[a-c.é]{0,8}(model\\.)?(embed_tokens|layers|norm|lm_head)?\\.?[0-9.]{0,25}\
                 (weight|bias)?",
            ],
            1..6,
        ),
    ) {
        let tensors: Vec<Tensor> = names.iter().map(|name| ones(name, &[1])).collect();
        let dir = checkpoint_of("qwen3", &tensors);
        let config = ModelConfig::from_dir(dir.path()).unwrap();
        let Ok(checkpoint) = Checkpoint::open(dir.path()) else { return Ok(()) };
        let error = checkpoint.check(&config).unwrap_err().to_string();
        prop_assert!(!error.contains(char::is_control) && error.len() < 2000, "{}", error);
        if let Ok(remarks) = checkpoint.remarks(&config) {
            prop_assert!(remarks.iter().all(|remark| !remark.text.contains(char::is_control)));
        }
    }
}
