//! Calls the probe at the sites of the forward pass.

use std::ops::Range;

use fathom_backend::{Backend, Massive};

use crate::reference_rows::ReferenceRows;
use crate::{Access, At, Dots, Measured, Probe, Result, Site};

/// The rows of a batch that belong to one sequence, and their positions in it.
pub(crate) struct SequenceRows {
    /// Index of the sequence in the batch given by the caller.
    pub sequence: usize,
    /// Rows of the batch.
    pub rows: Range<usize>,
    /// Position of the first row.
    pub first_position: usize,
}

impl SequenceRows {
    fn positions(&self) -> Range<usize> {
        self.first_position..self.first_position + self.rows.len()
    }

    fn at(&self, site: Site, layer: usize) -> At {
        At { site, layer, sequence: self.sequence, positions: self.positions() }
    }
}

/// A probe and the access it asked for.
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
                .map(|(site, layer)| granted(site, layer, probe.access(site, layer)))
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

    /// The access asked for in one sequence, `[sites, layers]`.
    fn access_of(&self, sequence: usize) -> Vec<Access> {
        let Some(probe) = &self.probe else { return Vec::new() };
        let of_place = |((site, layer), access): ((Site, usize), &Access)| match access {
            Access::Skip => Access::Skip,
            _ => granted(site, layer, probe.access_of(sequence, site, layer)),
        };
        places(self.layers).zip(&self.access).map(of_place).collect()
    }
}

/// All pairs of site and layer, in the order of [`Taps::index`].
fn places(layers: usize) -> impl Iterator<Item = (Site, usize)> {
    Site::all().flat_map(move |site| (0..layers).map(move |layer| (site, layer)))
}

/// The access that the site allows.
fn granted(site: Site, layer: usize, access: Access) -> Access {
    match access {
        _ if layer > 0 && !site.per_layer() => Access::Skip,
        Access::Edit | Access::Change if !site.editable() => Access::Read,
        Access::Norms | Access::Dots | Access::Massive if !site.has_rows() => Access::Read,
        access => access,
    }
}

/// The access a probe asked for in one sequence of a pass.
#[derive(Default)]
struct WantedAccess {
    access: Vec<Access>, // [sites, layers]
    /// Dot products are computed with the rows at these positions.
    reference_positions: Vec<usize>,
}

impl WantedAccess {
    /// Number of rows of `PassTaps::numbers` for the site and layer with index `place`: one for the
    /// norms, one for each reference position, and those of the massive activations.
    fn measures(&self, place: usize) -> usize {
        match self.access[place] {
            Access::Norms => 1,
            Access::Dots => 1 + self.reference_positions.len(),
            Access::Massive => 1 + self.reference_positions.len() + Massive::NUMBERS,
            _ => 0,
        }
    }

    /// Number of leading positions whose rows are stored.
    fn leading(&self) -> usize {
        self.reference_positions.iter().max().map_or(0, |last| last + 1)
    }

    /// Number of columns of `PassTaps::numbers` for the stored rows before `span`.
    fn earlier_columns(&self, span: &SequenceRows) -> usize {
        span.first_position.min(self.leading())
    }
}

/// The taps of one pass.
pub(crate) struct PassTaps<'a, 'p, B: Backend> {
    backend: &'a B,
    taps: &'a mut Taps<'p>,
    /// One per sequence of the pass, as are `wanted` and `references`.
    spans: &'a [SequenceRows],
    wanted: Vec<WantedAccess>,
    references: Vec<&'a mut ReferenceRows<B>>,
    /// Norms, dot products and massive activations `[measures, columns]`, in the backend's memory
    /// until the pass ends. Columns are the rows of the pass, then for each span its earlier rows.
    numbers: Option<B::Rows>,
    /// The first unused row of `numbers`.
    next_row: usize,
    measurements: Vec<Measurement>,
    scratch: Vec<f32>,
}

/// The location in `PassTaps::numbers` of the numbers of one span at one site and layer.
struct Measurement {
    /// Index of the span.
    span: usize,
    site: Site,
    layer: usize,
    /// The row of the norms. The rows of the dot products follow, one per reference position, then
    /// those of the massive activations.
    row: usize,
    /// For each reference position: columns of the rows before the span, and of the span.
    dots: Vec<(Range<usize>, Range<usize>)>,
    /// Whether massive activations were computed.
    massive: bool,
}

