//! Which layers have a sliding window.

use super::Architecture;
use super::architecture::WindowRule;
use super::fields::Fields;
use crate::Result;
use crate::sanitize::sanitize;

/// Largest window in tokens; beyond any sequence that can be run.
const MAX_WINDOW: usize = 1 << 31;

/// The window of each layer, by the class's [`WindowRule`].
pub(super) fn windows(
    fields: &Fields<'_>,
    architecture: Architecture,
    layers: usize,
) -> Result<Vec<Option<usize>>> {
    match architecture.facts().windows {
        WindowRule::Never => check_layer_types(fields, architecture, vec![None; layers]),
        WindowRule::EveryLayer => {
            let window = window(fields, architecture)?;
            check_layer_types(fields, architecture, vec![window; layers])
        }
        WindowRule::FromLayer => windows_from_layer(fields, architecture, layers),
    }
}

/// The windows of [`WindowRule::FromLayer`].
fn windows_from_layer(
    fields: &Fields<'_>,
    architecture: Architecture,
    layers: usize,
) -> Result<Vec<Option<usize>>> {
    let layer_types = layer_types(fields, layers)?;
    let window = match fields.flag("use_sliding_window")? {
        Some(true) => window(fields, architecture)?,
        _ => None,
    };
    let first = fields.size("max_window_layers", 0..=MAX_WINDOW)?.unwrap_or(28);
    let slides = layer_types
        .unwrap_or_else(|| (0..layers).map(|l| window.is_some() && l >= first).collect());
    if window.is_none() && slides.contains(&true) {
        let problem = "names sliding_attention, but `use_sliding_window` and `sliding_window` \
                       enable no window";
        return Err(fields.error("layer_types", problem));
    }
    Ok(slides.into_iter().map(|slides| window.filter(|_| slides)).collect())
}

/// Checks that `layer_types`, if present, agrees with the windows of a class that does not read
/// it: HuggingFace ignores a list that contradicts them.
fn check_layer_types(
    fields: &Fields<'_>,
    architecture: Architecture,
    windows: Vec<Option<usize>>,
) -> Result<Vec<Option<usize>>> {
    let Some(slides) = layer_types(fields, windows.len())? else { return Ok(windows) };
    match (0..windows.len()).find(|&l| slides[l] != windows[l].is_some()) {
        None => Ok(windows),
        Some(l) => {
            let (stated, actual) = match slides[l] {
                true => ("sliding_attention", "full attention"),
                false => ("full_attention", "a sliding window"),
            };
            let problem = format!("is {stated} for layer {l}, where {architecture} has {actual}");
            Err(fields.error("layer_types", problem))
        }
    }
}

/// `sliding_window`: the class's default when absent, none when null.
fn window(fields: &Fields<'_>, architecture: Architecture) -> Result<Option<usize>> {
    match fields.names("sliding_window") {
        true => fields.size("sliding_window", 1..=MAX_WINDOW),
        false => Ok(architecture.facts().defaults.sliding_window),
    }
}

/// `layer_types`: for each layer, whether it has a sliding window.
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
            let other = sanitize(other);
            let problem = format!("holds `{other}`, expected full_attention or sliding_attention");
            Err(fields.error("layer_types", problem))
        }
    };
    types.iter().map(slides).collect::<Result<_>>().map(Some)
}
