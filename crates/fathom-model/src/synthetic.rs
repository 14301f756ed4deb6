//! Checkpoints of random weights with the shapes of real models, for benchmarks.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use half::bf16;
use serde_json::{Map, Value, json};

use crate::{Error, Result};

/// Shape of a Qwen2-class model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SyntheticShape {
    /// Decoder layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the MLP.
    pub intermediate: usize,
    /// Query heads; divides `hidden`.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Size of the vocabulary.
    pub vocab: usize,
    /// Whether the output head is tied to the embedding.
    pub tied: bool,
}

impl SyntheticShape {
    /// Qwen2.5-0.5B.
    pub const QWEN2_5_0_5B: SyntheticShape = SyntheticShape {
        layers: 24,
        hidden: 896,
        intermediate: 4864,
        heads: 14,
        kv_heads: 2,
        vocab: 151_936,
        tied: true,
    };

    /// Qwen2.5-1.5B.
    pub const QWEN2_5_1_5B: SyntheticShape = SyntheticShape {
        layers: 28,
        hidden: 1536,
        intermediate: 8960,
        heads: 12,
        kv_heads: 2,
        vocab: 151_936,
        tied: true,
    };

    /// Qwen2.5-7B.
    pub const QWEN2_5_7B: SyntheticShape = SyntheticShape {
        layers: 28,
        hidden: 3584,
        intermediate: 18_944,
        heads: 28,
        kv_heads: 4,
        vocab: 152_064,
        tied: false,
    };

    /// Llama-3.2-1B.
    pub const LLAMA_3_2_1B: SyntheticShape = SyntheticShape {
        layers: 16,
        hidden: 2048,
        intermediate: 8192,
        heads: 32,
        kv_heads: 8,
        vocab: 128_256,
        tied: true,
    };

    /// Size of the checkpoint's tensors in bytes.
    pub fn bytes(&self) -> u64 {
        let tensors = self.tensors();
        tensors.iter().map(|(_, shape)| 2 * shape.iter().product::<usize>() as u64).sum()
    }

    /// The matrix products of a layer and of the output head: name, inputs, outputs.
    pub fn products(&self) -> [(&'static str, usize, usize); 5] {
        let SyntheticShape { hidden, intermediate, heads, kv_heads, vocab, .. } = *self;
        let kv = hidden / heads * kv_heads;
        [
            ("q, k, v", hidden, hidden + 2 * kv),
            ("o", hidden, hidden),
            ("gate, up", hidden, 2 * intermediate),
            ("down", intermediate, hidden),
            ("head", hidden, vocab),
        ]
    }

    /// Names and shapes of the checkpoint's tensors.
    fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let SyntheticShape { hidden, intermediate, vocab, .. } = *self;
        let kv = hidden / self.heads * self.kv_heads;
        let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![vocab, hidden])];
        for l in 0..self.layers {
            let mut add = |part: &str, shape: &[usize]| {
                tensors.push((format!("model.layers.{l}.{part}"), shape.to_vec()));
            };
            add("input_layernorm.weight", &[hidden]);
            for (part, rows) in [("q", hidden), ("k", kv), ("v", kv)] {
                add(&format!("self_attn.{part}_proj.weight"), &[rows, hidden]);
                add(&format!("self_attn.{part}_proj.bias"), &[rows]);
            }
            add("self_attn.o_proj.weight", &[hidden, hidden]);
            add("post_attention_layernorm.weight", &[hidden]);
            add("mlp.gate_proj.weight", &[intermediate, hidden]);
            add("mlp.up_proj.weight", &[intermediate, hidden]);
            add("mlp.down_proj.weight", &[hidden, intermediate]);
        }
        tensors.push(("model.norm.weight".to_owned(), vec![hidden]));
        if !self.tied {
            tensors.push(("lm_head.weight".to_owned(), vec![vocab, hidden]));
        }
        tensors
    }
}

