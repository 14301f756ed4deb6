//! How to look into a forward pass.

use std::ops::Range;

use fathom_backend::RowEdit;

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
    /// Change rows as [`Probe::changes`] says, without reading them: they stay on the device.
    Change,
    /// The Euclidean norm of every row ([`Probe::measured`]): the rows stay on the device.
    Norms,
    /// The norms, and the dot product of every row with the rows of [`Probe::landmarks`].
    Dots,
}

impl Access {
    /// What has to be there for two probes at once.
    pub fn union(self, other: Access) -> Access {
        use Access::{Change, Dots, Edit, Norms, Read, Skip};
        match (self, other) {
            (one, Skip) => one,
            (Skip, other) => other,
            (one, other) if one == other => one,
            (Norms | Dots, Norms | Dots) => Dots,
            (Norms | Dots | Read, Norms | Dots | Read) => Read,
            (Edit | Change, _) | (_, Edit | Change) => Edit,
        }
    }
}

/// What was measured of some consecutive rows of a place.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured<'a> {
    /// The norm of each row, `[positions]`.
    pub norms: &'a [f32],
    /// For each of [`Probe::landmarks`], with [`Access::Dots`]; otherwise empty.
    pub dots: Vec<Dots<'a>>,
}

/// Dot products of rows with a landmark's row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dots<'a> {
    /// Of the rows before these, from position 0 on, where the landmark is among these: they are
    /// made up for.
    pub before: &'a [f32],
    /// Of these rows, `[positions]`; empty where the landmark has not come yet.
    pub these: &'a [f32],
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
/// A probe says beforehand what it wants; only that is materialised, and reading never changes a
/// bit of the result. Values arrive chunk by chunk, one call per (site, layer, sequence), as f32
/// `[positions, width]` row-major. Per-head sites come head after head within a row (`width = heads
/// · head_dim`); `attn_weights` comes as `[heads, positions, keys]`, keys being `0..positions.end`,
/// and cannot be edited. `sink_score` needs the whole sequence and is read from [`crate::Sequence`]
/// after the last chunk instead.
pub trait Probe {
    /// What the probe wants at `site` of `layer`. Asked once per pass, before it starts.
    fn access(&self, site: Site, layer: usize) -> Access;

    /// What it wants there of sequence `sequence` of the batch, where that differs:
    /// [`Probe::access`] is then the [`Access::union`] of all of them. Asked where that is not
    /// [`Access::Skip`].
    fn access_of(&self, _sequence: usize, site: Site, layer: usize) -> Access {
        self.access(site, layer)
    }

    /// Called before each layer of a pass, for a probe that may want to end it.
    ///
    /// # Errors
    /// Whatever the probe reports ends the pass.
    fn before_layer(&mut self, _layer: usize) -> Result<(), Error> {
        Ok(())
    }

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

    /// Called where [`Probe::access`] said [`Access::Change`]: what becomes of rows, counted from
    /// the first of `at.positions`. Later changes see what earlier ones left.
    ///
    /// # Errors
    /// Whatever the probe reports ends the pass.
    fn changes(&mut self, _at: &At) -> Result<Vec<RowEdit<'_>>, Error> {
        Ok(Vec::new())
    }

    /// Positions whose rows all others of sequence `sequence` are multiplied with where
    /// [`Probe::access`] says [`Access::Dots`]. Asked once per pass. The rows up to the last of
    /// them are kept on the device, so they should be among the first.
    fn landmarks(&self, _sequence: usize) -> Vec<usize> {
        Vec::new()
    }

    /// Called after the pass for every place where [`Probe::access`] said [`Access::Norms`] or
    /// [`Access::Dots`], in the order of the pass.
    ///
    /// # Errors
    /// Whatever the probe reports is the pass's error.
    fn measured(&mut self, _at: &At, _measured: &Measured<'_>) -> Result<(), Error> {
        Ok(())
    }
}
