//! Interventions: what to change in a forward pass, said beforehand and checked before it starts.
//!
//! An [`Edit`] names a place (site, layer, positions and, where wanted, columns) and a [`Change`].
//! Changes of one place read what the pass computed there, never what another edit left, and two
//! edits that would both write the same value are refused unless they commute. So [`Edits`] have no
//! order.

mod check;
mod load;
mod parse;
mod probe;

use std::fmt;
use std::ops::Range;

use crate::{ModelConfig, Result, Site};

pub use probe::EditProbe;

/// One change at one place.
#[derive(Clone, Debug, PartialEq)]
pub struct Edit {
    /// The site; any [`Site::editable`] one.
    pub site: Site,
    /// 0-based decoder layer; 0 for sites without layers.
    pub layer: usize,
    /// Which tokens.
    pub positions: Positions,
    /// Which columns of the row `[width]`: neurons of the MLP's stages, coordinates of the residual
    /// stream. `None`: all.
    pub columns: Option<Vec<usize>>,
    /// What becomes of their values.
    pub change: Change,
}

/// Which tokens an edit changes.
#[derive(Clone, Debug, PartialEq)]
pub enum Positions {
    /// Those in any of the ranges; an end of `usize::MAX` stands for the end of the text.
    These(Vec<Range<usize>>),
    /// Those whose whole row at the edit's own place has a cosine with `direction` above `cosine`,
    /// from position `from` on.
    Aligned {
        /// `[width]`
        direction: Vec<f32>,
        /// The cosine that must be exceeded.
        cosine: f32,
        /// First position that may be changed.
        from: usize,
    },
}

/// What an edit does with a row, or with the chosen columns of it.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// Zeros.
    Zero,
    /// Multiplied.
    Scale(f32),
    /// Rescaled to this Euclidean norm where it is larger.
    Clamp(f32),
    /// These values added, one per column.
    Add(Vec<f32>),
    /// These values instead, one per column: a vector of another trace, or a mean over one.
    Replace(Vec<f32>),
    /// The values of an earlier position of the same text at the same place.
    Copy(usize),
    /// The mean of the values of earlier positions at the same place.
    Mean(Vec<Range<usize>>),
}

/// Edits that fit a model and each other.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Edits {
    edits: Vec<Edit>,
}

impl Edits {
    /// Checks edits of a text of `tokens` tokens (`None`: of any length) against the model and each
    /// other.
    ///
    /// # Errors
    /// A site that cannot be edited; a layer, position or column that does not exist; values that
    /// are not as many as the columns, or not finite; a copy or mean from positions that do not
    /// come before all that are changed; two edits of the same value that do not commute (two
    /// scalings or two additions do).
    pub fn new(edits: Vec<Edit>, config: &ModelConfig, tokens: Option<usize>) -> Result<Edits> {
        for edit in &edits {
            check::edit(edit, config, tokens)?;
        }
        check::conflicts(&edits)?;
        let mut edits = edits;
        // Floats added or multiplied in another order may differ in the last bit.
        edits.sort_by_cached_key(|edit| (edit.site, edit.layer, format!("{edit:?}")));
        Ok(Edits { edits })
    }

    /// Whether nothing is changed.
    pub fn is_empty(&self) -> bool {
        self.edits.is_empty()
    }

    /// The edits, in an order of their own.
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
    /// The edit of whole rows.
    pub fn new(site: Site, layer: usize, positions: impl Into<Positions>, change: Change) -> Edit {
        Edit { site, layer, positions: positions.into(), columns: None, change }
    }
}

/// As [`Edit::parse`] reads it, values aside.
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
