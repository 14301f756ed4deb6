//! Config fields that change what other model families compute, and that the class at hand ignores.

use serde_json::Value;

use super::ModelConfig;
use super::architecture::WindowRule;
use super::fields::{Fields, shown};
use crate::Remark;

/// A field of other families, and whether a value of it would change the computation.
type ForeignField = (&'static str, fn(&Value) -> bool);

const FOREIGN: [ForeignField; 25] = [
    ("attn_logit_softcapping", is_given),
    ("final_logit_softcapping", is_given),
    ("query_pre_attn_scalar", is_given),
    ("logit_scale", is_not_one),
    ("logits_scaling", is_not_one),
    ("embedding_multiplier", is_not_one),
    ("residual_multiplier", is_not_one),
    ("lm_head_multiplier", is_not_one),
    ("scale_emb", is_not_one),
    ("scale_depth", is_not_one),
    ("dim_model_base", is_given),
    ("qk_layernorm", is_true),
    ("use_qk_norm", is_true),
    ("qk_norm", is_true),
    ("clip_qkv", is_given),
    ("rope_interleaved", is_true),
    ("rope_local_base_freq", is_given),
    ("attention_chunk_size", is_given),
    ("no_rope_layers", is_given),
    ("no_rope_layer_interval", is_given),
    ("alibi", is_true),
    ("parallel_attn", is_true),
    ("use_parallel_residual", is_true),
    ("attention_sinks", is_true),
    ("num_nextn_predict_layers", is_given),
];

/// A remark about fields of other families that the parser did not read. transformers ignores them
/// as well, so the model runs as it does there, but it may not be the model that was trained.
pub(super) fn remark(fields: &Fields<'_>, config: &ModelConfig) -> Option<Remark> {
    let unread = fields.unread();
    let mut found: Vec<String> = Vec::new();
    let mut add = |name: &str, value: &Value| found.push(format!("`{name}` ({})", shown(value)));
    for (name, matters) in FOREIGN.into_iter().filter(|(name, _)| unread.contains(name)) {
        if let Some(value) = fields.get(name).filter(|value| matters(value)) {
            add(name, value);
        }
    }
    if let Some(value) = fields.get("sliding_window").filter(|value| is_given(value))
        && config.architecture.facts().windows == WindowRule::Never
    {
        add("sliding_window", value);
    }
    // Attention is always scaled by 1/√head_dim, so this value of the field changes nothing.
    let usual = 1.0 / (config.head_dim as f64).sqrt();
    let differs = |value: &&Value| value.as_f64().is_none_or(|by| (by / usual - 1.0).abs() > 1e-4);
    if let Some(value) = fields.get("attention_multiplier").filter(differs) {
        add("attention_multiplier", value);
    }
    let (has, it) = match found.len() {
        0 => return None,
        1 => ("has", "it"),
        _ => ("have", "them"),
    };
    let text = format!(
        "{} {has} no effect: {} does not read {it}, here or in transformers",
        found.join(", "),
        config.architecture
    );
    Some(fields.remark("unused-config-fields", text))
}

fn is_given(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(items) => !items.is_empty(),
        other => other.as_f64() != Some(0.0),
    }
}

fn is_true(value: &Value) -> bool {
    value.as_bool() == Some(true)
}

fn is_not_one(value: &Value) -> bool {
    value.as_f64() != Some(1.0)
}
