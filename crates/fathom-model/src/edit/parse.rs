//! The text syntax of edits: `mlp_out.3@17=zero`.

use std::ops::Range;
use std::path::Path;

use super::{Change, Edit, Positions, load};
use crate::{Error, Result, Site};

impl Edit {
    /// Parses `SITE.LAYER[COLUMNS]@POSITIONS=CHANGE`.
    ///
    /// Positions and columns are comma-separated numbers and ranges (`3,17..22,25..=27,30..`), or
    /// `*` for all; the brackets are optional. The change is one of `zero`, `scale(X)`,
    /// `clamp(NORM)`, `copy(POSITION)`, `mean(POSITIONS)`, `replace(FILE:TENSOR:ROW)` and
    /// `add(FILE:TENSOR:ROW)`, the last two from a capture.
    ///
    /// # Errors
    /// Any other text (the message names the part); a file that cannot be read or lacks the row.
    pub fn parse(text: &str) -> Result<Edit> {
        let wrong = |problem: String| Error::Request(format!("edit `{text}`: {problem}"));
        let form = || wrong("expected SITE.LAYER@POSITIONS=CHANGE, as in mlp_out.3@17=zero".into());
        let (place, change) = split_at_change(text).ok_or_else(form)?;
        let (place, positions) = place.split_once('@').ok_or_else(form)?;
        let (site, columns) = match place.trim().strip_suffix(']').map(|text| text.split_once('['))
        {
            None => (place.trim(), None),
            Some(None) => return Err(form()),
            Some(Some((site, columns))) => (site, Some(columns)),
        };
        let (site, layer) = Site::parse(site)?;
        if layer.is_none() && site.per_layer() {
            return Err(wrong(format!("`{site}` needs its layer, as in {site}.3")));
        }
        let columns = match columns {
            None | Some("*") => None,
            Some(columns) => {
                let ranges = ranges(columns).map_err(&wrong)?;
                if ranges.iter().any(|range| range.len() > MAX_COLUMNS) {
                    return Err(wrong(format!("more than {MAX_COLUMNS} columns are named")));
                }
                Some(ranges.into_iter().flatten().collect())
            }
        };
        Ok(Edit {
            site,
            layer: layer.unwrap_or(0),
            positions: Positions::These(ranges(positions).map_err(&wrong)?),
            columns,
            change: change_of(change.trim(), &wrong)?,
        })
    }
}

/// The text before and after the `=` of the change. The `=` of a range (`3..=5`) is skipped.
fn split_at_change(text: &str) -> Option<(&str, &str)> {
    let halves = text.match_indices('=').map(|(i, _)| (&text[..i], &text[i + 1..]));
    let in_range = |(before, after): &(&str, &str)| {
        before.ends_with("..") && after.starts_with(|c: char| c.is_ascii_digit())
    };
    halves.into_iter().find(|halves| !in_range(halves))
}

/// Maximum number of columns. No model is wider, and a typo must not exhaust memory.
const MAX_COLUMNS: usize = 1 << 20;

fn change_of(text: &str, wrong: &dyn Fn(String) -> Error) -> Result<Change> {
    if text == "zero" {
        return Ok(Change::Zero);
    }
    let unknown = || {
        wrong(format!(
            "`{text}` is not one of zero, scale(X), clamp(NORM), copy(POSITION), mean(POSITIONS), \
             replace(FILE:TENSOR:ROW) or add(FILE:TENSOR:ROW)"
        ))
    };
    let (name, argument) =
        text.strip_suffix(')').and_then(|text| text.split_once('(')).ok_or_else(unknown)?;
    let number = || argument.parse().map_err(|_| wrong(format!("`{argument}` is not a number")));
    Ok(match name {
        "scale" => Change::Scale(number()?),
        "clamp" => Change::Clamp(number()?),
        "copy" => Change::Copy(index(argument).map_err(wrong)?),
        "mean" => Change::Mean(ranges(argument).map_err(wrong)?),
        "replace" => Change::Replace(stored(argument, wrong)?),
        "add" => Change::Add(stored(argument, wrong)?),
        _ => return Err(unknown()),
    })
}

/// Loads `FILE:TENSOR:ROW`. A file name may contain colons.
fn stored(text: &str, wrong: &dyn Fn(String) -> Error) -> Result<Vec<f32>> {
    let form = || wrong(format!("`{text}` is not FILE:TENSOR:ROW"));
    let (rest, row) = text.rsplit_once(':').ok_or_else(form)?;
    let (file, tensor) = rest.rsplit_once(':').ok_or_else(form)?;
    load::row(Path::new(file), tensor, index(row).map_err(wrong)?)
}

/// Parses `3,17..22,30..` or `*`.
fn ranges(text: &str) -> Result<Vec<Range<usize>>, String> {
    let range = |part: &str| {
        let part = part.trim();
        if part == "*" {
            return Ok(0..usize::MAX);
        }
        let Some((start, end)) = part.split_once("..") else {
            let number = index(part)?;
            return Ok(number..number + 1);
        };
        let start = index(start)?;
        let end = match end.strip_prefix('=') {
            None if end.is_empty() => usize::MAX,
            None => index(end)?,
            Some(end) => index(end)? + 1,
        };
        if start < end { Ok(start..end) } else { Err(format!("the range `{part}` is empty")) }
    };
    text.split(',').map(range).collect()
}

/// Parses a number. It is below `usize::MAX - 1`, so that the end of a range after it does not
/// overflow or mean the end of the text.
fn index(text: &str) -> Result<usize, String> {
    let number = text.trim().parse().ok().filter(|number| *number < usize::MAX - 1);
    number.ok_or_else(|| format!("`{}` is not a number or range", text.trim()))
}

/// The syntax of [`ranges`].
pub(super) fn show(ranges: &[Range<usize>]) -> String {
    let range = |range: &Range<usize>| match (range.start, range.end) {
        (0, usize::MAX) => "*".to_owned(),
        (start, usize::MAX) => format!("{start}.."),
        (start, end) if end == start + 1 => start.to_string(),
        (start, end) => format!("{start}..{end}"),
    };
    ranges.iter().map(range).collect::<Vec<_>>().join(",")
}
