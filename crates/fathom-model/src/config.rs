//! `config.json` as plain data: what the forward pass needs, independent of the model family.

pub(crate) mod architecture;
pub(crate) mod fields;
mod rope;
mod rope_kind;
mod sampling;
mod unread;
mod windows;

use std::path::Path;

use serde_json::Value;

pub use architecture::Architecture;
use architecture::{Bias, Stacking};
use fields::Fields;
pub use sampling::RecommendedSampling;

use crate::adapter::FoundAdapter;
use crate::sanitize::sanitize;
use crate::text_file::read_text;
use crate::{Error, Remark, Result, RopeConfig};

// Upper limits of a config. Far beyond any checkpoint, and small enough that no product of two of
// them overflows.
const MAX_LAYERS: usize = 1000;
const MAX_WIDTH: usize = 1 << 20;
const MAX_HEADS: usize = 1 << 14;
const MAX_HEAD_DIM: usize = 1 << 14;
const MAX_VOCAB: usize = 1 << 24;

/// A decoder's shape and options, with every default filled in.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// HuggingFace class. The forward pass does not branch on it.
    pub architecture: Architecture,
    /// `num_hidden_layers`.
    pub layers: usize,
    /// `hidden_size`: width of the residual stream.
    pub hidden: usize,
    /// `intermediate_size`: width of the MLP's hidden layer.
    pub intermediate: usize,
    /// `num_attention_heads`.
    pub heads: usize,
    /// `num_key_value_heads`; divides `heads`. Query head `h` reads kv head
    /// `h / (heads / kv_heads)`.
    pub kv_heads: usize,
    /// Width of one head; `heads · head_dim` need not equal `hidden`.
    pub head_dim: usize,
    /// `vocab_size`: rows of the embedding. May exceed the tokenizer's number of tokens.
    pub vocab: usize,
    /// Added to the mean square in every RMSNorm.
    pub rms_norm_eps: f32,
    /// Rotary position embedding.
    pub rope: RopeConfig,
    /// Sliding window per layer: with `Some(w)` a query sees `w` keys, its own included.
    pub windows: Vec<Option<usize>>,
    /// Whether the config ties the output head to the embedding. The weights may differ; see
    /// [`crate::Checkpoint::ties_word_embeddings`].
    pub tie_word_embeddings: bool,
    /// Whether `q_proj`, `k_proj` and `v_proj` have biases.
    pub qkv_bias: bool,
    /// Whether `o_proj` has a bias.
    pub o_bias: bool,
    /// Whether `gate_proj`, `up_proj` and `down_proj` have biases.
    pub mlp_bias: bool,
    /// Whether queries and keys are RMS-normed per head before rotation (`q_norm`, `k_norm`).
    pub qk_norm: bool,
    /// Whether the checkpoint stores `qkv_proj` (q, k, v stacked) and `gate_up_proj` (gate, up
    /// stacked).
    pub fused_projections: bool,
    /// Longest sequence the checkpoint supports, in tokens.
    pub max_position_embeddings: usize,
    /// First token of a sequence, if the model has one.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a text: those of `generation_config.json`, then those only in `config.json`.
    pub eos_token_ids: Vec<u32>,
    /// Padding token, if the model has one.
    pub pad_token_id: Option<u32>,
    /// The sampling that `generation_config.json` recommends.
    pub recommended_sampling: RecommendedSampling,
    /// Fields that were ignored, or interpreted differently from what they state.
    pub remarks: Vec<Remark>,
}

impl ModelConfig {
    /// Reads `config.json` and, if present, `generation_config.json` of a checkpoint directory. An
    /// adapter in the same directory causes a remark.
    ///
    /// # Errors
    /// There is no `config.json` (the message says so if the directory holds an adapter); either
    /// file is invalid, see [`ModelConfig::parse`].
    pub fn from_dir(dir: &Path) -> Result<ModelConfig> {
        let path = dir.join("config.json");
        let (text, adapter) = (read_text(&path)?, FoundAdapter::find(dir)?);
        let Some(text) = text else {
            let missing = "does not exist, expected the config of a HuggingFace checkpoint";
            return Err(match adapter {
                Some(adapter) => adapter.refusal(),
                None => Error::file(&path, missing),
            });
        };
        let generation_path = dir.join("generation_config.json");
        let mut config = match read_text(&generation_path)? {
            None => ModelConfig::parse(&path, &text)?,
            Some(generation) => {
                ModelConfig::parse_with_generation(&path, &text, &generation_path, &generation)?
            }
        };
        config.remarks.extend(adapter.map(|adapter| adapter.remark()));
        Ok(config)
    }