impl<'a, 'p, B: Backend> PassTaps<'a, 'p, B> {
    /// `spans` and `references` have one element per sequence of the pass.
    pub fn new(
        backend: &'a B,
        taps: &'a mut Taps<'p>,
        spans: &'a [SequenceRows],
        references: Vec<&'a mut ReferenceRows<B>>,
    ) -> Result<PassTaps<'a, 'p, B>> {
        let rows = spans.last().map_or(0, |span| span.rows.end);
        let wanted: Vec<WantedAccess> = match &taps.probe {
            None => Vec::new(),
            Some(probe) => spans
                .iter()
                .map(|span| WantedAccess {
                    access: taps.access_of(span.sequence),
                    reference_positions: probe.reference_positions(span.sequence),
                })
                .collect(),
        };
        let most = |place| wanted.iter().map(|wanted| wanted.measures(place)).max().unwrap_or(0);
        let measures: usize = (0..taps.access.len()).map(most).sum();
        let numbers = match measures {
            0 => None,
            _ => {
                let earlier = spans.iter().zip(&wanted);
                let earlier = earlier.map(|(span, wanted)| wanted.earlier_columns(span));
                Some(backend.alloc(measures, rows + earlier.sum::<usize>())?)
            }
        };
        let (measurements, scratch) = (Vec::new(), Vec::new());
        Ok(PassTaps {
            backend,
            taps,
            spans,
            wanted,
            references,
            numbers,
            next_row: 0,
            measurements,
            scratch,
        })
    }

    /// Whether the probe wants a site of a layer.
    pub fn wants(&self, site: Site, layer: usize) -> bool {
        self.taps.access(site, layer) != Access::Skip
    }

    /// Whether the probe wants anything of layer `layer` after its keys and values, or anything
    /// after the layers.
    pub fn want_rows_after_keys(&self, layer: usize) -> bool {
        let layer_of = |site: Site| if site.per_layer() { layer } else { 0 };
        Site::all().filter(|&site| site > Site::V).any(|site| self.wants(site, layer_of(site)))
    }

    /// Calls [`Probe::before_layer`].
    pub fn before_layer(&mut self, layer: usize) -> Result<()> {
        match &mut self.taps.probe {
            Some(probe) => probe.before_layer(layer),
            None => Ok(()),
        }
    }

    /// Rows of the pass.
    pub fn rows(&self) -> usize {
        self.spans.last().map_or(0, |span| span.rows.end)
    }

    /// Passes `x` `[batch rows, width]` to the probe, sequence by sequence, and writes its edits
    /// back to `x`.
    pub fn tap(&mut self, site: Site, layer: usize, x: &mut B::Rows) -> Result<()> {
        if !self.wants(site, layer) {
            return Ok(());
        }
        let (b, place) = (self.backend, self.taps.index(site, layer));
        let first_row = self.next_row;
        let measures = self.wanted.iter().map(|wanted| wanted.measures(place));
        self.next_row += measures.max().unwrap_or(0);
        for (index, span) in self.spans.iter().enumerate() {
            let at = span.at(site, layer);
            let Some(probe) = &mut self.taps.probe else { return Ok(()) };
            match self.wanted[index].access[place] {
                Access::Skip => {}
                Access::Read => {
                    probe.read(&at, b.host_rows(x, span.rows.clone(), &mut self.scratch)?)?;
                }
                Access::Edit => {
                    let values = b.host_rows(x, span.rows.clone(), &mut self.scratch)?;
                    let mut edited = values.to_vec();
                    probe.edit(&at, &mut edited)?;
                    b.write_rows(x, span.rows.start, &edited)?;
                }
                Access::Change => {
                    let mut changes = probe.changes(&at)?;
                    changes.iter_mut().for_each(|change| change.row += span.rows.start);
                    b.edit_rows(x, &changes)?;
                }
                access @ (Access::Norms | Access::Dots | Access::Massive) => {
                    self.measure(index, (site, layer), first_row, access, x)?;
                }
            }
        }
        Ok(())
    }

