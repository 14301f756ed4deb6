//! A pass that can be cancelled.

use fathom_backend::RowEdit;
use fathom_model::{Access, At, Measured, Probe, Result, Site};

/// A probe with a cancellation check, which is called before each layer.
pub(crate) struct Checked<'a> {
    pub probe: &'a mut dyn Probe,
    pub check: &'a mut dyn FnMut() -> Result<()>,
}

impl Probe for Checked<'_> {
    fn access(&self, site: Site, layer: usize) -> Access {
        self.probe.access(site, layer)
    }

    fn before_layer(&mut self, layer: usize) -> Result<()> {
        (self.check)()?;
        self.probe.before_layer(layer)
    }

    fn access_of(&self, sequence: usize, site: Site, layer: usize) -> Access {
        self.probe.access_of(sequence, site, layer)
    }

    fn read(&mut self, at: &At, values: &[f32]) -> Result<()> {
        self.probe.read(at, values)
    }

    fn edit(&mut self, at: &At, values: &mut [f32]) -> Result<()> {
        self.probe.edit(at, values)
    }

    fn changes(&mut self, at: &At) -> Result<Vec<RowEdit<'_>>> {
        self.probe.changes(at)
    }

    fn reference_positions(&self, sequence: usize) -> Vec<usize> {
        self.probe.reference_positions(sequence)
    }

    fn measured(&mut self, at: &At, measured: &Measured<'_>) -> Result<()> {
        self.probe.measured(at, measured)
    }
}