    /// Parses the text of a `config.json`, in the layout of transformers 4 or 5. `path` is used in
    /// messages only.
    ///
    /// # Errors
    /// A field of the wrong type or out of range; an unsupported architecture, activation, rope
    /// type, quantisation or mixture of experts; inconsistent shapes; or a missing `rope_theta`
    /// where HuggingFace's default would be wrong.
    pub fn parse(path: &Path, text: &str) -> Result<ModelConfig> {
        let value = json(path, text)?;
        parse_fields(&Fields::root(path, &value)?, None)
    }

    /// As [`ModelConfig::parse`], with a `generation_config.json`, whose special tokens take
    /// precedence.
    ///
    /// # Errors
    /// As [`ModelConfig::parse`], and invalid token ids in the generation config.
    pub fn parse_with_generation(
        path: &Path,
        text: &str,
        generation_path: &Path,
        generation: &str,
    ) -> Result<ModelConfig> {
        let (value, generation) = (json(path, text)?, json(generation_path, generation)?);
        let generation = Fields::root(generation_path, &generation)?;
        parse_fields(&Fields::root(path, &value)?, Some(&generation))
    }
}

fn json(path: &Path, text: &str) -> Result<Value> {
    serde_json::from_str(text).map_err(|error| Error::file(path, format!("is not JSON: {error}")))
}

fn parse_fields(fields: &Fields<'_>, generation: Option<&Fields<'_>>) -> Result<ModelConfig> {
    let mut remarks = Vec::new();
    let architecture = Architecture::of(fields, &mut remarks)?;
    refuse_unsupported(fields, architecture)?;
    let facts = architecture.facts();
    let defaults = &facts.defaults;

    let layers = fields.size("num_hidden_layers", 1..=MAX_LAYERS)?.unwrap_or(defaults.layers);
    let hidden = fields.size("hidden_size", 1..=MAX_WIDTH)?.unwrap_or(defaults.hidden);
    let intermediate =
        fields.size("intermediate_size", 1..=MAX_WIDTH)?.unwrap_or(defaults.intermediate);
    let vocab = fields.size("vocab_size", 1..=MAX_VOCAB)?.unwrap_or(defaults.vocab);
    let heads = fields.size("num_attention_heads", 1..=MAX_HEADS)?.unwrap_or(defaults.heads);
    let kv_heads = kv_heads(fields, heads, defaults.kv_heads)?;
    let head_dim = head_dim(fields, hidden, heads, defaults.head_dim)?;
    let max_position_embeddings = fields
        .size("max_position_embeddings", 1..=rope::MAX_POSITIONS)?
        .unwrap_or(defaults.max_position_embeddings);
    let rms_norm_eps = fields
        .number("rms_norm_eps", "a number from 0 to 1", |eps| (0.0..=1.0).contains(&eps))?
        .unwrap_or(defaults.rms_norm_eps);

    let windows = windows::windows(fields, architecture, layers)?;
    let context = rope::RopeContext { architecture, head_dim, max_position_embeddings, windows };
    let rope = rope::rope(fields, &context, &mut remarks)?;

    let attention_bias = fields.flag("attention_bias")?.unwrap_or(false);
    let mlp_bias = fields.flag("mlp_bias")?.unwrap_or(false);
    let tokens = TokenFields { config: fields, generation };
    let mut config = ModelConfig {
        architecture,
        layers,
        hidden,
        intermediate,
        heads,
        kv_heads,
        head_dim,
        vocab,
        rms_norm_eps: rms_norm_eps as f32,
        rope,
        windows: context.windows,
        tie_word_embeddings: fields
            .flag("tie_word_embeddings")?
            .unwrap_or(defaults.tie_word_embeddings),
        qkv_bias: facts.qkv_bias.is_present(attention_bias),
        o_bias: facts.o_bias.is_present(attention_bias),
        mlp_bias: facts.mlp_bias.is_present(mlp_bias),
        qk_norm: facts.qk_norm,
        fused_projections: matches!(facts.tensors.qkv, Stacking::Fused(_)),
        max_position_embeddings,
        bos_token_id: tokens.one("bos_token_id", defaults.bos, &mut remarks)?,
        eos_token_ids: tokens.all("eos_token_id", defaults.eos)?,
        pad_token_id: tokens.one("pad_token_id", defaults.pad, &mut remarks)?,
        recommended_sampling: generation.map(RecommendedSampling::read).unwrap_or_default(),
        remarks: Vec::new(),
    };
    remarks.extend(unread::remark(fields, &config));
    config.remarks = remarks;
    Ok(config)
}

