//! The interface for reading and editing values of a forward pass.

use std::ops::Range;

use fathom_backend::{Massive, RowEdit};

use crate::{Error, Site};

/// The access a probe wants at a site of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// No access: the pass need not materialise the values.
    Skip,
    /// Read the values ([`Probe::read`]).
    Read,
    /// Read the values and possibly replace them ([`Probe::edit`]). The pass continues with the
    /// new values.
    Edit,
    /// Change rows by [`Probe::changes`] without reading them: they stay on the device.
    Change,
    /// Receive the Euclidean norm of every row ([`Probe::measured`]); the rows stay on the device.
    Norms,
    /// Receive the norms, and the dot products of every row with the rows of
    /// [`Probe::reference_positions`].
    Dots,
    /// Receive the norms, the dot products and the massive activations of every row.
    Massive,
}

impl Access {
    /// The access that serves two probes at once.
    pub fn union(self, other: Access) -> Access {
        use Access::{Change, Dots, Edit, Massive, Norms, Read, Skip};
        match (self, other) {
            (one, Skip) => one,
            (Skip, other) => other,
            (one, other) if one == other => one,
            (Norms | Dots, Norms | Dots) => Dots,
            (Norms | Dots | Massive, Norms | Dots | Massive) => Massive,
            (Norms | Dots | Massive | Read, Norms | Dots | Massive | Read) => Read,
            (Edit | Change, _) | (_, Edit | Change) => Edit,
        }
    }
}

/// Norms, dot products and massive activations of consecutive rows at a site of a layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured<'a> {
    /// The norm of each row, `[positions]`.
    pub norms: &'a [f32],
    /// One element for each of [`Probe::reference_positions`] with [`Access::Dots`] or
    /// [`Access::Massive`]; otherwise empty.
    pub dots: Vec<Dots<'a>>,
    /// (row, its massive activations) for each row that has any, with [`Access::Massive`];
    /// otherwise empty. Row 0 is the first of the positions.
    pub massive: Vec<(usize, Massive)>,
}

/// Dot products of rows with the row of a reference position.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dots<'a> {
    /// Dot products of all rows of earlier chunks, from position 0 on, if the reference position is
    /// in this chunk; otherwise empty. The reference row was not known when those chunks ran.
    pub before: &'a [f32],
    /// Dot products of the rows of this chunk, `[positions]`; empty if the reference position is in
    /// a later chunk.
    pub these: &'a [f32],
}

/// The location in the pass at which a probe is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct At {
    /// The site.
    pub site: Site,
    /// 0-based decoder layer; 0 for `embed`, `final_norm` and `logits`.
    pub layer: usize,
    /// Index of the sequence within the batch given to the pass.
    pub sequence: usize,
    /// Positions of the values in that sequence: the rows of this chunk.
    pub positions: Range<usize>,
}

/// Reads or edits chosen sites of a forward pass.
///
/// A probe declares its access before the pass. Only the values it asks for are materialised, and
/// reading them does not change a bit of the result. Values arrive chunk by chunk, one call per
/// (site, layer, sequence), as f32 `[positions, width]` row-major. A row of a per-head site has its
/// heads one after the other (`width = heads · head_dim`). `attn_weights` is
/// `[heads, positions, keys]` with keys `0..positions.end`, and cannot be edited. `sink_score`
/// needs the whole sequence: [`crate::Transformer::sink_score`] returns it after the last chunk.
pub trait Probe {
    /// The access wanted at `site` of `layer`. Called once per pass, before it starts.
    fn access(&self, site: Site, layer: usize) -> Access;

    /// The access wanted for sequence `sequence` of the batch, if it differs between sequences.
    /// [`Probe::access`] must then return the [`Access::union`] over all sequences. Called only
    /// where [`Probe::access`] does not return [`Access::Skip`].
    fn access_of(&self, _sequence: usize, site: Site, layer: usize) -> Access {
        self.access(site, layer)
    }

    /// Called before each layer of a pass. A probe can end the pass here.
    ///
    /// # Errors
    /// An error of the probe ends the pass.
    fn before_layer(&mut self, _layer: usize) -> Result<(), Error> {
        Ok(())
    }

    /// Called for [`Access::Read`], and for any other access to `attn_weights`, which can only be
    /// read.
    ///
    /// # Errors
    /// An error of the probe ends the pass.
    fn read(&mut self, at: &At, values: &[f32]) -> Result<(), Error>;

    /// Called for [`Access::Edit`].
    ///
    /// # Errors
    /// An error of the probe ends the pass.
    fn edit(&mut self, at: &At, values: &mut [f32]) -> Result<(), Error> {
        self.read(at, values)
    }

    /// Called for [`Access::Change`]. Returns changes of rows, which are applied in order. Row 0 is
    /// the first of `at.positions`.
    ///
    /// # Errors
    /// An error of the probe ends the pass.
    fn changes(&mut self, _at: &At) -> Result<Vec<RowEdit<'_>>, Error> {
        Ok(Vec::new())
    }

    /// Reference positions of sequence `sequence`: with [`Access::Dots`] or [`Access::Massive`],
    /// the dot products of every row with the rows at these positions are computed. All rows up to
    /// the last of them are stored on the device, so reference positions should be small.
    fn reference_positions(&self, _sequence: usize) -> Vec<usize> {
        Vec::new()
    }

    /// Called after the pass for every site and layer with [`Access::Norms`], [`Access::Dots`] or
    /// [`Access::Massive`], in the order of the pass.
    ///
    /// # Errors
    /// The pass returns an error of the probe.
    fn measured(&mut self, _at: &At, _measured: &Measured<'_>) -> Result<(), Error> {
        Ok(())
    }
}
