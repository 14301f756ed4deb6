//! The rotary embedding of a config, from either layout.
//!
//! transformers 4 writes `rope_theta`, `rope_scaling` and `partial_rotary_factor` side by side;
//! transformers 5 puts everything into `rope_parameters`, possibly once per layer type.

use super::Architecture;
use super::fields::Fields;
use crate::rope::{longrope_attention_factor, yarn_attention_factor};
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
        Some(scaling) => kind(root, scaling, rotary_dim, context)?,
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
    if rotary_dim == 0 || !rotary_dim.is_multiple_of(2) {
        let field = if factor == 1.0 { "head_dim" } else { name };
        let problem =
            format!("makes the rotary width {rotary_dim}, expected an even number above 0");
        return Err(holder.error(field, problem));
    }
    Ok(rotary_dim)
}

/// The rope type with its parameters, HuggingFace's defaults filled in.
fn kind(
    root: &Fields<'_>,
    scaling: &Fields<'_>,
    rotary_dim: usize,
    context: &Context,
) -> Result<RopeKind> {
    let field = if scaling.get("rope_type").is_some() { "rope_type" } else { "type" };
    let name = match scaling.text(field)? {
        Some(name) => name,
        None if scaling.names("factor") || scaling.names("long_factor") => {
            return Err(scaling.error("rope_type", "is missing, expected the name of a rope type"));
        }
        None => "default",
    };
    let name = match (context.architecture, name) {
        // Early Phi-3 configs call longrope `su` or even `yarn`.
        (_, "su") => "longrope",
        (Architecture::Phi3, "yarn") => "longrope",
        (Architecture::Phi3, name) if name != "default" && name != "longrope" => {
            let problem =
                format!("is `{name}`, expected default or longrope for {}", context.architecture);
            return Err(scaling.error(field, problem));
        }
        (_, name) => name,
    };
    let missing = |name| scaling.error(name, "is missing, expected a number above 0");
    let factor = || scaling.number_above("factor", 0.0);
    let required = |name| scaling.number_above(name, 0.0)?.ok_or_else(|| missing(name));
    let extended = |original| context.max_position_embeddings as f64 / original as f64;
    match name {
        "default" => Ok(RopeKind::Default),
        "linear" => Ok(RopeKind::Linear { factor: required("factor")? }),
        "dynamic" if rotary_dim <= 2 => {
            Err(scaling.error(field, "is `dynamic`, which needs a rotary width above 2"))
        }
        "dynamic" => Ok(RopeKind::Dynamic {
            factor: required("factor")?,
            max_position_embeddings: context.max_position_embeddings,
        }),
        "llama3" => {
            let low_freq_factor = required("low_freq_factor")?;
            let high_freq_factor = required("high_freq_factor")?;
            if high_freq_factor <= low_freq_factor {
                let problem = format!(
                    "is {high_freq_factor}, expected more than low_freq_factor, {low_freq_factor}"
                );
                return Err(scaling.error("high_freq_factor", problem));
            }
            Ok(RopeKind::Llama3 {
                factor: required("factor")?,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings: original(root, scaling, context)?,
            })
        }
        "yarn" => {
            let original = original(root, scaling, context)?;
            // Absent is an error, null is not: null asks for the ratio of the two lengths.
            let factor = match scaling.names("factor") {
                true => factor()?.unwrap_or(extended(original)),
                false => return Err(missing("factor")),
            };
            // HuggingFace takes a zero for "not given".
            let given = |name| {
                let number =
                    scaling.number(name, "a number of at least 0", |number| number >= 0.0)?;
                Ok(number.filter(|&number| number != 0.0))
            };
            let (mscale, mscale_all_dim) = (given("mscale")?, given("mscale_all_dim")?);
            let attention_factor = attention_factor(scaling)?
                .unwrap_or_else(|| yarn_attention_factor(factor, mscale, mscale_all_dim));
            Ok(RopeKind::Yarn {
                factor,
                attention_factor,
                beta_fast: given("beta_fast")?.unwrap_or(32.0),
                beta_slow: given("beta_slow")?.unwrap_or(1.0),
                original_max_position_embeddings: original,
                truncate: scaling.flag("truncate")?.unwrap_or(true),
            })
        }
        "longrope" => {
            let original = original(root, scaling, context)?;
            let factors = |name| {
                let factors = scaling.positive_numbers(name, rotary_dim / 2)?;
                let problem =
                    || format!("is missing, expected a list of {} numbers", rotary_dim / 2);
                factors.ok_or_else(|| scaling.error(name, problem()))
            };
            let factor = factor()?.unwrap_or(extended(original));
            Ok(RopeKind::LongRope {
                short_factor: factors("short_factor")?,
                long_factor: factors("long_factor")?,
                original_max_position_embeddings: original,
                attention_factor: attention_factor(scaling)?
                    .unwrap_or_else(|| longrope_attention_factor(factor, original)),
            })
        }
        other => {
            let known = "default, linear, dynamic, llama3, yarn and longrope (su)";
            Err(scaling.error(
                field,
                format!("is `{other}`, which is not supported; supported are {known}"),
            ))
        }
    }
}

/// The factor on cosines and sines, where the config names it.
fn attention_factor(scaling: &Fields<'_>) -> Result<Option<f64>> {
    scaling.number("attention_factor", "a number of at least 0", |factor| factor >= 0.0)
}

/// `original_max_position_embeddings` as HuggingFace looks for it: the top level first (where Phi3's
/// class has a default, so that the nested one never counts), then the nested object, then
/// `max_position_embeddings`. At least 2, because its logarithm divides.
fn original(root: &Fields<'_>, scaling: &Fields<'_>, context: &Context) -> Result<usize> {
    let name = "original_max_position_embeddings";
    let range = 2..=MAX_POSITIONS;
    if let Some(top) = root.size(name, range.clone())? {
        return Ok(top);
    }
    if let Some(default) = context.architecture.defaults().original_max_position_embeddings {
        return Ok(default);
    }
    Ok(scaling.size(name, range)?.unwrap_or(context.max_position_embeddings.max(2)))
}
