//! Reads the rotary embedding of a config, in either of two layouts.
//!
//! transformers 4 writes `rope_theta`, `rope_scaling` and `partial_rotary_factor` side by side;
//! transformers 5 puts everything into `rope_parameters`, possibly once per layer type.

use super::Architecture;
use super::architecture::MissingTheta;
use super::fields::Fields;
use super::rope_kind::RopeTypeFields;
use crate::sanitize::sanitize;
use crate::{Remark, Result, RopeConfig, RopeKind};

/// Largest number of positions: f32 represents every integer up to it.
pub(super) const MAX_POSITIONS: usize = 1 << 24;

/// What the rotary embedding depends on besides its own fields.
pub(super) struct RopeContext {
    pub architecture: Architecture,
    pub head_dim: usize,
    pub max_position_embeddings: usize,
    /// Sliding window per layer; determines which layer types occur.
    pub windows: Vec<Option<usize>>,
}

/// Reads the rotary embedding of a config.
pub(super) fn rope(
    root: &Fields<'_>,
    context: &RopeContext,
    remarks: &mut Vec<Remark>,
) -> Result<RopeConfig> {
    let older = root.object("rope_scaling")?.filter(|fields| !fields.is_empty());
    let Some(newer) = root.object("rope_parameters")?.filter(|fields| !fields.is_empty()) else {
        return read_layout(root, older.as_ref(), context, remarks);
    };
    let rope = read_layout(root, Some(&newer), context, remarks)?;
    // With both layouts in one file, transformers reads the older one.
    if let Some(older) = older
        && read_layout(root, Some(&older), context, &mut Vec::new()).ok().as_ref() != Some(&rope)
    {
        let text = "holds both `rope_parameters` and `rope_scaling`, which differ: the former is \
                    used, although transformers uses the latter";
        remarks.push(root.remark("two-ropes", text));
    }
    Ok(rope)
}

/// Reads the rotary embedding of the object `scaling`, which may be nested per layer type.
fn read_layout(
    root: &Fields<'_>,
    scaling: Option<&Fields<'_>>,
    context: &RopeContext,
    remarks: &mut Vec<Remark>,
) -> Result<RopeConfig> {
    let types = ["full_attention", "sliding_attention"];
    let nested = scaling.filter(|scaling| types.iter().any(|name| scaling.names(name)));
    let Some(scaling) = nested else { return read_fields(root, scaling, context, remarks) };

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
        let found = read_fields(root, Some(&nested), context, remarks)?;
        if agreed.as_ref().is_some_and(|agreed| *agreed != found) {
            let problem = "differs from that of full_attention, which is not supported: all \
                           layers share one rotary embedding";
            return Err(scaling.error(name, problem));
        }
        agreed = Some(found);
    }
    match agreed {
        Some(rope) => Ok(rope),
        None => read_fields(root, Some(scaling), context, remarks),
    }
}

/// Reads one set of rotary fields.
fn read_fields(
    root: &Fields<'_>,
    scaling: Option<&Fields<'_>>,
    context: &RopeContext,
    remarks: &mut Vec<Remark>,
) -> Result<RopeConfig> {
    let rotary_dim = rotary_dim(root, scaling, context)?;
    let kind = match scaling {
        Some(scaling) => RopeTypeFields { root, scaling, rotary_dim, context }.read()?,
        None => RopeKind::Default,
    };
    let rope = RopeConfig { theta: theta(root, scaling, &kind, context)?, rotary_dim, kind };
    remarks.extend(scaling.and_then(|scaling| unused_fields(scaling, &rope.kind)));
    Ok(rope)
}

/// A remark about rotary fields that were not read: fields of another rope type and unknown ones.
/// transformers ignores them too.
fn unused_fields(scaling: &Fields<'_>, kind: &RopeKind) -> Option<Remark> {
    const SHOWN: usize = 5;
    // `finetuned` only records the history of the model.
    let unread: Vec<&str> =
        scaling.unread().into_iter().filter(|&name| name != "finetuned").collect();
    let more = unread.len().saturating_sub(SHOWN);
    let shown = unread.iter().take(SHOWN).map(|name| scaling.full_name(name));
    let mut names =
        shown.map(|name| format!("`{}`", sanitize(&name))).collect::<Vec<_>>().join(", ");
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
        "{names} {has} no effect: the rope type {kind} does not use {them}, here or in transformers"
    );
    Some(scaling.remark("unused-rope-fields", text))
}

/// `rope_theta`, from the nested object or else the top level. If it is absent, the class's
/// [`MissingTheta`] applies.
fn theta(
    root: &Fields<'_>,
    scaling: Option<&Fields<'_>>,
    kind: &RopeKind,
    context: &RopeContext,
) -> Result<f64> {
    let nested =
        scaling.map(|fields| fields.number_above("rope_theta", 1.0)).transpose()?.flatten();
    if let Some(theta) =
        nested.map_or_else(|| root.number_above("rope_theta", 1.0), |theta| Ok(Some(theta)))?
    {
        return Ok(theta);
    }
    let trained_len = match kind {
        RopeKind::Default | RopeKind::Dynamic { .. } => context.max_position_embeddings,
        RopeKind::Linear { factor } => (context.max_position_embeddings as f64 / factor) as usize,
        RopeKind::Llama3 { original_max_position_embeddings, .. }
        | RopeKind::Yarn { original_max_position_embeddings, .. }
        | RopeKind::LongRope { original_max_position_embeddings, .. } => {
            *original_max_position_embeddings
        }
    };
    let is_ten_thousand = match context.architecture.facts().missing_theta {
        MissingTheta::Refused => false,
        MissingTheta::TenThousandUpTo { trained } => {
            trained_len <= trained && !matches!(kind, RopeKind::Llama3 { .. })
        }
        MissingTheta::TenThousandIfWindowed => context.windows.iter().any(Option::is_some),
    };
    if is_ten_thousand {
        return Ok(10_000.0);
    }
    let problem = format!(
        "is missing, expected a number: 10000, HuggingFace's default, is not the base of such {} \
         checkpoints",
        context.architecture
    );
    Err(root.error("rope_theta", problem))
}

/// How many components of a head are rotated.
fn rotary_dim(
    root: &Fields<'_>,
    scaling: Option<&Fields<'_>>,
    context: &RopeContext,
) -> Result<usize> {
    let name = "partial_rotary_factor";
    let holder = scaling.filter(|fields| fields.get(name).is_some()).unwrap_or(root);
    let expected = "a number above 0 and at most 1";
    let factor =
        holder.number(name, expected, |factor| factor > 0.0 && factor <= 1.0)?.unwrap_or(1.0);
    if factor != 1.0 && !context.architecture.facts().partial_rotary {
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
