//! A model's config as a dictionary.

use fathom_lm::ModelConfig;
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// Every default filled in; the keys are those of the library's `ModelConfig`.
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
    let rope = PyDict::new(py);
    rope.set_item("theta", config.rope.theta)?;
    rope.set_item("rotary_dim", config.rope.rotary_dim)?;
    rope.set_item("kind", format!("{:?}", config.rope.kind))?;
    dict.set_item("rope", rope)?;
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
