//! Checkpoints of random weights at the shapes of real models, for benchmarks.

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
    /// Vocabulary.
    pub vocab: usize,
    /// Whether the output head is the embedding.
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

/// Writes `config.json` and `model.safetensors` (BF16) to `dir`. Weights are uniform with variance
/// 1/inputs, norm weights one: activations keep a sane size through any depth. There is no tokenizer.
///
/// # Errors
/// `dir` cannot be written.
pub fn write_synthetic(dir: &Path, shape: &SyntheticShape, seed: u64) -> Result<()> {
    fs::create_dir_all(dir).map_err(Error::io(dir, "cannot be created"))?;
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
