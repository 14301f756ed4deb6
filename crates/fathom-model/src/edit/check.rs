//! Checks of edits.

use std::ops::Range;

use super::{Change, Edit, Positions};
use crate::{Error, ModelConfig, Result};

/// Checks one edit against the model and the text.
pub(super) fn edit(edit: &Edit, config: &ModelConfig, tokens: Option<usize>) -> Result<()> {
    let refused = |problem: String| Err(Error::Request(format!("edit `{edit}`: {problem}")));
    let width = edit.site.layout(config).row_width().filter(|_| edit.site.editable());
    let Some(width) = width else {
        return refused(format!("`{}` can be read, but not edited", edit.site));
    };
    let layers = if edit.site.per_layer() { config.layers } else { 1 };
    if edit.layer >= layers {
        return refused(format!("there is no such layer, the model's are 0..={}", layers - 1));
    }
    if let Some(problem) = bad_positions(&edit.positions, tokens, width) {
        return refused(problem);
    }
    if let Some(columns) = &edit.columns {
        if columns.is_empty() {
            return refused("no columns are named".to_owned());
        }
        if let Some(column) = columns.iter().find(|column| **column >= width) {
            return refused(format!("there is no column {column}, `{}` has {width}", edit.site));
        }
        let mut sorted = columns.clone();
        sorted.sort_unstable();
        sorted.dedup();
        if sorted.len() < columns.len() {
            return refused("a column is named twice".to_owned());
        }
    }

    let columns = edit.columns.as_ref().map_or(width, Vec::len);
    match &edit.change {
        Change::Zero => {}
        Change::Scale(factor) if !factor.is_finite() => {
            return refused("the factor must be a finite number".to_owned());
        }
        Change::Scale(_) => {}
        Change::Clamp(norm) if !(norm.is_finite() && *norm >= 0.0) => {
            return refused("the norm must be a finite number, not negative".to_owned());
        }
        Change::Clamp(_) => {}
        Change::Add(values) | Change::Replace(values) => {
            if values.len() != columns {
                let given = values.len();
                return refused(format!("{given} values are given for {columns} columns"));
            }
            if !values.iter().all(|value| value.is_finite()) {
                return refused("a value is NaN or infinite".to_owned());
            }
        }
        Change::Copy(source) => {
            if *source >= first(&edit.positions) {
                return refused("the copied position must be before all changed ones".to_owned());
            }
        }
        Change::Mean(ranges) => {
            if ranges.iter().all(Range::is_empty) {
                return refused("the mean is over no positions".to_owned());
            }
            if ranges.iter().any(|range| range.end > first(&edit.positions)) {
                return refused(
                    "the positions of the mean must be before all changed ones".to_owned(),
                );
            }
        }
    }
    Ok(())
}

fn bad_positions(positions: &Positions, tokens: Option<usize>, width: usize) -> Option<String> {
    match positions {
        Positions::These(ranges) => {
            let beyond = |range: &&Range<usize>| {
                let last = if range.end == usize::MAX { range.start } else { range.end - 1 };
                tokens.is_some_and(|tokens| last >= tokens)
            };
            if ranges.is_empty() || ranges.iter().any(Range::is_empty) {
                return Some("no positions are named".to_owned());
            }
            let sorted = sorted(ranges);
            if sorted.windows(2).any(|pair| pair[1].start < pair[0].end) {
                return Some("a position is named twice".to_owned());
            }
            let tokens = tokens.unwrap_or(0);
            ranges
                .iter()
                .find(beyond)
                .map(|_| format!("there is no such position, the text has {tokens} tokens"))
        }
        Positions::Aligned { direction, cosine, .. } => {
            if direction.len() != width {
                return Some(format!("the direction must have {width} values"));
            }
            let sound =
                direction.iter().all(|x| x.is_finite()) && direction.iter().any(|x| *x != 0.0);
            (!sound || !(-1.0..1.0).contains(cosine))
                .then(|| "the direction must be finite and not 0, the cosine in [-1, 1)".to_owned())
        }
    }
}

/// Refuses two edits that write the same value, unless they commute.
pub(super) fn conflicts(edits: &[Edit]) -> Result<()> {
    for (i, a) in edits.iter().enumerate() {
        let later = &edits[i + 1..];
        let conflicts = |b: &&Edit| {
            (a.site, a.layer) == (b.site, b.layer)
                && !commute(&a.change, &b.change)
                && share_position(&a.positions, &b.positions)
                && share_column(a.columns.as_deref(), b.columns.as_deref())
        };
        if let Some(b) = later.iter().find(conflicts) {
            return Err(Error::Request(format!(
                "edits `{a}` and `{b}` change the same values, and their order would matter"
            )));
        }
    }
    Ok(())
}

fn commute(a: &Change, b: &Change) -> bool {
    matches!((a, b), (Change::Scale(_), Change::Scale(_)) | (Change::Add(_), Change::Add(_)))
}

/// Whether two edits may change the same position. Aligned positions are known only during the
/// pass, so they count as shared.
fn share_position(a: &Positions, b: &Positions) -> bool {
    let (Positions::These(a), Positions::These(b)) = (a, b) else {
        return true;
    };
    a.iter().any(|a| b.iter().any(|b| a.start < b.end && b.start < a.end))
}

fn share_column(a: Option<&[usize]>, b: Option<&[usize]>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => a.iter().any(|column| b.contains(column)),
        _ => true,
    }
}

/// First position that may be changed.
fn first(positions: &Positions) -> usize {
    match positions {
        Positions::These(ranges) => ranges.iter().map(|range| range.start).min().unwrap_or(0),
        Positions::Aligned { from, .. } => *from,
    }
}

fn sorted(ranges: &[Range<usize>]) -> Vec<Range<usize>> {
    let mut ranges = ranges.to_vec();
    ranges.sort_by_key(|range| range.start);
    ranges
}
