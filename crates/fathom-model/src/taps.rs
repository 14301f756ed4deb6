//! Where the forward pass meets its probe.

use std::ops::Range;

use fathom_backend::Backend;

use crate::landmarks::Landmarks;
use crate::{Access, At, Dots, Measured, Probe, Result, Site};

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
pub(crate) struct Taps<'p> {
    probe: Option<&'p mut dyn Probe>,
    access: Vec<Access>, // [sites, layers]
    layers: usize,
    /// Positions whose rows others are multiplied with, where that is asked for.
    landmarks: Vec<usize>,
}

impl<'p> Taps<'p> {
    pub fn new(probe: Option<&'p mut dyn Probe>, layers: usize) -> Taps<'p> {
        let access = match &probe {
            None => Vec::new(),
            Some(probe) => Site::all()
                .flat_map(|site| (0..layers).map(move |layer| (site, layer)))
                .map(|(site, layer)| match probe.access(site, layer) {
                    _ if layer > 0 && !site.per_layer() => Access::Skip,
                    Access::Edit | Access::Change if !site.editable() => Access::Read,
                    Access::Norms | Access::Dots if !site.has_rows() => Access::Read,
                    access => access,
                })
                .collect(),
        };
        let landmarks = probe.as_ref().map_or_else(Vec::new, |probe| probe.landmarks());
        Taps { probe, access, layers, landmarks }
    }

    fn access(&self, site: Site, layer: usize) -> Access {
        self.access.get(site as usize * self.layers + layer).copied().unwrap_or(Access::Skip)
    }

    /// Rows of numbers that a pass measures: one for norms, one more for each landmark.
    fn measures(&self) -> usize {
        let of = |access: &Access| match access {
            Access::Norms => 1,
            Access::Dots => 1 + self.landmarks.len(),
            _ => 0,
        };
        self.access.iter().map(of).sum()
    }
}

/// The taps of one pass.
pub(crate) struct PassTaps<'a, 'p, B: Backend> {
    backend: &'a B,
    taps: &'a mut Taps<'p>,
    parts: &'a [Part],
    /// Of each part's sequence.
    landmarks: Vec<&'a mut Landmarks<B>>,
    /// What is measured, in the backend's memory until the pass is over: a row of numbers for each
    /// measure, a column for each row of the pass and then for each earlier row of a landmark's.
    numbers: Option<B::Rows>,
    taken: Vec<Taken>,
    scratch: Vec<f32>,
}

/// Numbers of one part at one place, and where they are.
struct Taken {
    part: usize,
    site: Site,
    layer: usize,
    /// The row of the norms; those of the landmarks follow.
    row: usize,
    /// For each landmark: columns of the rows before this part, and of this part.
    dots: Vec<(Range<usize>, Range<usize>)>,
}

impl<'a, 'p, B: Backend> PassTaps<'a, 'p, B> {
    /// `landmarks` are those of each part's sequence.
    pub fn new(
        backend: &'a B,
        taps: &'a mut Taps<'p>,
        parts: &'a [Part],
        landmarks: Vec<&'a mut Landmarks<B>>,
    ) -> Result<PassTaps<'a, 'p, B>> {
        let measures = taps.measures();
        let numbers = match measures {
            0 => None,
            _ => {
                let leading = taps.landmarks.iter().max().map_or(0, |last| last + 1);
                let earlier = parts.iter().map(|part| part.first_position.min(leading));
                let rows = parts.last().map_or(0, |part| part.rows.end);
                Some(backend.alloc(measures, rows + earlier.sum::<usize>())?)
            }
        };
        let (taken, scratch) = (Vec::new(), Vec::new());
        Ok(PassTaps { backend, taps, parts, landmarks, numbers, taken, scratch })
    }

    pub fn wants(&self, site: Site, layer: usize) -> bool {
        self.taps.access(site, layer) != Access::Skip
    }

    /// Whether anything of layer `layer` after its keys and values, or of what follows the layers.
    pub fn want_rows_after_keys(&self, layer: usize) -> bool {
        let of_all = |site: Site| if site.per_layer() { layer } else { 0 };
        Site::all().filter(|&site| site > Site::V).any(|site| self.wants(site, of_all(site)))
    }

    /// Tells the probe that a layer begins.
    pub fn before_layer(&mut self, layer: usize) -> Result<()> {
        match &mut self.taps.probe {
            Some(probe) => probe.before_layer(layer),
            None => Ok(()),
        }
    }

    /// Rows of the pass.
    pub fn rows(&self) -> usize {
        self.parts.last().map_or(0, |part| part.rows.end)
    }