/// Writes `config.json` and `model.safetensors` (BF16) to `dir`, without a tokenizer. Weights are
/// uniform with variance 1/inputs and norm weights are one, so activations stay bounded at any
/// depth.
///
/// # Errors
/// `dir` cannot be written, or its disk has too little space.
pub fn write_synthetic(dir: &Path, shape: &SyntheticShape, seed: u64) -> Result<()> {
    fs::create_dir_all(dir).map_err(Error::io(dir, "cannot be created"))?;
    let (needed, free) = (shape.bytes(), free_disk(dir));
    if let Some(free) = free.filter(|free| *free < needed) {
        let gb = |bytes| bytes as f64 / 1e9;
        let problem =
            format!("has {:.1} GB free, and the checkpoint needs {:.1} GB", gb(free), gb(needed));
        return Err(Error::file(dir, problem));
    }
    let config = json!({
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "max_position_embeddings": 32_768,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "tie_word_embeddings": shape.tied,
        "torch_dtype": "bfloat16",
        "use_sliding_window": false,
        "vocab_size": shape.vocab,
    });
    let path = dir.join("config.json");
    fs::write(&path, config.to_string()).map_err(Error::io(&path, "cannot be written"))?;

    let path = dir.join("model.safetensors");
    let tensors = shape.tensors();
    write_tensors(&path, &tensors, seed).map_err(Error::io(&path, "cannot be written"))
}

fn write_tensors(path: &Path, tensors: &[(String, Vec<usize>)], seed: u64) -> std::io::Result<()> {
    let mut header = Map::new();
    let mut end = 0;
    for (name, shape) in tensors {
        let start = end;
        end += 2 * shape.iter().product::<usize>();
        let entry = json!({ "dtype": "BF16", "shape": shape, "data_offsets": [start, end] });
        header.insert(name.clone(), entry);
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');

    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    let mut random = seed;
    for (name, shape) in tensors {
        let elements: usize = shape.iter().product();
        if name.ends_with("norm.weight") {
            file.write_all(&bf16::ONE.to_le_bytes().repeat(elements))?;
            continue;
        }
        // A uniform variable on [-a, a] has variance a²/3.
        let inputs = *shape.last().unwrap_or(&1) as f32;
        let amplitude = (3.0 / inputs).sqrt();
        for _ in 0..elements {
            let unit = (splitmix(&mut random) >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
            file.write_all(&bf16::from_f32(unit * amplitude).to_le_bytes())?;
        }
    }
    file.into_inner().map_err(|error| error.into_error())?.sync_all()
}

/// SplitMix64 (Steele, Lea and Flood 2014).
fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Free bytes, for an unprivileged user, on the disk that contains `path`.
fn free_disk(path: &Path) -> Option<u64> {
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStrExt;
        let path = std::ffi::CString::new(path.as_os_str().as_bytes()).ok()?;
        let mut disk = std::mem::MaybeUninit::<libc::statvfs>::uninit();
        // SAFETY: `path` is NUL-terminated, and `disk` has room for a `statvfs`.
        if unsafe { libc::statvfs(path.as_ptr(), disk.as_mut_ptr()) } != 0 {
            return None;
        }
        // SAFETY: the call succeeded, so it initialized `disk`.
        let disk = unsafe { disk.assume_init() };
        #[allow(clippy::unnecessary_cast)] // narrower on some systems
        return (disk.f_bavail as u64).checked_mul(disk.f_frsize as u64);
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        None
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Parameter counts are those of the models' cards; each parameter has two bytes.
    #[test]
    fn shapes_are_those_of_the_models_they_are_named_after() {
        let billions = |shape: SyntheticShape| shape.bytes() as f64 / 2e9;
        let near = |a: f64, b: f64| (a - b).abs() < 0.005 * b;
        assert!(near(billions(SyntheticShape::QWEN2_5_0_5B), 0.494));
        assert!(near(billions(SyntheticShape::QWEN2_5_1_5B), 1.544));
        assert!(near(billions(SyntheticShape::QWEN2_5_7B), 7.616));
        assert!(near(billions(SyntheticShape::LLAMA_3_2_1B), 1.236));
    }

    #[test]
    fn a_checkpoint_that_no_disk_holds_is_refused_before_it_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let shape = SyntheticShape { layers: 1_000_000, ..SyntheticShape::QWEN2_5_7B };
        let error = write_synthetic(dir.path(), &shape, 1).unwrap_err().to_string();
        assert!(error.contains("GB free, and the checkpoint needs"), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
