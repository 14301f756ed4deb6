//! `config.json` as plain data: what the forward pass needs to know, nothing of the family left.

use std::path::Path;

use crate::{Result, RopeConfig};

/// The model classes Fathom runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// `LlamaForCausalLM`.
    Llama,
    /// `MistralForCausalLM`.
    Mistral,
    /// `Qwen2ForCausalLM`.
    Qwen2,
    /// `Qwen3ForCausalLM`.
    Qwen3,
    /// `Phi3ForCausalLM`.
    Phi3,
}

/// A decoder's shape and options, every default filled in.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// HuggingFace class; for messages, not for the forward pass to branch on.
    pub architecture: Architecture,
    /// `num_hidden_layers`.
    pub layers: usize,
    /// `hidden_size`: width of the residual stream.
    pub hidden: usize,
    /// `intermediate_size`: width of the MLP.
    pub intermediate: usize,
    /// `num_attention_heads`.
    pub heads: usize,
    /// `num_key_value_heads`; divides `heads`. Query head `h` reads kv head `h / (heads / kv_heads)`.
    pub kv_heads: usize,
    /// Width of one head; `heads · head_dim` need not equal `hidden`.
    pub head_dim: usize,
    /// `vocab_size`: rows of the embedding, at least as many as the tokenizer has tokens.
    pub vocab: usize,
    /// Added to the mean square in every RMSNorm.
    pub rms_norm_eps: f32,
    /// Rotary position embedding.
    pub rope: RopeConfig,
    /// Sliding window per layer: with `Some(w)` a query sees `w` keys, its own included.
    pub windows: Vec<Option<usize>>,
    /// Whether the output head is the embedding.
    pub tie_word_embeddings: bool,
    /// Whether `q_proj`, `k_proj` and `v_proj` have biases.
    pub qkv_bias: bool,
    /// Whether `o_proj` has a bias.
    pub o_bias: bool,
    /// Whether `gate_proj`, `up_proj` and `down_proj` have biases.
    pub mlp_bias: bool,
    /// Whether queries and keys are RMS-normed per head before rotation (`q_norm`, `k_norm`).
    pub qk_norm: bool,
    /// Whether the checkpoint stores `qkv_proj` (q, k, v stacked) and `gate_up_proj` (gate, up stacked).
    pub fused_projections: bool,
    /// Longest sequence the checkpoint promises to handle.
    pub max_position_embeddings: usize,
    /// First token of a sequence, where there is one.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a text: those of `generation_config.json`, then those only in `config.json`.
    pub eos_token_ids: Vec<u32>,
    /// Padding token, where there is one.
    pub pad_token_id: Option<u32>,
}

impl ModelConfig {
    /// Reads `config.json` and, where there is one, `generation_config.json` of a checkpoint directory.
    pub fn from_dir(_dir: &Path) -> Result<ModelConfig> {
        todo!()
    }

    /// Parses the text of a `config.json`; `path` is only for messages.
    pub fn parse(_path: &Path, _text: &str) -> Result<ModelConfig> {
        todo!()
    }
}
