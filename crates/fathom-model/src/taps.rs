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
}

impl<'p> Taps<'p> {
    pub fn new(probe: Option<&'p mut dyn Probe>, layers: usize) -> Taps<'p> {
        let access = match &probe {
            None => Vec::new(),
            Some(probe) => places(layers)
                .map(|(site, layer)| possible(site, layer, probe.access(site, layer)))
                .collect(),
        };
        Taps { probe, access, layers }
    }

    fn index(&self, site: Site, layer: usize) -> usize {
        site as usize * self.layers + layer
    }

    fn access(&self, site: Site, layer: usize) -> Access {
        self.access.get(self.index(site, layer)).copied().unwrap_or(Access::Skip)
    }

    /// What is wanted of a sequence, `[sites, layers]`.
    fn access_of(&self, sequence: usize) -> Vec<Access> {
        let Some(probe) = &self.probe else { return Vec::new() };
        let of_place = |((site, layer), access): ((Site, usize), &Access)| match access {
            Access::Skip => Access::Skip,
            _ => possible(site, layer, probe.access_of(sequence, site, layer)),
        };
        places(self.layers).zip(&self.access).map(of_place).collect()
    }
}

/// All places, in the order of the table.
fn places(layers: usize) -> impl Iterator<Item = (Site, usize)> {
    Site::all().flat_map(move |site| (0..layers).map(move |layer| (site, layer)))
}

/// What can be given of what is wanted.
fn possible(site: Site, layer: usize, access: Access) -> Access {
    match access {
        _ if layer > 0 && !site.per_layer() => Access::Skip,
        Access::Edit | Access::Change if !site.editable() => Access::Read,
        Access::Norms | Access::Dots if !site.has_rows() => Access::Read,
        access => access,
    }
}

/// What a probe wants of one part of a pass.
#[derive(Default)]
struct Wanted {
    access: Vec<Access>, // [sites, layers]
    /// Positions whose rows the others are multiplied with.
    landmarks: Vec<usize>,
}

impl Wanted {
    /// Rows of numbers for a place: one for norms, one more for each landmark.
    fn measures(&self, place: usize) -> usize {
        match self.access[place] {
            Access::Norms => 1,
            Access::Dots => 1 + self.landmarks.len(),
            _ => 0,
        }
    }

    /// Leading positions whose rows are kept.
    fn leading(&self) -> usize {
        self.landmarks.iter().max().map_or(0, |last| last + 1)
    }
}

/// The taps of one pass.
pub(crate) struct PassTaps<'a, 'p, B: Backend> {
    backend: &'a B,
    taps: &'a mut Taps<'p>,
    parts: &'a [Part],
    /// Of each part.
    wanted: Vec<Wanted>,
    /// Of each part's sequence.
    landmarks: Vec<&'a mut Landmarks<B>>,
    /// What is measured, in the backend's memory until the pass is over: a row of numbers for each
    /// measure, a column for each row of the pass and then for each earlier row of a landmark's.
    numbers: Option<B::Rows>,
    /// The first row that is free.
    next_row: usize,
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
        let rows = parts.last().map_or(0, |part| part.rows.end);
        let wanted: Vec<Wanted> = match &taps.probe {
            None => Vec::new(),
            Some(probe) => parts
                .iter()
                .map(|part| Wanted {
                    access: taps.access_of(part.sequence),
                    landmarks: probe.landmarks(part.sequence),
                })
                .collect(),
        };
        let most = |place| wanted.iter().map(|part| part.measures(place)).max().unwrap_or(0);
        let measures: usize = (0..taps.access.len()).map(most).sum();
        let numbers = match measures {
            0 => None,
            _ => {
                let parts = parts.iter().zip(&wanted);
                let earlier = parts.map(|(part, wanted)| part.first_position.min(wanted.leading()));
                Some(backend.alloc(measures, rows + earlier.sum::<usize>())?)
            }
        };
        let (taken, scratch) = (Vec::new(), Vec::new());
        Ok(PassTaps {
            backend,
            taps,
            parts,
            wanted,
            landmarks,
            numbers,
            next_row: 0,
            taken,
            scratch,
        })
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
        if !self.wants(site, layer) {
            return Ok(());
        }
        let (b, place) = (self.backend, self.taps.index(site, layer));
        let first_row = self.next_row;
        self.next_row += self.wanted.iter().map(|part| part.measures(place)).max().unwrap_or(0);
        for (index, part) in self.parts.iter().enumerate() {
            let at = part.at(site, layer);
            let Some(probe) = &mut self.taps.probe else { return Ok(()) };
            match self.wanted[index].access[place] {
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
                Access::Norms => self.measure(index, (site, layer), first_row, false, x)?,
                Access::Dots => self.measure(index, (site, layer), first_row, true, x)?,
            }
        }
        Ok(())
    }

    /// Norms of a part's rows, in row `row` of the numbers, and behind it their dot products with
    /// the landmarks that have come.
    fn measure(
        &mut self,
        index: usize,
        (site, layer): (Site, usize),
        row: usize,
        dots_too: bool,
        x: &B::Rows,
    ) -> Result<()> {
        let Some(numbers) = &mut self.numbers else { return Ok(()) };
        let (b, part) = (self.backend, &self.parts[index]);
        b.row_norms(x, part.rows.clone(), numbers, (row, part.rows.start))?;
        let mut dots = Vec::new();
        if dots_too {
            let positions = part.first_position..part.first_position + part.rows.len();
            let wanted = &self.wanted[index];
            let kept = &mut *self.landmarks[index];
            kept.keep(b, (site, layer), part, wanted.leading(), x)?;
            // Columns of the rows before this part come after those of all parts' rows.
            let before_it = self.parts[..index].iter().zip(&self.wanted);
            let earlier = before_it.map(|(part, w)| part.first_position.min(w.leading()));
            let first = self.parts.last().map_or(0, |part| part.rows.end) + earlier.sum::<usize>();
            for (i, &landmark) in wanted.landmarks.iter().enumerate() {
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
        let place = self.taps.index(site, layer);
        match &mut self.taps.probe {
            Some(probe) if self.wanted[part].access[place] != Access::Skip => {
                probe.read(&self.parts[part].at(site, layer), values)
            }
            _ => Ok(()),
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