/// Rejects fields that describe a network Fathom does not implement.
fn refuse_unsupported(fields: &Fields<'_>, architecture: Architecture) -> Result<()> {
    let act = fields.text("hidden_act")?.unwrap_or("silu");
    if act != "silu" && act != "swish" {
        return Err(fields.error("hidden_act", format!("is `{}`, expected `silu`", sanitize(act))));
    }
    if fields.get("quantization_config").is_some() {
        let problem = "is present; quantised checkpoints are not supported, expected BF16, F16 or \
                       F32 weights";
        return Err(fields.error("quantization_config", problem));
    }
    for name in ["num_local_experts", "num_experts", "n_routed_experts", "moe_intermediate_size"] {
        if fields.get(name).is_some_and(|value| value.as_u64() != Some(0)) {
            let problem =
                "is present; mixtures of experts are not supported, expected a dense model";
            return Err(fields.error(name, problem));
        }
    }
    // HuggingFace's classes without these biases would silently drop those of the checkpoint.
    let facts = architecture.facts();
    let never = |bias: Bias| bias == Bias::Never;
    for (name, absent) in [
        ("attention_bias", never(facts.qkv_bias) && never(facts.o_bias)),
        ("mlp_bias", never(facts.mlp_bias)),
        ("lm_head_bias", true),
    ] {
        if absent && fields.flag(name)? == Some(true) {
            return Err(fields.error(name, format!("is true, but {architecture} has no such bias")));
        }
    }
    Ok(())
}

/// `num_key_value_heads`: the class's default when absent, equal to `heads` when null.
fn kv_heads(fields: &Fields<'_>, heads: usize, default: Option<usize>) -> Result<usize> {
    let name = "num_key_value_heads";
    let kv_heads = match fields.names(name) {
        true => fields.size(name, 1..=MAX_HEADS)?.unwrap_or(heads),
        false => default.unwrap_or(heads),
    };
    if !heads.is_multiple_of(kv_heads) {
        let how = if fields.names(name) { "is" } else { "is absent and so" };
        let problem =
            format!("{how} {kv_heads}, expected a divisor of num_attention_heads, {heads}");
        return Err(fields.error(name, problem));
    }
    Ok(kv_heads)
}

/// `head_dim`: the class's default when absent, `hidden / heads` when null or without a default.
fn head_dim(
    fields: &Fields<'_>,
    hidden: usize,
    heads: usize,
    default: Option<usize>,
) -> Result<usize> {
    let name = "head_dim";
    if let Some(head_dim) = fields.size(name, 1..=MAX_HEAD_DIM)? {
        return Ok(head_dim);
    }
    if let Some(default) = default.filter(|_| !fields.names(name)) {
        return Ok(default);
    }
    if !hidden.is_multiple_of(heads) {
        let problem = format!(
            "is {hidden}, expected a multiple of num_attention_heads, {heads}, as there is no \
             head_dim"
        );
        return Err(fields.error("hidden_size", problem));
    }
    Ok(hidden / heads)
}

/// The files that name special tokens: the generation config first, then the config. The class's
/// default applies only when neither has the field.
struct TokenFields<'a> {
    config: &'a Fields<'a>,
    generation: Option<&'a Fields<'a>>,
}

impl TokenFields<'_> {
    /// A single token. If the field is a list, its first token is used, with a remark if there are
    /// several.
    fn one(
        &self,
        name: &str,
        default: Option<u32>,
        remarks: &mut Vec<Remark>,
    ) -> Result<Option<u32>> {
        let mut found = None;
        for fields in self.generation.into_iter().chain([self.config]) {
            let ids = fields.single_token_id(name)?;
            if let [first, _, ..] = ids[..] {
                let text =
                    format!("`{name}` lists {} tokens; the first, {first}, is used", ids.len());
                remarks.push(fields.remark("several-tokens", text));
            }
            found = found.or(ids.first().copied());
        }
        Ok(found.or(default.filter(|_| !self.names(name))))
    }

    fn all(&self, name: &str, default: Option<u32>) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        for fields in self.generation.into_iter().chain([self.config]) {
            for id in fields.token_ids(name)? {
                if !ids.contains(&id) {
                    ids.push(id);
                }
            }
        }
        ids.extend(default.filter(|_| !self.names(name)));
        Ok(ids)
    }

    fn names(&self, name: &str) -> bool {
        self.config.names(name) || self.generation.is_some_and(|fields| fields.names(name))
    }
}
