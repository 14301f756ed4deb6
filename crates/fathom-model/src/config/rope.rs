//! The rotary embedding of a config, from either layout.
//!
//! transformers 4 writes `rope_theta`, `rope_scaling` and `partial_rotary_factor` side by side;
//! transformers 5 puts everything into `rope_parameters`, possibly once per layer type.

use super::Architecture;
use super::fields::Fields;
use super::rope_kind::KindFields;
use crate::brief::brief;
use crate::{Remark, Result, RopeConfig, RopeKind};

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
pub(super) fn rope(
    root: &Fields<'_>,
    context: &Context,
    remarks: &mut Vec<Remark>,
) -> Result<RopeConfig> {
    let older = root.object("rope_scaling")?.filter(|fields| !fields.is_empty());
    let Some(newer) = root.object("rope_parameters")?.filter(|fields| !fields.is_empty()) else {
        return of(root, older.as_ref(), context, remarks);
    };
    let rope = of(root, Some(&newer), context, remarks)?;
    // Both layouts in one file: transformers reads the older one.
    if let Some(older) = older
        && of(root, Some(&older), context, &mut Vec::new()).ok().as_ref() != Some(&rope)
    {
        let text = "holds both `rope_parameters` and `rope_scaling`, which differ: the former is \
                    used, where transformers takes the latter";
        remarks.push(root.remark("two-ropes", text));
    }
    Ok(rope)
}

/// Reads the rotary embedding of the object `scaling`, which may be nested per layer type.
fn of(
    root: &Fields<'_>,
    scaling: Option<&Fields<'_>>,
    context: &Context,
    remarks: &mut Vec<Remark>,
) -> Result<RopeConfig> {
    let types = ["full_attention", "sliding_attention"];
    let nested = scaling.filter(|scaling| types.iter().any(|name| scaling.names(name)));
    let Some(scaling) = nested else { return one(root, scaling, context, remarks) };

    // Only the types that occur matter, and they must agree.
    let mut agreed: Option<RopeConfig> = None;
    for (name, slides) in types.into_iter().zip([false, true]) {
        if !context.windows.iter().any(|window| window.is_some() == slides) {
            continue;
        }
        let Some(nested) = scaling.object(name)? else {
            return Err(
                scaling.error(name, "is missing although the model has layers of this type")
            );
        };
        let found = one(root, Some(&nested), context, remarks)?;
        if agreed.as_ref().is_some_and(|agreed| *agreed != found) {
            let problem = "differs from that of full_attention, which is not supported: all layers share one rotary embedding";
            return Err(scaling.error(name, problem));
        }
        agreed = Some(found);
    }
    match agreed {
        Some(rope) => Ok(rope),
        None => one(root, Some(scaling), context, remarks),
    }
}

/// Reads one set of rotary fields.
fn one(
    root: &Fields<'_>,
    scaling: Option<&Fields<'_>>,
    context: &Context,
    remarks: &mut Vec<Remark>,
) -> Result<RopeConfig> {
    let rotary_dim = rotary_dim(root, scaling, context)?;
    let kind = match scaling {
        Some(scaling) => KindFields { root, scaling, rotary_dim, context }.read()?,
        None => RopeKind::Default,
    };
    let rope = RopeConfig { theta: theta(root, scaling, &kind, context)?, rotary_dim, kind };
    remarks.extend(scaling.and_then(|scaling| without_effect(scaling, &rope.kind)));
    Ok(rope)
}

/// A remark about the fields of a rotary embedding that nothing was read from: those of another
/// type, and those of none. transformers has no use for them either.
fn without_effect(scaling: &Fields<'_>, kind: &RopeKind) -> Option<Remark> {
    const SHOWN: usize = 5;
    // A note of how the model came about.
    let unread: Vec<&str> =
        scaling.unread().into_iter().filter(|&name| name != "finetuned").collect();
    let more = unread.len().saturating_sub(SHOWN);
    let shown = unread.iter().take(SHOWN).map(|name| scaling.full_name(name));
    let mut names = shown.map(|name| format!("`{}`", brief(&name))).collect::<Vec<_>>().join(", ");
    if more > 0 {
        names += &format!(" and {more} more");
    }
    let (has, them) = match unread.len() {
        0 => return None,
        1 => ("has", "it"),
        _ => ("have", "them"),
    };
    let kind = kind.name();
    let text = format!(
        "{names} {has} no effect: the rope type {kind} does not use {them}, in transformers neither"
    );
    Some(scaling.remark("unused-rope-fields", text))
}

/// `rope_theta`, of the nested object before the top level.
///
/// HuggingFace takes 10000 when it is absent. That is right for the checkpoints of early families
/// only, and silently ruins any other, so it is taken only where the rest of the config is that of
/// such a family: Llama 1 and 2 and Phi-3 (trained on at most 4096 positions), Mistral 7B v0.1
/// (windowed).
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
