//! Interventions: changes of a forward pass, declared and checked before it starts.
//!
//! An [`Edit`] names a site, layer, positions and optionally columns, and a [`Change`]. Copies,
//! means and cosines read the values as they were before any edit at the same site and layer. Two
//! edits that write the same value are refused unless they commute. So the order of [`Edits`] does
//! not matter.

mod check;
mod load;
mod parse;
mod probe;

use std::fmt;
use std::ops::Range;

use crate::{ModelConfig, Result, Site};

pub use probe::EditProbe;

/// One change at one site of one layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Edit {
    /// The site; any [`Site::editable`] one.
    pub site: Site,
    /// 0-based decoder layer; 0 for sites outside the layers.
    pub layer: usize,
    /// The tokens to change.
    pub positions: Positions,
    /// The columns of the row `[width]` to change, such as neurons of the MLP or coordinates of the
    /// residual stream. `None`: all.
    pub columns: Option<Vec<usize>>,
    /// The change of their values.
    pub change: Change,
}

/// The tokens that an edit changes.
#[derive(Clone, Debug, PartialEq)]
pub enum Positions {
    /// Positions in any of the ranges; an end of `usize::MAX` means the end of the text.
    These(Vec<Range<usize>>),
    /// Positions from `from` on whose whole row at the edit's site and layer has a cosine with
    /// `direction` above `cosine`.
    Aligned {
        /// `[width]`
        direction: Vec<f32>,
        /// Cosine threshold, exclusive.
        cosine: f32,
        /// First position that may be changed.
        from: usize,
    },
}

/// How an edit changes a row, or the chosen columns of it.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// Sets the values to zero.
    Zero,
    /// Multiplies the values.
    Scale(f32),
    /// Rescales the values to this Euclidean norm if theirs is larger.
    Clamp(f32),
    /// Adds these values, one per column.
    Add(Vec<f32>),
    /// Replaces the values by these, one per column.
    Replace(Vec<f32>),
    /// Copies the values of an earlier position of the same text at the same site and layer.
    Copy(usize),
    /// Replaces the values by their mean over earlier positions at the same site and layer.
    Mean(Vec<Range<usize>>),
}

/// Edits that were checked against a model and each other.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Edits {
    edits: Vec<Edit>,
}

impl Edits {
    /// Checks edits of a text of `tokens` tokens (`None`: of any length) against the model and each
    /// other.
    ///
    /// # Errors
    /// A site that cannot be edited; a layer, position or column that does not exist; a number of
    /// values that differs from the number of columns; values that are not finite; a copy or mean
    /// from positions that are not before all changed ones; two edits of the same value that do not
    /// commute (two scalings or two additions do).
    pub fn new(edits: Vec<Edit>, config: &ModelConfig, tokens: Option<usize>) -> Result<Edits> {
        for edit in &edits {
            check::edit(edit, config, tokens)?;
        }
        check::conflicts(&edits)?;
        let mut edits = edits;
        // A fixed order: floats added or multiplied in another order may differ in the last bit.
        edits.sort_by_cached_key(|edit| (edit.site, edit.layer, format!("{edit:?}")));
        Ok(Edits { edits })
    }

    /// Whether there are no edits.
    pub fn is_empty(&self) -> bool {
        self.edits.is_empty()
    }

    /// The edits, in a canonical order.
    pub fn iter(&self) -> impl Iterator<Item = &Edit> {
        self.edits.iter()
    }
}

impl Positions {
    /// All tokens.
    pub fn all() -> Positions {
        Positions::from(0..usize::MAX)
    }
}

impl From<usize> for Positions {
    fn from(position: usize) -> Positions {
        Positions::from(position..position.saturating_add(1))
    }
}

impl From<Range<usize>> for Positions {
    fn from(range: Range<usize>) -> Positions {
        Positions::These(vec![range])
    }
}

impl Edit {
    /// An edit of whole rows.
    pub fn new(site: Site, layer: usize, positions: impl Into<Positions>, change: Change) -> Edit {
        Edit { site, layer, positions: positions.into(), columns: None, change }
    }
}

/// The syntax of [`Edit::parse`], except that vectors of values are abbreviated.
impl fmt::Display for Edit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.site)?;
        if self.site.per_layer() {
            write!(f, ".{}", self.layer)?;
        }
        if let Some(columns) = &self.columns {
            let columns: Vec<String> = columns.iter().map(usize::to_string).collect();
            write!(f, "[{}]", columns.join(","))?;
        }
        match &self.positions {
            Positions::These(ranges) => write!(f, "@{}", parse::show(ranges))?,
            Positions::Aligned { cosine, from, .. } => write!(f, "@{from}..:cos>{cosine}")?,
        }
        match &self.change {
            Change::Zero => f.write_str("=zero"),
            Change::Scale(factor) => write!(f, "=scale({factor})"),
            Change::Clamp(norm) => write!(f, "=clamp({norm})"),
            Change::Add(values) => write!(f, "=add({} values)", values.len()),
            Change::Replace(values) => write!(f, "=replace({} values)", values.len()),
            Change::Copy(position) => write!(f, "=copy({position})"),
            Change::Mean(ranges) => write!(f, "=mean({})", parse::show(ranges)),
        }
    }
}
