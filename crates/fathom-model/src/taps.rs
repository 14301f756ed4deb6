//! Where the forward pass meets its probe.

use std::ops::Range;

use fathom_kernels::Backend;

use crate::{Access, At, Probe, Result, Site};

/// Rows of a batch that belong to one sequence, and the positions they hold there.
pub(crate) struct Part {
    /// Index of the sequence in the batch given by the caller.
    pub sequence: usize,
    /// Rows of the batch.
    pub rows: Range<usize>,
    /// Position of the first row.
    pub first_position: usize,
}

impl Part {
    fn at(&self, site: Site, layer: usize) -> At {
        let end = self.first_position + self.rows.len();
        At { site, layer, sequence: self.sequence, positions: self.first_position..end }
    }
}

/// A probe together with what it asked for.
pub(crate) struct Taps<'a> {
    probe: Option<&'a mut dyn Probe>,
    access: Vec<Access>, // [sites, layers]
    layers: usize,
    scratch: Vec<f32>,
}

impl<'a> Taps<'a> {
    pub fn new(probe: Option<&'a mut dyn Probe>, layers: usize) -> Taps<'a> {
        let access = match &probe {
            None => Vec::new(),
            Some(probe) => Site::all()
                .flat_map(|site| (0..layers).map(move |layer| (site, layer)))
                .map(|(site, layer)| match probe.access(site, layer) {
                    _ if layer > 0 && !site.per_layer() => Access::Skip,
                    Access::Edit if !site.editable() => Access::Read,
                    access => access,
                })
                .collect(),
        };
        Taps { probe, access, layers, scratch: Vec::new() }
    }

    fn access(&self, site: Site, layer: usize) -> Access {
        self.access.get(site as usize * self.layers + layer).copied().unwrap_or(Access::Skip)
    }

    pub fn wants(&self, site: Site, layer: usize) -> bool {
        self.access(site, layer) != Access::Skip
    }

    /// Whether anything of layer `layer` after its keys and values, or of what follows the layers.
    pub fn want_rows_after_keys(&self, layer: usize) -> bool {
        let of_all = |site: Site| if site.per_layer() { layer } else { 0 };
        Site::all().filter(|&site| site > Site::V).any(|site| self.wants(site, of_all(site)))
    }

    /// Shows `x` `[batch rows, width]` to the probe, part by part, and takes back what it edited.
    pub fn tap<B: Backend>(
        &mut self,
        backend: &B,
        site: Site,
        layer: usize,
        x: &mut B::Rows,
        parts: &[Part],
    ) -> Result<()> {
        let access = self.access(site, layer);
        let Some(probe) = self.probe.as_mut().filter(|_| access != Access::Skip) else {
            return Ok(());
        };
        for part in parts {
            let at = part.at(site, layer);
            let values = backend.host_rows(x, part.rows.clone(), &mut self.scratch);
            if access == Access::Read {
                probe.read(&at, values)?;
            } else {
                let mut edited = values.to_vec();
                probe.edit(&at, &mut edited)?;
                backend.write_rows(x, part.rows.start, &edited);
            }
        }
        Ok(())
    }

    /// Shows values that are not rows of the batch (`attn_weights`); they cannot be edited.
    pub fn show(&mut self, site: Site, layer: usize, part: &Part, values: &[f32]) -> Result<()> {
        match &mut self.probe {
            Some(probe) => probe.read(&part.at(site, layer), values),
            None => Ok(()),
        }
    }
}