    /// Shows `x` `[batch rows, width]` to the probe, part by part, and takes back what it edited.
    pub fn tap(&mut self, site: Site, layer: usize, x: &mut B::Rows) -> Result<()> {
        let access = self.taps.access(site, layer);
        if access == Access::Skip {
            return Ok(());
        }
        let b = self.backend;
        for (index, part) in self.parts.iter().enumerate() {
            let at = part.at(site, layer);
            let Some(probe) = &mut self.taps.probe else { return Ok(()) };
            match access {
                Access::Skip => {}
                Access::Read => {
                    probe.read(&at, b.host_rows(x, part.rows.clone(), &mut self.scratch)?)?;
                }
                Access::Edit => {
                    let values = b.host_rows(x, part.rows.clone(), &mut self.scratch)?;
                    let mut edited = values.to_vec();
                    probe.edit(&at, &mut edited)?;
                    b.write_rows(x, part.rows.start, &edited)?;
                }
                Access::Change => {
                    let mut changes = probe.changes(&at)?;
                    changes.iter_mut().for_each(|change| change.row += part.rows.start);
                    b.edit_rows(x, &changes)?;
                }
                Access::Norms | Access::Dots => self.measure(index, (site, layer), access, x)?,
            }
        }
        Ok(())
    }

    /// Norms of a part's rows, and their dot products with the landmarks that have come.
    fn measure(
        &mut self,
        index: usize,
        (site, layer): (Site, usize),
        access: Access,
        x: &B::Rows,
    ) -> Result<()> {
        let Some(numbers) = &mut self.numbers else { return Ok(()) };
        let (b, part) = (self.backend, &self.parts[index]);
        let row = match self.taken.last() {
            None => 0,
            Some(last) if (last.site, last.layer) == (site, layer) => last.row,
            Some(last) => last.row + 1 + last.dots.len(),
        };
        b.row_norms(x, part.rows.clone(), numbers, (row, part.rows.start))?;
        let mut dots = Vec::new();
        if access == Access::Dots {
            let positions = part.first_position..part.first_position + part.rows.len();
            let leading = self.taps.landmarks.iter().max().map_or(0, |last| last + 1);
            let kept = &mut *self.landmarks[index];
            kept.keep(b, (site, layer), part, leading, x)?;
            // Columns of the rows before this part come after those of all parts' rows.
            let earlier = |part: &Part| part.first_position.min(leading);
            let rows = self.parts.last().map_or(0, |part| part.rows.end);
            let first = rows + self.parts[..index].iter().map(earlier).sum::<usize>();
            for (i, &landmark) in self.taps.landmarks.iter().enumerate() {
                if landmark >= positions.end {
                    dots.push((0..0, 0..0)); // it has not come yet
                    continue;
                }
                let at = row + 1 + i;
                let kept = kept.rows((site, layer), landmark)?;
                b.row_dots(x, part.rows.clone(), (kept, landmark), numbers, (at, part.rows.start))?;
                let mut before = first..first;
                if landmark >= positions.start {
                    // It came just now: the rows before it are made up for.
                    before.end += positions.start;
                    b.row_dots(kept, 0..positions.start, (kept, landmark), numbers, (at, first))?;
                }
                dots.push((before, part.rows.clone()));
            }
        }
        self.taken.push(Taken { part: index, site, layer, row, dots });
        Ok(())
    }

    /// Shows values that are not rows of the batch (`attn_weights`) and cannot be edited.
    pub fn show(&mut self, site: Site, layer: usize, part: usize, values: &[f32]) -> Result<()> {
        match &mut self.taps.probe {
            Some(probe) => probe.read(&self.parts[part].at(site, layer), values),
            None => Ok(()),
        }
    }

    /// Tells the probe what was measured: the pass's one read of numbers.
    pub fn finish(&mut self) -> Result<()> {
        let (Some(numbers), Some(probe)) = (&self.numbers, &mut self.taps.probe) else {
            return Ok(());
        };
        let (measures, columns) = self.backend.shape(numbers);
        let numbers = self.backend.host_rows(numbers, 0..measures, &mut self.scratch)?;
        let row = |row: usize| &numbers[row * columns..(row + 1) * columns];
        for Taken { part, site, layer, row: first, dots } in self.taken.drain(..) {
            let part = &self.parts[part];
            let dots = dots.into_iter().enumerate().map(|(i, (before, these))| {
                let row = row(first + 1 + i);
                Dots { before: &row[before], these: &row[these] }
            });
            let norms = &row(first)[part.rows.clone()];
            let measured = Measured { norms, dots: dots.collect() };
            probe.measured(&part.at(site, layer), &measured)?;
        }
        Ok(())
    }
}
