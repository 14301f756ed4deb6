//! Names of tensors in an adapter's file.

/// What PEFT wraps a model in.
const WRAPPER: &str = "base_model.model.";

/// A tensor's name, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Name<'a> {
    /// HuggingFace name of the module (`model.layers.0.self_attn.q_proj`).
    pub module: &'a str,
    pub part: Part,
    /// Name of the adapter (`default`), which PEFT takes off as it saves.
    pub adapter: Option<&'a str>,
}

/// What of a module a tensor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Part {
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
    /// `base_layer.weight`: the weight under the change.
    BaseWeight,
    /// `base_layer.bias`.
    BaseBias,
    /// The weight of a module that has no change.
    Weight,
    /// The bias of one.
    Bias,
    /// What a module was before it was replaced, which has no effect.
    Original,
}

/// Takes a name apart; problems are the end of a sentence that begins with it.
pub(super) fn parse(name: &str) -> Result<Name<'_>, String> {
    let Some(name) = name.strip_prefix(WRAPPER) else {
        return Err(format!("does not begin with `{WRAPPER}`: not an adapter of a language model"));
    };
    let last = |module, last: &str| {
        let part = match last {
            "weight" => Part::Weight,
            "bias" => Part::Bias,
            _ => return Err("is not known here: this kind of adapter cannot be merged".to_owned()),
        };
        Ok(Name { module, part, adapter: None })
    };
    if let Some((module, lora)) = name.split_once(".lora_") {
        return parse_lora(module, lora);
    }
    if let Some((module, _)) = name.split_once(".original_module.") {
        return Ok(Name { module, part: Part::Original, adapter: None });
    }
    if let Some((module, rest)) = name.split_once(".modules_to_save.") {
        let (adapter, rest) = match rest.rsplit_once('.') {
            Some((adapter, rest)) => (Some(adapter), rest),
            None => (None, rest),
        };
        return Ok(Name { adapter, ..last(module, rest)? });
    }
    let Some((module, rest)) = name.rsplit_once('.') else { return last("", "") };
    let name = last(module, rest)?;
    Ok(match module.strip_suffix(".base_layer") {
        None => name,
        Some(module) if name.part == Part::Weight => {
            Name { module, part: Part::BaseWeight, ..name }
        }
        Some(module) => Name { module, part: Part::BaseBias, ..name },
    })
}

/// What follows `.lora_`: `A.weight`, `A.default.weight`, `embedding_A`, `embedding_A.default`.
fn parse_lora<'a>(module: &'a str, lora: &'a str) -> Result<Name<'a>, String> {
    let (kind, rest) = lora.split_once('.').unwrap_or((lora, ""));
    let embedding = match kind {
        "A" | "B" => None,
        "embedding_A" => Some(Part::EmbeddingA),
        "embedding_B" => Some(Part::EmbeddingB),
        "magnitude_vector" => return Err("is of DoRA, which cannot be merged here".to_owned()),
        _ => return Err("is of a variant of LoRA that is not known here".to_owned()),
    };
    if let Some(part) = embedding {
        return Ok(Name { module, part, adapter: Some(rest).filter(|name| !name.is_empty()) });
    }
    let (adapter, field) = match rest.rsplit_once('.') {
        Some((adapter, field)) => (Some(adapter), field),
        None => (None, rest),
    };
    let part = match (kind, field) {
        ("A", "weight") => Part::A,
        ("B", "weight") => Part::B,
        ("B", "bias") => Part::BBias,
        _ => return Err("is of a variant of LoRA that is not known here".to_owned()),
    };
    Ok(Name { module, part, adapter })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_every_version_are_taken_apart() {
        let q = "model.layers.0.self_attn.q_proj";
        let embed = "model.embed_tokens";
        for (name, module, part, adapter) in [
            ("model.layers.0.self_attn.q_proj.lora_A.weight", q, Part::A, None),
            ("model.layers.0.self_attn.q_proj.lora_B.default.weight", q, Part::B, Some("default")),
            ("model.layers.0.self_attn.q_proj.lora_B.bias", q, Part::BBias, None),
            ("model.layers.0.self_attn.q_proj.base_layer.bias", q, Part::BaseBias, None),
            ("model.layers.0.self_attn.q_proj.bias", q, Part::Bias, None),
            ("model.embed_tokens.lora_embedding_A", embed, Part::EmbeddingA, None),
            ("model.embed_tokens.lora_embedding_B.x", embed, Part::EmbeddingB, Some("x")),
            ("model.embed_tokens.base_layer.weight", embed, Part::BaseWeight, None),
            ("model.embed_tokens.original_module.weight", embed, Part::Original, None),
            ("model.embed_tokens.modules_to_save.weight", embed, Part::Weight, None),
            ("model.embed_tokens.modules_to_save.a.weight", embed, Part::Weight, Some("a")),
            ("lm_head.weight", "lm_head", Part::Weight, None),
        ] {
            let full = format!("base_model.model.{name}");
            assert_eq!(parse(&full), Ok(Name { module, part, adapter }), "{name}");
        }
    }

    #[test]
    fn names_of_other_adapters_are_refused() {
        for (name, problem) in [
            ("model.layers.0.q_proj.lora_A.weight", "does not begin with `base_model.model.`"),
            ("base_model.model.q.lora_magnitude_vector", "is of DoRA"),
            ("base_model.model.q.lora_magnitude_vector.default.weight", "is of DoRA"),
            ("base_model.model.q.lora_E", "a variant of LoRA"),
            ("base_model.model.q.lora_A.bias", "a variant of LoRA"),
            ("base_model.model.q.lora_A", "a variant of LoRA"),
            ("base_model.model.q.hada_w1_a", "is not known here"),
            ("base_model.model.e.token_adapter.trainable_tokens_delta", "is not known here"),
            ("base_model.model.weight", "is not known here"),
        ] {
            let found = parse(name).err().unwrap_or_default();
            assert!(found.contains(problem), "{name}: {found}");
        }
    }
}
