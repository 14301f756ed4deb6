//! Functions that read and may change the activations at a place of a pass.

use fathom_backend::RowEdit;
use fathom_model::{Access, At, Error, Measured, Probe, Result, Site};

/// A function called with the values at a place: rows as a [`Probe`] sees them.
pub(super) type HookFn<'a> = Box<dyn FnMut(&At, &mut [f32]) -> Result<()> + 'a>;

/// A function and the place it is called at.
pub(super) struct Hook<'a> {
    pub site: Site,
    pub layer: usize,
    pub call: HookFn<'a>,
}

/// A probe that calls hooks in order, then passes the resulting values to another probe.
pub(super) struct HookProbe<'a, 'b> {
    pub hooks: &'b mut [Hook<'a>],
    pub then: &'b mut dyn Probe,
    /// Called before each layer; an error ends the pass.
    pub check: Option<&'b mut (dyn FnMut() -> Result<()> + 'a)>,
}

impl HookProbe<'_, '_> {
    fn call(&mut self, at: &At, values: &mut [f32]) -> Result<()> {
        let here = |hook: &&mut Hook<'_>| (hook.site, hook.layer) == (at.site, at.layer);
        self.hooks.iter_mut().filter(here).try_for_each(|hook| (hook.call)(at, values))
    }

    fn has(&self, site: Site, layer: usize) -> bool {
        self.hooks.iter().any(|hook| (hook.site, hook.layer) == (site, layer))
    }
}

impl Probe for HookProbe<'_, '_> {
    fn access(&self, site: Site, layer: usize) -> Access {
        match self.has(site, layer) {
            true => Access::Edit,
            false => self.then.access(site, layer),
        }
    }

    fn before_layer(&mut self, layer: usize) -> Result<()> {
        if let Some(check) = &mut self.check {
            check()?;
        }
        self.then.before_layer(layer)
    }

    fn read(&mut self, at: &At, values: &[f32]) -> Result<()> {
        if self.has(at.site, at.layer) {
            // This place is read-only: a hook that writes here must not be ignored silently.
            let mut copy = values.to_vec();
            self.call(at, &mut copy)?;
            if copy.iter().zip(values).any(|(a, b)| a.to_bits() != b.to_bits()) {
                let problem = format!("`{}` can be read, but not edited", at.site);
                return Err(Error::Request(problem));
            }
        }
        match self.then.access(at.site, at.layer) {
            Access::Skip => Ok(()),
            _ => self.then.read(at, values),
        }
    }

    fn edit(&mut self, at: &At, values: &mut [f32]) -> Result<()> {
        self.call(at, values)?;
        match self.then.access(at.site, at.layer) {
            Access::Skip => Ok(()),
            Access::Edit | Access::Change => self.then.edit(at, values),
            _ => self.then.read(at, values),
        }
    }

    fn changes(&mut self, at: &At) -> Result<Vec<RowEdit<'_>>> {
        self.then.changes(at)
    }

    fn reference_positions(&self, sequence: usize) -> Vec<usize> {
        self.then.reference_positions(sequence)
    }

    fn measured(&mut self, at: &At, measured: &Measured<'_>) -> Result<()> {
        self.then.measured(at, measured)
    }
}

/// Several read-only probes, each called for the places it wants.
pub(super) struct Readers<'a>(pub Vec<&'a mut dyn Probe>);

impl Probe for Readers<'_> {
    fn access(&self, site: Site, layer: usize) -> Access {
        match self.0.iter().any(|probe| probe.access(site, layer) != Access::Skip) {
            true => Access::Read,
            false => Access::Skip,
        }
    }

    fn read(&mut self, at: &At, values: &[f32]) -> Result<()> {
        let reads = |probe: &&mut &mut dyn Probe| probe.access(at.site, at.layer) != Access::Skip;
        self.0.iter_mut().filter(reads).try_for_each(|probe| probe.read(at, values))
    }
}
