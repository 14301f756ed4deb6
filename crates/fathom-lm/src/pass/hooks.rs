//! Functions that see, and may change, a place of a pass.

use fathom_backend::RowEdit;
use fathom_model::{Access, At, Error, Measured, Probe, Result, Site};

/// What is called at a place, with its values: rows as a [`Probe`] sees them.
pub(super) type HookFn<'a> = Box<dyn FnMut(&At, &mut [f32]) -> Result<()> + 'a>;

/// A function at a place.
pub(super) struct Hook<'a> {
    pub site: Site,
    pub layer: usize,
    pub call: HookFn<'a>,
}

/// Calls hooks in their order, then shows another probe what they left.
pub(super) struct Hooked<'a, 'b> {
    pub hooks: &'b mut [Hook<'a>],
    pub then: &'b mut dyn Probe,
    /// Asked before each layer whether to go on.
    pub check: Option<&'b mut (dyn FnMut() -> Result<()> + 'a)>,
}

impl Hooked<'_, '_> {
    fn call(&mut self, at: &At, values: &mut [f32]) -> Result<()> {
        let here = |hook: &&mut Hook<'_>| (hook.site, hook.layer) == (at.site, at.layer);
        self.hooks.iter_mut().filter(here).try_for_each(|hook| (hook.call)(at, values))
    }

    fn has(&self, site: Site, layer: usize) -> bool {
        self.hooks.iter().any(|hook| (hook.site, hook.layer) == (site, layer))
    }
}

impl Probe for Hooked<'_, '_> {
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
            // A place that cannot be edited.
            let mut seen = values.to_vec();
            self.call(at, &mut seen)?;
            if seen.iter().zip(values).any(|(a, b)| a.to_bits() != b.to_bits()) {
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

    fn landmarks(&self, sequence: usize) -> Vec<usize> {
        self.then.landmarks(sequence)
    }

    fn measured(&mut self, at: &At, measured: &Measured<'_>) -> Result<()> {
        self.then.measured(at, measured)
    }
}

/// Several who only read, each shown what it asks for.
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
