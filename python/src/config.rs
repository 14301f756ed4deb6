//! A model's config as a dictionary.

use fathom_lm::ModelConfig;
use fathom_lm::fathom_model::{RopeConfig, RopeKind};
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// The config with every default filled in; keys are the fields of the library's `ModelConfig`.
pub fn to_dict<'py>(py: Python<'py>, config: &ModelConfig) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("architecture", config.architecture.to_string())?;
    dict.set_item("layers", config.layers)?;
    dict.set_item("hidden", config.hidden)?;
    dict.set_item("intermediate", config.intermediate)?;
    dict.set_item("heads", config.heads)?;
    dict.set_item("kv_heads", config.kv_heads)?;
    dict.set_item("head_dim", config.head_dim)?;
    dict.set_item("vocab", config.vocab)?;
    dict.set_item("rms_norm_eps", config.rms_norm_eps)?;
    dict.set_item("rope", rope(py, &config.rope)?)?;
    dict.set_item("windows", config.windows.clone())?;
    dict.set_item("tie_word_embeddings", config.tie_word_embeddings)?;
    dict.set_item("qkv_bias", config.qkv_bias)?;
    dict.set_item("o_bias", config.o_bias)?;
    dict.set_item("mlp_bias", config.mlp_bias)?;
    dict.set_item("qk_norm", config.qk_norm)?;
    dict.set_item("max_position_embeddings", config.max_position_embeddings)?;
    dict.set_item("bos_token_id", config.bos_token_id)?;
    dict.set_item("eos_token_ids", config.eos_token_ids.clone())?;
    dict.set_item("pad_token_id", config.pad_token_id)?;
    Ok(dict)
}

/// `theta`, `rotary_dim`, `kind` and the parameters of that kind. The values of `kind` are those of
/// HuggingFace's `rope_type`, and the parameters have the names of its `rope_parameters`.
fn rope<'py>(py: Python<'py>, rope: &RopeConfig) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("theta", rope.theta)?;
    dict.set_item("rotary_dim", rope.rotary_dim)?;
    dict.set_item("kind", rope.kind.name())?;
    match &rope.kind {
        RopeKind::Default => {}
        RopeKind::Linear { factor } => dict.set_item("factor", factor)?,
        RopeKind::Dynamic { factor, max_position_embeddings } => {
            dict.set_item("factor", factor)?;
            dict.set_item("max_position_embeddings", max_position_embeddings)?;
        }
        RopeKind::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        } => {
            dict.set_item("factor", factor)?;
            dict.set_item("low_freq_factor", low_freq_factor)?;
            dict.set_item("high_freq_factor", high_freq_factor)?;
            dict.set_item("original_max_position_embeddings", original_max_position_embeddings)?;
        }
        RopeKind::Yarn {
            factor,
            attention_factor,
            beta_fast,
            beta_slow,
            original_max_position_embeddings,
            truncate,
        } => {
            dict.set_item("factor", factor)?;
            dict.set_item("attention_factor", attention_factor)?;
            dict.set_item("beta_fast", beta_fast)?;
            dict.set_item("beta_slow", beta_slow)?;
            dict.set_item("original_max_position_embeddings", original_max_position_embeddings)?;
            dict.set_item("truncate", truncate)?;
        }
        RopeKind::LongRope {
            short_factor,
            long_factor,
            original_max_position_embeddings,
            attention_factor,
        } => {
            dict.set_item("short_factor", decimals(short_factor))?;
            dict.set_item("long_factor", decimals(long_factor))?;
            dict.set_item("original_max_position_embeddings", original_max_position_embeddings)?;
            dict.set_item("attention_factor", attention_factor)?;
        }
    }
    Ok(dict)
}

/// The shortest decimals that round to these values, so that `1.08` in the file is `1.08` here.
fn decimals(values: &[f32]) -> Vec<f64> {
    values.iter().map(|value| value.to_string().parse().unwrap_or(f64::from(*value))).collect()
}
