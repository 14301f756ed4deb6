//! The model classes Fathom runs, and what HuggingFace assumes where their `config.json` is silent.

use std::fmt;

use super::fields::Fields;
use crate::brief::brief;
use crate::{Remark, Result};

/// The model classes Fathom runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// `LlamaForCausalLM`: Llama 1 to 3, CodeLlama, R1-Distill-Llama.
    Llama,
    /// `MistralForCausalLM`: Mistral 7B, Mathstral.
    Mistral,
    /// `Qwen2ForCausalLM`: Qwen2, Qwen2.5, QwQ, R1-Distill-Qwen.
    Qwen2,
    /// `Qwen3ForCausalLM`: the dense Qwen3.
    Qwen3,
    /// `Phi3ForCausalLM`: Phi-3, Phi-4, Phi-4-mini.
    Phi3,
}

impl Architecture {
    /// Every supported architecture.
    pub const ALL: [Architecture; 5] = [
        Architecture::Llama,
        Architecture::Mistral,
        Architecture::Qwen2,
        Architecture::Qwen3,
        Architecture::Phi3,
    ];

    /// The `model_type` of its config.
    fn model_type(self) -> &'static str {
        match self {
            Architecture::Llama => "llama",
            Architecture::Mistral => "mistral",
            Architecture::Qwen2 => "qwen2",
            Architecture::Qwen3 => "qwen3",
            Architecture::Phi3 => "phi3",
        }
    }

    /// The class name without what it is used for: `Llama` of `LlamaForCausalLM`.
    fn stem(self) -> &'static str {
        match self {
            Architecture::Llama => "Llama",
            Architecture::Mistral => "Mistral",
            Architecture::Qwen2 => "Qwen2",
            Architecture::Qwen3 => "Qwen3",
            Architecture::Phi3 => "Phi3",
        }
    }

    /// The architecture a config names: the first of `architectures`, or `model_type` without them.
    /// `LlamaModel`, as exports without the output head call themselves, counts as Llama.
    ///
    /// HuggingFace loads by `model_type`. So a causal model of a class nobody knows is what its
    /// `model_type` says, with a remark; a class for another task, or another class Fathom runs, is
    /// not.
    pub(super) fn of(fields: &Fields<'_>, remarks: &mut Vec<Remark>) -> Result<Architecture> {
        let classes = fields.texts("architectures")?.unwrap_or_default();
        let model_type = fields.text("model_type")?;
        let find = |is_it: &dyn Fn(Architecture) -> bool| {
            Architecture::ALL.into_iter().find(|&architecture| is_it(architecture))
        };
        let unsupported = |field: &str, name: &str| {
            let (name, supported) =
                (brief(name), Architecture::ALL.map(|a| a.to_string()).join(", "));
            let problem = format!("is `{name}`, which is not supported; supported are {supported}");
            fields.error(field, problem)
        };
        let of_type = model_type.and_then(|name| find(&|a| a.model_type() == name));
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
        let Some(found) = find(&|a| Some(a.stem()) == stem) else {
            let causal = class.ends_with("ForCausalLM");
            let found =
                of_type.filter(|_| causal).ok_or_else(|| unsupported("architectures", class))?;
            let text = format!(
                "`architectures` names `{}`, and the model is run as {found}, the class of its \
                 `model_type`, as transformers does",
                brief(class)
            );
            remarks.push(fields.remark("unknown-class", text));
            return Ok(found);
        };
        // A config that says two things is another model to HuggingFace.
        match model_type.filter(|&name| name != found.model_type()) {
            None => Ok(found),
            Some(other) => {
                let (other, expected) = (brief(other), found.model_type());
                let problem =
                    format!("is `{other}`, expected `{expected}` as `architectures` names {class}");
                Err(fields.error("model_type", problem))
            }
        }
    }

    /// What HuggingFace's config class assumes for keys that are absent.
    pub(super) fn defaults(self) -> Defaults {
        let llama = Defaults {
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
            bos: Some(1),
            eos: Some(2),
            pad: None,
        };
        match self {
            Architecture::Llama => llama,
            Architecture::Mistral => Defaults {
                intermediate: 14336,
                kv_heads: Some(8),
                max_position_embeddings: 4096 * 32,
                sliding_window: Some(4096),
                ..llama
            },
            Architecture::Qwen2 | Architecture::Qwen3 => Defaults {
                vocab: 151_936,
                intermediate: 22016,
                kv_heads: Some(32),
                head_dim: (self == Architecture::Qwen3).then_some(128),
                max_position_embeddings: 32768,
                sliding_window: Some(4096),
                bos: None,
                eos: None,
                ..llama
            },
            Architecture::Phi3 => Defaults {
                vocab: 32064,
                hidden: 3072,
                intermediate: 8192,
                max_position_embeddings: 4096,
                original_max_position_embeddings: Some(4096),
                rms_norm_eps: 1e-5,
                eos: Some(32000),
                pad: Some(32000),
                ..llama
            },
        }
    }
}

/// The class name HuggingFace gives it.
impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}ForCausalLM", self.stem())
    }
}

/// Values of absent keys, as in the config classes of HuggingFace transformers 5.
pub(super) struct Defaults {
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
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub pad: Option<u32>,
}
