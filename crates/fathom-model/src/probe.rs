//! How to look into a forward pass.

use std::ops::Range;

use crate::{Error, Site};

/// What a probe wants with a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nothing: the pass does not materialise anything for it.
    Skip,
    /// Read the values.
    Read,
    /// Read the values and possibly replace them; the pass goes on with what is left there.
    Edit,
}

/// Where in the pass a probe is being called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct At {
    /// The site.
    pub site: Site,
    /// 0-based decoder layer; 0 for `embed`, `final_norm` and `logits`.
    pub layer: usize,
    /// Index of the sequence within the batch given to the pass.
    pub sequence: usize,
    /// Positions of that sequence the values belong to: the rows of this chunk.
    pub positions: Range<usize>,
}

/// Reads, or edits, chosen places of a forward pass.
///
/// A probe says beforehand what it wants; only that is materialised, and reading never changes a bit of
/// the result. Values arrive chunk by chunk, one call per (site, layer, sequence), as f32
/// `[positions, width]` row-major. Per-head sites come head after head within a row
/// (`width = heads · head_dim`); `attn_weights` comes as `[heads, positions, keys]`, keys being
/// `0..positions.end`, and cannot be edited. `sink_score` needs the whole sequence and is read from
/// [`crate::Sequence`] after the last chunk instead.
pub trait Probe {
    /// What the probe wants at `site` of `layer`. Asked once per pass, before it starts.
    fn access(&self, site: Site, layer: usize) -> Access;

    /// Called where [`Probe::access`] said [`Access::Read`].
    ///
    /// # Errors
    /// Whatever the probe reports ends the pass.
    fn read(&mut self, at: &At, values: &[f32]) -> Result<(), Error>;

    /// Called where [`Probe::access`] said [`Access::Edit`].
    ///
    /// # Errors
    /// Whatever the probe reports ends the pass.
    fn edit(&mut self, at: &At, values: &mut [f32]) -> Result<(), Error> {
        self.read(at, values)
    }
}
