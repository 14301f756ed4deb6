//! Names of tensors in an adapter's file.

/// Prefix of the wrapper that PEFT puts around a model.
const WRAPPER: &str = "base_model.model.";

/// A parsed tensor name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AdapterTensorName<'a> {
    /// HuggingFace name of the module (`model.layers.0.self_attn.q_proj`).
    pub module: &'a str,
    pub role: TensorRole,
    /// Name of the adapter (`default`). PEFT usually removes it when saving.
    pub adapter: Option<&'a str>,
}

/// A tensor's role in its module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum TensorRole {
    /// `[rank, in]` of a linear layer.
    A,
    /// `[out, rank]` of a linear layer.
    B,
    /// `[out]`, added to the layer's bias.
    BBias,
    /// `[rank, vocab]` of an embedding.
    EmbeddingA,
    /// `[hidden, rank]` of an embedding.
    EmbeddingB,
    /// `base_layer.weight`: the weight of a module with a low-rank change.
    BaseWeight,
    /// `base_layer.bias`.
    BaseBias,
    /// The weight of a module without a low-rank change.
    Weight,
    /// The bias of a module without a low-rank change.
    Bias,
    /// The module before it was replaced, which has no effect.
    Original,
}

/// Parses a tensor name. Error strings complete a sentence that begins with the name.
pub(super) fn parse(name: &str) -> Result<AdapterTensorName<'_>, String> {
    let Some(name) = name.strip_prefix(WRAPPER) else {
        return Err(format!("does not begin with `{WRAPPER}`: not an adapter of a language model"));
    };
    let last = |module, last: &str| {
        let role = match last {
            "weight" => TensorRole::Weight,
            "bias" => TensorRole::Bias,
            _ => return Err("is unknown: this kind of adapter cannot be merged".to_owned()),
        };
        Ok(AdapterTensorName { module, role, adapter: None })
    };
    if let Some((module, lora)) = name.split_once(".lora_") {
        return parse_lora(module, lora);
    }
    if let Some((module, _)) = name.split_once(".original_module.") {
        return Ok(AdapterTensorName { module, role: TensorRole::Original, adapter: None });
    }
    if let Some((module, rest)) = name.split_once(".modules_to_save.") {
        let (adapter, rest) = match rest.rsplit_once('.') {
            Some((adapter, rest)) => (Some(adapter), rest),
            None => (None, rest),
        };
        return Ok(AdapterTensorName { adapter, ..last(module, rest)? });
    }
    let Some((module, rest)) = name.rsplit_once('.') else { return last("", "") };
    let name = last(module, rest)?;
    Ok(match module.strip_suffix(".base_layer") {
        None => name,
        Some(module) if name.role == TensorRole::Weight => {
            AdapterTensorName { module, role: TensorRole::BaseWeight, ..name }
        }
        Some(module) => AdapterTensorName { module, role: TensorRole::BaseBias, ..name },
    })
}

/// Parses what follows `.lora_`: `A.weight`, `A.default.weight`, `embedding_A`,
/// `embedding_A.default`.
fn parse_lora<'a>(module: &'a str, lora: &'a str) -> Result<AdapterTensorName<'a>, String> {
    let (kind, rest) = lora.split_once('.').unwrap_or((lora, ""));
    let embedding = match kind {
        "A" | "B" => None,
        "embedding_A" => Some(TensorRole::EmbeddingA),
        "embedding_B" => Some(TensorRole::EmbeddingB),
        "magnitude_vector" => return Err("belongs to DoRA, which cannot be merged".to_owned()),
        _ => return Err("belongs to an unknown variant of LoRA".to_owned()),
    };
    if let Some(role) = embedding {
        let adapter = Some(rest).filter(|name| !name.is_empty());
        return Ok(AdapterTensorName { module, role, adapter });
    }
    let (adapter, field) = match rest.rsplit_once('.') {
        Some((adapter, field)) => (Some(adapter), field),
        None => (None, rest),
    };
    let role = match (kind, field) {
        ("A", "weight") => TensorRole::A,
        ("B", "weight") => TensorRole::B,
        ("B", "bias") => TensorRole::BBias,
        _ => return Err("belongs to an unknown variant of LoRA".to_owned()),
    };
    Ok(AdapterTensorName { module, role, adapter })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_every_version_are_parsed() {
        let q = "model.layers.0.self_attn.q_proj";
        let embed = "model.embed_tokens";
        use TensorRole::{
            A, B, BBias, BaseBias, BaseWeight, Bias, EmbeddingA, EmbeddingB, Original, Weight,
        };
        for (name, module, role, adapter) in [
            ("model.layers.0.self_attn.q_proj.lora_A.weight", q, A, None),
            ("model.layers.0.self_attn.q_proj.lora_B.default.weight", q, B, Some("default")),
            ("model.layers.0.self_attn.q_proj.lora_B.bias", q, BBias, None),
            ("model.layers.0.self_attn.q_proj.base_layer.bias", q, BaseBias, None),
            ("model.layers.0.self_attn.q_proj.bias", q, Bias, None),
            ("model.embed_tokens.lora_embedding_A", embed, EmbeddingA, None),
            ("model.embed_tokens.lora_embedding_B.x", embed, EmbeddingB, Some("x")),
            ("model.embed_tokens.base_layer.weight", embed, BaseWeight, None),
            ("model.embed_tokens.original_module.weight", embed, Original, None),
            ("model.embed_tokens.modules_to_save.weight", embed, Weight, None),
            ("model.embed_tokens.modules_to_save.a.weight", embed, Weight, Some("a")),
            ("lm_head.weight", "lm_head", Weight, None),
        ] {
            let full = format!("base_model.model.{name}");
            assert_eq!(parse(&full), Ok(AdapterTensorName { module, role, adapter }), "{name}");
        }
    }

    #[test]
    fn names_of_other_adapters_are_refused() {
        for (name, problem) in [
            ("model.layers.0.q_proj.lora_A.weight", "does not begin with `base_model.model.`"),
            ("base_model.model.q.lora_magnitude_vector", "belongs to DoRA"),
            ("base_model.model.q.lora_magnitude_vector.default.weight", "belongs to DoRA"),
            ("base_model.model.q.lora_E", "an unknown variant of LoRA"),
            ("base_model.model.q.lora_A.bias", "an unknown variant of LoRA"),
            ("base_model.model.q.lora_A", "an unknown variant of LoRA"),
            ("base_model.model.q.hada_w1_a", "is unknown"),
            ("base_model.model.e.token_adapter.trainable_tokens_delta", "is unknown"),
            ("base_model.model.weight", "is unknown"),
        ] {
            let found = parse(name).err().unwrap_or_default();
            assert!(found.contains(problem), "{name}: {found}");
        }
    }
}
