//! What an intervention did to the sinks, as interventions' figures and findings report it.

use fathom_sinks::explain::LevelChange;

use crate::figure::{Axis, Dot, Mark, Panel, Scale};
use crate::run_data::LevelBook;

/// Stacked bars of the sinks kept, changed and gone, by level. They are the series `series`,
/// `series + 1` and `series + 2` of the legend.
pub(super) fn changes(
    book: &LevelBook,
    title: &str,
    levels: &[LevelChange],
    series: usize,
) -> Panel {
    let most = levels.iter().map(|level| level.before).max().unwrap_or(0);
    let mut levels: Vec<&LevelChange> = levels.iter().collect();
    if levels.len() > 12 {
        levels.sort_by_key(|level| std::cmp::Reverse(level.before));
        levels.truncate(12);
        levels.sort_by_key(|level| (level.l_start, level.lifetime));
    }
    let name = |level: &&LevelChange| match book.of(level.l_start, level.lifetime) {
        Some((_, entry)) if entry.letter != "·" => entry.letter.clone(),
        _ => format!("{}·{}", level.l_start, level.lifetime),
    };
    let mut panel = Panel::new(
        title,
        Axis::new("level", Scale::Names(levels.iter().map(name).collect())),
        Axis::new("secondary sinks", Scale::from_zero([most as f64].into_iter())),
    );
    let mut bases = vec![0; levels.len()];
    for (kind, what) in ["kept", "at other layers", "gone"].into_iter().enumerate() {
        let read = |level: &LevelChange| [level.kept, level.changed, level.gone][kind];
        let mut bars = Vec::new();
        for (i, level) in levels.iter().enumerate().filter(|(_, level)| read(level) > 0) {
            let (x, base) = (i as f64, bases[i]);
            bases[i] += read(level);
            let tip = format!(
                "level {}: from layer {}, {} layers\n{} of {} {what}",
                name(level),
                level.l_start,
                level.lifetime,
                read(level),
                level.before
            );
            bars.push((x - 0.35, x + 0.35, base as f64, Dot::new(x, bases[i] as f64, tip)));
        }
        panel.marks.push(Mark::Bars { series: series + kind, bars });
    }
    panel
}

/// `, 3 appeared that were not sinks before`, or nothing.
pub(super) fn appeared(count: usize) -> String {
    if count == 0 {
        String::new()
    } else {
        format!(", {count} appeared that were not sinks before")
    }
}

/// How many of a layer's sinks are gone, and how many sinks of other layers are gone or changed.
pub(super) fn gone(layer: usize, levels: &[LevelChange]) -> String {
    let sum = |own: bool, of: fn(&LevelChange) -> usize| -> usize {
        levels.iter().filter(|level| (level.l_start == layer) == own).map(of).sum()
    };
    let (before, left) = (sum(true, |l| l.before), sum(true, |l| l.gone));
    let (others, changed) = (sum(false, |l| l.before), sum(false, |l| l.gone + l.changed));
    format!("{left} of its {before} sinks gone, {changed} of {others} others affected")
}

/// A perplexity, short.
pub(super) fn perplexity(perplexity: f64) -> String {
    if perplexity < 1e6 { format!("{perplexity:.2}") } else { format!("{perplexity:.1e}") }
}

/// A sentence with a capital first letter.
pub(super) fn capital(sentence: &str) -> String {
    let mut letters = sentence.chars();
    letters.next().map_or(String::new(), |first| first.to_uppercase().chain(letters).collect())
}
