//! The rotary embedding of a config, from either layout.
//!
//! transformers 4 writes `rope_theta`, `rope_scaling` and `partial_rotary_factor` side by side;
//! transformers 5 puts everything into `rope_parameters`, possibly once per layer type.

use super::Architecture;
use super::fields::Fields;
use super::rope_kind::KindFields;
use crate::{Result, RopeConfig, RopeKind};

/// Largest length in positions: f32 holds every whole number up to it.
pub(super) const MAX_POSITIONS: usize = 1 << 24;

/// What the rotary embedding depends on beside its own fields.
pub(super) struct Context {
    pub architecture: Architecture,
    pub head_dim: usize,
    pub max_position_embeddings: usize,
    /// Per layer; says which layer types occur.
    pub windows: Vec<Option<usize>>,
}

/// Reads the rotary embedding of a config.
pub(super) fn rope(root: &Fields<'_>, context: &Context) -> Result<RopeConfig> {
    let scaling = match root.object("rope_parameters")?.filter(|fields| !fields.is_empty()) {
        Some(parameters) => Some(parameters),
        None => root.object("rope_scaling")?,
    };
    let Some(scaling) = scaling else { return one(root, None, context) };
    if !["full_attention", "sliding_attention"].iter().any(|name| scaling.names(name)) {
        return one(root, Some(&scaling), context);
    }

    // Nested per layer type: only the types that occur matter, and they must agree.
    let mut agreed: Option<RopeConfig> = None;
    for (name, slides) in [("full_attention", false), ("sliding_attention", true)] {
        if !context.windows.iter().any(|window| window.is_some() == slides) {
            continue;
        }
        let Some(nested) = scaling.object(name)? else {
            return Err(
                scaling.error(name, "is missing although the model has layers of this type")
            );
        };
        let found = one(root, Some(&nested), context)?;
        if agreed.as_ref().is_some_and(|agreed| *agreed != found) {
            let problem = "differs from that of full_attention, which is not supported: all layers share one rotary embedding";
            return Err(scaling.error(name, problem));
        }
        agreed = Some(found);
    }
    match agreed {
        Some(rope) => Ok(rope),
        None => one(root, Some(&scaling), context),
    }
}

/// Reads one set of rotary fields.
fn one(root: &Fields<'_>, scaling: Option<&Fields<'_>>, context: &Context) -> Result<RopeConfig> {
    let rotary_dim = rotary_dim(root, scaling, context)?;
    let kind = match scaling {
        Some(scaling) => KindFields { root, scaling, rotary_dim, context }.read()?,
        None => RopeKind::Default,
    };
    Ok(RopeConfig { theta: theta(root, scaling, &kind, context)?, rotary_dim, kind })
}

/// `rope_theta`, of the nested object before the top level.
///
/// HuggingFace takes 10000 when it is absent. That is right for the checkpoints of early families only,
/// and silently ruins any other, so it is taken only where the rest of the config is that of such a
/// family: Llama 1 and 2 and Phi-3 (trained on at most 4096 positions), Mistral 7B v0.1 (windowed).
fn theta(
    root: &Fields<'_>,
    scaling: Option<&Fields<'_>>,
    kind: &RopeKind,
    context: &Context,
) -> Result<f64> {
    let nested =
        scaling.map(|fields| fields.number_above("rope_theta", 1.0)).transpose()?.flatten();
    if let Some(theta) =
        nested.map_or_else(|| root.number_above("rope_theta", 1.0), |theta| Ok(Some(theta)))?
    {
        return Ok(theta);
    }
    let trained = match kind {
        RopeKind::Default | RopeKind::Dynamic { .. } => context.max_position_embeddings,
        RopeKind::Linear { factor } => (context.max_position_embeddings as f64 / factor) as usize,
        RopeKind::Llama3 { original_max_position_embeddings, .. }
        | RopeKind::Yarn { original_max_position_embeddings, .. }
        | RopeKind::LongRope { original_max_position_embeddings, .. } => {
            *original_max_position_embeddings
        }
    };
    let known = match context.architecture {
        Architecture::Llama => trained <= 4096 && !matches!(kind, RopeKind::Llama3 { .. }),
        Architecture::Phi3 => trained <= 4096,
        Architecture::Mistral => context.windows.iter().any(Option::is_some),
        Architecture::Qwen2 | Architecture::Qwen3 => false,
    };
    if known {
        return Ok(10_000.0);
    }
    let problem = format!(
        "is missing, expected a number: 10000, HuggingFace's default, is not the base of such {} checkpoints",
        context.architecture
    );
    Err(root.error("rope_theta", problem))
}

/// How many components of a head rotate.
fn rotary_dim(root: &Fields<'_>, scaling: Option<&Fields<'_>>, context: &Context) -> Result<usize> {
    let name = "partial_rotary_factor";
    let holder = scaling.filter(|fields| fields.get(name).is_some()).unwrap_or(root);
    let expected = "a number above 0 and at most 1";
    let factor =
        holder.number(name, expected, |factor| factor > 0.0 && factor <= 1.0)?.unwrap_or(1.0);
    if factor != 1.0 && context.architecture != Architecture::Phi3 {
        let problem =
            format!("is {factor}, expected 1: {} rotates whole heads", context.architecture);
        return Err(holder.error(name, problem));
    }
    let rotary_dim = (context.head_dim as f64 * factor) as usize;
    if rotary_dim > 0 && rotary_dim.is_multiple_of(2) {
        return Ok(rotary_dim);
    }
    let problem = format!("makes the rotary width {rotary_dim}, expected an even number above 0");
    match factor == 1.0 {
        true => Err(root.error("head_dim", problem)),
        false => Err(holder.error(name, problem)),
    }
}