    /// Writes the norms of a span's rows to row `row` of `numbers`. As `access` demands, their dot
    /// products with the reference rows known so far go to the rows after it, and their massive
    /// activations to the rows after those.
    fn measure(
        &mut self,
        index: usize,
        (site, layer): (Site, usize),
        row: usize,
        access: Access,
        x: &B::Rows,
    ) -> Result<()> {
        let Some(numbers) = &mut self.numbers else { return Ok(()) };
        let (b, span) = (self.backend, &self.spans[index]);
        b.row_norms(x, span.rows.clone(), numbers, (row, span.rows.start))?;
        let mut dots = Vec::new();
        if access != Access::Norms {
            let positions = span.positions();
            let wanted = &self.wanted[index];
            let references = &mut *self.references[index];
            references.store(b, (site, layer), span, wanted.leading(), x)?;
            // Columns of this span's earlier rows, after those of the pass and of previous spans.
            let previous = self.spans[..index].iter().zip(&self.wanted);
            let previous = previous.map(|(span, wanted)| wanted.earlier_columns(span));
            let pass_rows = self.spans.last().map_or(0, |span| span.rows.end);
            let first = pass_rows + previous.sum::<usize>();
            for (i, &reference) in wanted.reference_positions.iter().enumerate() {
                if reference >= positions.end {
                    dots.push((0..0, 0..0)); // not computed yet
                    continue;
                }
                let at = row + 1 + i;
                let stored = references.rows((site, layer), reference)?;
                let by = (stored, reference);
                b.row_dots(x, span.rows.clone(), by, numbers, (at, span.rows.start))?;
                let mut before = first..first;
                if reference >= positions.start {
                    // This span contains the reference row: also compute the rows before the span.
                    before.end += positions.start;
                    b.row_dots(stored, 0..positions.start, by, numbers, (at, first))?;
                }
                dots.push((before, span.rows.clone()));
            }
        }
        let massive = access == Access::Massive;
        if massive {
            let at = (row + 1 + dots.len(), span.rows.start);
            b.row_massive(x, span.rows.clone(), numbers, at)?;
        }
        self.measurements.push(Measurement { span: index, site, layer, row, dots, massive });
        Ok(())
    }

    /// Passes values that are not rows of the batch (`attn_weights`) to the probe. They cannot be
    /// edited.
    pub fn show(&mut self, site: Site, layer: usize, span: usize, values: &[f32]) -> Result<()> {
        let place = self.taps.index(site, layer);
        match &mut self.taps.probe {
            Some(probe) if self.wanted[span].access[place] != Access::Skip => {
                probe.read(&self.spans[span].at(site, layer), values)
            }
            _ => Ok(()),
        }
    }

    /// Passes all norms and dot products to the probe. `numbers` is read from the device only here.
    pub fn finish(&mut self) -> Result<()> {
        let (Some(numbers), Some(probe)) = (&self.numbers, &mut self.taps.probe) else {
            return Ok(());
        };
        let (measures, columns) = self.backend.shape(numbers);
        let numbers = self.backend.host_rows(numbers, 0..measures, &mut self.scratch)?;
        let row = |row: usize| &numbers[row * columns..(row + 1) * columns];
        for measurement in self.measurements.drain(..) {
            let Measurement { span, site, layer, row: first, dots, massive } = measurement;
            let span = &self.spans[span];
            let columns = if massive { span.rows.clone() } else { 0..0 };
            let after_dots = first + 1 + dots.len();
            let massive =
                columns.map(|column| Massive::from_numbers(|i| row(after_dots + i)[column]));
            let massive = massive.enumerate().filter(|(_, massive)| massive.count > 0).collect();
            let dots = dots.into_iter().enumerate().map(|(i, (before, these))| {
                let row = row(first + 1 + i);
                Dots { before: &row[before], these: &row[these] }
            });
            let norms = &row(first)[span.rows.clone()];
            let measured = Measured { norms, dots: dots.collect(), massive };
            probe.measured(&span.at(site, layer), &measured)?;
        }
        Ok(())
    }
}
