//! Which layers have a sliding window.

use super::Architecture;
use super::fields::Fields;
use crate::Result;
use crate::brief::brief;

/// Largest window; beyond any sequence that can be run.
const MAX_WINDOW: usize = 1 << 31;

/// The window of each layer.
///
/// Mistral and Phi3 window every layer when `sliding_window` is not null. Qwen2 and Qwen3 do so
/// only when `use_sliding_window` is true, and then from layer `max_window_layers` on, unless
/// `layer_types` says layer by layer.
pub(super) fn windows(
    fields: &Fields<'_>,
    architecture: Architecture,
    layers: usize,
) -> Result<Vec<Option<usize>>> {
    let per_layer = match architecture {
        Architecture::Llama => return agreeing(fields, architecture, vec![None; layers]),
        Architecture::Mistral | Architecture::Phi3 => {
            let window = window(fields, architecture)?;
            return agreeing(fields, architecture, vec![window; layers]);
        }
        Architecture::Qwen2 | Architecture::Qwen3 => layer_types(fields, layers)?,
    };
    let window = match fields.flag("use_sliding_window")? {
        Some(true) => window(fields, architecture)?,
        _ => None,
    };
    let first = fields.size("max_window_layers", 0..=MAX_WINDOW)?.unwrap_or(28);
    let slides =
        per_layer.unwrap_or_else(|| (0..layers).map(|l| window.is_some() && l >= first).collect());
    if window.is_none() && slides.contains(&true) {
        let problem = "names sliding_attention, but `use_sliding_window` and `sliding_window` switch no window on";
        return Err(fields.error("layer_types", problem));
    }
    Ok(slides.into_iter().map(|slides| window.filter(|_| slides)).collect())
}

/// The windows HuggingFace gives a class that does not read `layer_types`; a list that says
/// otherwise is refused, because it would be a different model here and there.
fn agreeing(
    fields: &Fields<'_>,
    architecture: Architecture,
    windows: Vec<Option<usize>>,
) -> Result<Vec<Option<usize>>> {
    let Some(slides) = layer_types(fields, windows.len())? else { return Ok(windows) };
    match (0..windows.len()).find(|&l| slides[l] != windows[l].is_some()) {
        None => Ok(windows),
        Some(l) => {
            let (said, done) = match slides[l] {
                true => ("sliding_attention", "full attention"),
                false => ("full_attention", "a sliding window"),
            };
            let problem = format!("is {said} for layer {l}, where {architecture} has {done}");
            Err(fields.error("layer_types", problem))
        }
    }
}

/// `sliding_window`: the class's default when absent, none when null.
fn window(fields: &Fields<'_>, architecture: Architecture) -> Result<Option<usize>> {
    match fields.names("sliding_window") {
        true => fields.size("sliding_window", 1..=MAX_WINDOW),
        false => Ok(architecture.defaults().sliding_window),
    }
}

/// `layer_types` as "does this layer slide".
fn layer_types(fields: &Fields<'_>, layers: usize) -> Result<Option<Vec<bool>>> {
    let Some(types) = fields.texts("layer_types")? else { return Ok(None) };
    if types.len() != layers {
        let problem =
            format!("has {} entries, expected one for each of the {layers} layers", types.len());
        return Err(fields.error("layer_types", problem));
    }
    let slides = |&name: &&str| match name {
        "full_attention" => Ok(false),
        "sliding_attention" => Ok(true),
        other => {
            let other = brief(other);
            let problem = format!("holds `{other}`, expected full_attention or sliding_attention");
            Err(fields.error("layer_types", problem))
        }
    };
    types.iter().map(slides).collect::<Result<_>>().map(Some)
}
