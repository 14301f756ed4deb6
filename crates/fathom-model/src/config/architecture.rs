//! The supported model classes. Everything that distinguishes them is in one table of facts; no
//! other code branches on the class.

use std::fmt;

use super::fields::Fields;
use crate::sanitize::sanitize;
use crate::{Remark, Result};

/// Declares [`Architecture`] from one row per class: the variant and the constant with its facts.
macro_rules! architectures {
    ($($(#[$doc:meta])* $variant:ident => $facts:ident,)*) => {
        /// The supported model classes.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Architecture {
            $($(#[$doc])* $variant,)*
        }

        impl Architecture {
            /// Every supported architecture.
            pub const ALL: [Architecture; [$(Architecture::$variant),*].len()] =
                [$(Architecture::$variant),*];

            /// What distinguishes this class from the others.
            pub(crate) fn facts(self) -> &'static Facts {
                match self {
                    $(Architecture::$variant => &$facts,)*
                }
            }
        }
    };
}

architectures! {
    /// `LlamaForCausalLM`: Llama 1 to 3, CodeLlama, R1-Distill-Llama.
    Llama => LLAMA,
    /// `MistralForCausalLM`: Mistral 7B, Mathstral.
    Mistral => MISTRAL,
    /// `Qwen2ForCausalLM`: Qwen2, Qwen2.5, QwQ, R1-Distill-Qwen.
    Qwen2 => QWEN2,
    /// `Qwen3ForCausalLM`: the dense Qwen3.
    Qwen3 => QWEN3,
    /// `Phi3ForCausalLM`: Phi-3, Phi-4, Phi-4-mini.
    Phi3 => PHI3,
}

static LLAMA: Facts = Facts {
    model_type: "llama",
    stem: "Llama",
    defaults: LLAMA_DEFAULTS,
    qkv_bias: Bias::Configured,
    o_bias: Bias::Configured,
    mlp_bias: Bias::Configured,
    qk_norm: false,
    tensors: LLAMA_TENSORS,
    windows: WindowRule::Never,
    partial_rotary: false,
    rope_types: RopeTypes::All,
    // Llama 1 and 2 have base 10000 and at most 4096 trained positions. Later models state theirs.
    missing_theta: MissingTheta::TenThousandUpTo { trained: 4096 },
};

static MISTRAL: Facts = Facts {
    model_type: "mistral",
    stem: "Mistral",
    defaults: Defaults {
        intermediate: 14336,
        kv_heads: Some(8),
        max_position_embeddings: 4096 * 32,
        sliding_window: Some(4096),
        ..LLAMA_DEFAULTS
    },
    qkv_bias: Bias::Never,
    o_bias: Bias::Never,
    mlp_bias: Bias::Never,
    qk_norm: false,
    tensors: LLAMA_TENSORS,
    windows: WindowRule::EveryLayer,
    partial_rotary: false,
    rope_types: RopeTypes::All,
    // Mistral 7B v0.1, the only one with windows, has base 10000.
    missing_theta: MissingTheta::TenThousandIfWindowed,
};

static QWEN2: Facts = Facts {
    model_type: "qwen2",
    stem: "Qwen2",
    defaults: QWEN_DEFAULTS,
    qkv_bias: Bias::Always,
    o_bias: Bias::Never,
    mlp_bias: Bias::Never,
    qk_norm: false,
    tensors: LLAMA_TENSORS,
    windows: WindowRule::FromLayer,
    partial_rotary: false,
    rope_types: RopeTypes::All,
    missing_theta: MissingTheta::Refused,
};

static QWEN3: Facts = Facts {
    model_type: "qwen3",
    stem: "Qwen3",
    defaults: Defaults { head_dim: Some(128), ..QWEN_DEFAULTS },
    qkv_bias: Bias::Configured,
    o_bias: Bias::Configured,
    mlp_bias: Bias::Never,
    qk_norm: true,
    tensors: LLAMA_TENSORS,
    windows: WindowRule::FromLayer,
    partial_rotary: false,
    rope_types: RopeTypes::All,
    missing_theta: MissingTheta::Refused,
};

static PHI3: Facts = Facts {
    model_type: "phi3",
    stem: "Phi3",
    defaults: Defaults {
        vocab: 32064,
        hidden: 3072,
        intermediate: 8192,
        max_position_embeddings: 4096,
        original_max_position_embeddings: Some(4096),
        rms_norm_eps: 1e-5,
        eos: Some(32000),
        pad: Some(32000),
        ..LLAMA_DEFAULTS
    },
    qkv_bias: Bias::Never,
    o_bias: Bias::Never,
    mlp_bias: Bias::Never,
    qk_norm: false,
    tensors: TensorNames {
        qkv: Stacking::Fused("self_attn.qkv_proj"),
        gate_up: Stacking::Fused("mlp.gate_up_proj"),
        ..LLAMA_TENSORS
    },
    windows: WindowRule::EveryLayer,
    partial_rotary: true,
    rope_types: RopeTypes::LongRopeOnly,
    // Phi-3 was trained on 4096 positions with base 10000. Phi-4 states its base.
    missing_theta: MissingTheta::TenThousandUpTo { trained: 4096 },
};

const LLAMA_DEFAULTS: Defaults = Defaults {
    vocab: 32000,
    hidden: 4096,
    intermediate: 11008,
    layers: 32,
    heads: 32,
    kv_heads: None,
    head_dim: None,
    max_position_embeddings: 2048,
    original_max_position_embeddings: None,
    rms_norm_eps: 1e-6,
    sliding_window: None,
    tie_word_embeddings: false,
    bos: Some(1),
    eos: Some(2),
    pad: None,
};

const QWEN_DEFAULTS: Defaults = Defaults {
    vocab: 151_936,
    intermediate: 22016,
    kv_heads: Some(32),
    max_position_embeddings: 32768,
    sliding_window: Some(4096),
    bos: None,
    eos: None,
    ..LLAMA_DEFAULTS
};

const LLAMA_TENSORS: TensorNames = TensorNames {
    embed: "model.embed_tokens",
    layers: "model.layers",
    attn_norm: "input_layernorm",
    qkv: Stacking::Separate(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
    q_norm: "self_attn.q_norm",
    k_norm: "self_attn.k_norm",
    o: "self_attn.o_proj",
    mlp_norm: "post_attention_layernorm",
    gate_up: Stacking::Separate(["mlp.gate_proj", "mlp.up_proj"]),
    down: "mlp.down_proj",
    final_norm: "model.norm",
    lm_head: "lm_head",
};

/// What distinguishes one class of models from the others.
pub(crate) struct Facts {
    /// `model_type` in `config.json`.
    pub model_type: &'static str,
    /// Class name without its suffix: `Llama` of `LlamaForCausalLM`.
    pub stem: &'static str,
    /// Values of absent config fields.
    pub defaults: Defaults,
    /// Biases of the q, k and v projections (config field `attention_bias`).
    pub qkv_bias: Bias,
    /// Bias of the output projection (config field `attention_bias`).
    pub o_bias: Bias,
    /// Biases of the MLP's projections (config field `mlp_bias`).
    pub mlp_bias: Bias,
    /// Whether queries and keys are RMS-normed per head before rotation.
    pub qk_norm: bool,
    /// Names of the tensors. An adapter's target modules are these names too.
    pub tensors: TensorNames,
    /// Which layers have a sliding window.
    pub windows: WindowRule,
    /// Whether `partial_rotary_factor` may be other than 1.
    pub partial_rotary: bool,
    /// Which rope types the class supports.
    pub rope_types: RopeTypes,
    /// What a config without `rope_theta` means.
    pub missing_theta: MissingTheta,
}

/// Values of absent fields, as in the config classes of HuggingFace transformers 5.
pub(crate) struct Defaults {
    pub vocab: usize,
    pub hidden: usize,
    pub intermediate: usize,
    pub layers: usize,
    pub heads: usize,
    /// `None`: as many as heads.
    pub kv_heads: Option<usize>,
    /// `None`: `hidden / heads`.
    pub head_dim: Option<usize>,
    pub max_position_embeddings: usize,
    pub original_max_position_embeddings: Option<usize>,
    pub rms_norm_eps: f64,
    pub sliding_window: Option<usize>,
    pub tie_word_embeddings: bool,
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub pad: Option<u32>,
}

/// Whether projections have biases.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bias {
    Never,
    Always,
    /// As the config field states.
    Configured,
}

impl Bias {
    /// Whether there is a bias, given the config field.
    pub(super) fn is_present(self, configured: bool) -> bool {
        match self {
            Bias::Never => false,
            Bias::Always => true,
            Bias::Configured => configured,
        }
    }
}

/// HuggingFace names of the modules with weights. Those of a layer follow `{layers}.{l}.`.
pub(crate) struct TensorNames {
    pub embed: &'static str,
    pub layers: &'static str,
    pub attn_norm: &'static str,
    pub qkv: Stacking<3>,
    /// Present with [`Facts::qk_norm`], as is `k_norm`.
    pub q_norm: &'static str,
    pub k_norm: &'static str,
    pub o: &'static str,
    pub mlp_norm: &'static str,
    pub gate_up: Stacking<2>,
    pub down: &'static str,
    pub final_norm: &'static str,
    pub lm_head: &'static str,
}

/// How a checkpoint stores projections of the same input.
#[derive(Clone, Copy)]
pub(crate) enum Stacking<const N: usize> {
    /// One tensor per projection.
    Separate([&'static str; N]),
    /// One tensor, the rows of the projections one after the other.
    Fused(&'static str),
}

/// Which layers have a sliding window.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum WindowRule {
    /// None. The class does not read `sliding_window`.
    Never,
    /// Every layer, when `sliding_window` is not null.
    EveryLayer,
    /// When `use_sliding_window` is true, the layers from `max_window_layers` on or those that
    /// `layer_types` lists.
    FromLayer,
}

/// Which rope types a class supports.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum RopeTypes {
    All,
    /// `default` and `longrope`. Early Phi-3 configs write `yarn` and mean `longrope`.
    LongRopeOnly,
}

/// What a config without `rope_theta` means. HuggingFace assumes 10000 for every class. That is
/// right for early checkpoints only; others would silently compute wrong results.
#[derive(Clone, Copy)]
pub(crate) enum MissingTheta {
    /// An error.
    Refused,
    /// 10000 for models trained on at most this many positions, unless the rope type is llama3.
    TenThousandUpTo { trained: usize },
    /// 10000 for models with a sliding window.
    TenThousandIfWindowed,
}

impl Architecture {
    /// The architecture a config names: the first of `architectures`, or `model_type` if there are
    /// none. Exports without the output head call themselves `LlamaModel`, which counts as Llama.
    ///
    /// HuggingFace loads by `model_type`. So an unknown causal class is run as the class of its
    /// `model_type`, with a remark. A class for another task is refused, and so is a `model_type`
    /// that contradicts a known class.
    pub(super) fn of(fields: &Fields<'_>, remarks: &mut Vec<Remark>) -> Result<Architecture> {
        let classes = fields.texts("architectures")?.unwrap_or_default();
        let model_type = fields.text("model_type")?;
        let find = |is_it: &dyn Fn(&Facts) -> bool| {
            Architecture::ALL.into_iter().find(|architecture| is_it(architecture.facts()))
        };
        let unsupported = |field: &str, name: &str| {
            let (name, supported) =
                (sanitize(name), Architecture::ALL.map(|a| a.to_string()).join(", "));
            let problem = format!("is `{name}`, which is not supported; supported are {supported}");
            fields.error(field, problem)
        };
        let of_type = model_type.and_then(|name| find(&|facts| facts.model_type == name));
        let Some(&class) = classes.first() else {
            return match model_type {
                None => {
                    let problem = "is missing, expected the name of a model class";
                    Err(fields.error("architectures", problem))
                }
                Some(name) => of_type.ok_or_else(|| unsupported("model_type", name)),
            };
        };
        let stem = class.strip_suffix("ForCausalLM").or(class.strip_suffix("Model"));
        let Some(found) = find(&|facts| Some(facts.stem) == stem) else {
            let causal = class.ends_with("ForCausalLM");
            let found =
                of_type.filter(|_| causal).ok_or_else(|| unsupported("architectures", class))?;
            let text = format!(
                "`architectures` names `{}`, and the model is run as {found}, the class of its \
                 `model_type`, as transformers does",
                sanitize(class)
            );
            remarks.push(fields.remark("unknown-class", text));
            return Ok(found);
        };
        let expected = found.facts().model_type;
        match model_type.filter(|&name| name != expected) {
            None => Ok(found),
            Some(other) => {
                let other = sanitize(other);
                let problem =
                    format!("is `{other}`, expected `{expected}` as `architectures` names {class}");
                Err(fields.error("model_type", problem))
            }
        }
    }
}

/// HuggingFace's name of the class.
impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}ForCausalLM", self.facts().stem)
    }
}
