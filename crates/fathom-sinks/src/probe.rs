//! The probe of a scan: norms and cosines, chunk by chunk.

use std::ops::Range;

use fathom_backend::Massive;
use fathom_model::{Access, At, Dots, Error, Measured, Probe, Result, Site};
use fathom_vector::{dot, massive, norm};

use crate::Grid;
use crate::scalars::{CandidateCosines, FinalState, TraceScalars};
use crate::vector::cosine_of_dot;

/// Options of a [`ScalarProbe`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScalarOptions {
    /// Leading positions that are candidates for the reference sink.
    pub candidates: Vec<usize>,
    /// Whether to also measure the state after the final norm.
    pub final_state: bool,
    /// Whether to also find the massive activations of hidden states.
    pub massive: bool,
}

impl ScalarOptions {
    /// What a [`ScalarProbe`] with these options measures at a site.
    pub fn access(&self, site: Site, layer: usize) -> Access {
        match site {
            Site::ResidPost if self.massive => Access::Massive,
            Site::ResidPost => Access::Dots,
            Site::MlpOut | Site::K | Site::V => Access::Norms,
            Site::FinalNorm if layer == 0 && self.final_state => Access::Dots,
            _ => Access::Skip,
        }
    }
}

/// Fills [`TraceScalars`] while a trace runs through the model in chunks of any size. Hidden states
/// are kept only up to the last candidate.
///
/// For a pass over a single sequence, of known length ([`ScalarProbe::new`]) or of a text that is
/// still being generated ([`ScalarProbe::growing`]).
#[derive(Debug)]
pub struct ScalarProbe {
    options: ScalarOptions,
    scalars: TraceScalars,
    /// Hidden states of the positions up to the last candidate, per layer; the last entry holds the
    /// states after the final norm.
    leading: Vec<Vec<f32>>,
    leading_positions: usize,
    /// Maximum number of tokens.
    limit: usize,
    /// Positions measured at every layer: `0..seen`.
    seen: usize,
}

impl ScalarProbe {
    /// A probe for a trace of `token_ids` through a model of `layers` layers.
    pub fn new(layers: usize, token_ids: &[u32], options: &ScalarOptions) -> ScalarProbe {
        let mut probe = ScalarProbe::growing(layers, options);
        probe.limit = token_ids.len();
        probe.scalars.token_ids = token_ids.to_vec();
        probe.scalars.resize(token_ids.len());
        probe
    }

    /// A probe for a text whose length is not known yet. Read it with [`ScalarProbe::so_far`].
    pub fn growing(layers: usize, options: &ScalarOptions) -> ScalarProbe {
        let grid = || Grid::zeros(layers, 0);
        let candidate = |position: &usize| CandidateCosines { position: *position, cosine: grid() };
        let final_state =
            || FinalState { norm: Vec::new(), cosine: vec![Vec::new(); options.candidates.len()] };
        ScalarProbe {
            options: options.clone(),
            scalars: TraceScalars {
                token_ids: Vec::new(),
                hidden_norm: grid(),
                mlp_out_norm: grid(),
                key_norm: grid(),
                value_norm: grid(),
                candidates: options.candidates.iter().map(candidate).collect(),
                final_state: options.final_state.then(final_state),
                massive: options.massive.then(|| vec![Vec::new(); layers]),
            },
            leading: vec![Vec::new(); layers + 1],
            leading_positions: options.candidates.iter().max().map_or(0, |last| last + 1),
            limit: usize::MAX,
            seen: 0,
        }
    }

    /// Discards the measurements of positions ≥ `len`. A later pass over these positions measures
    /// them again.
    pub fn truncate(&mut self, len: usize) {
        self.seen = self.seen.min(len);
        self.scalars.resize(len.min(self.scalars.hidden_norm.tokens()));
    }

    /// What was measured at `positions`, for a probe of another text with the same tokens up to
    /// their end.
    ///
    /// # Errors
    /// Some of the positions have not been through the model.
    pub fn rows(&mut self, positions: Range<usize>) -> Result<ScalarRows> {
        self.check_seen(positions.end)?;
        let here = |(candidate, numbers): (Option<usize>, &mut Vec<f32>)| {
            numbers[ScalarRows::of(&positions, candidate)].to_vec()
        };
        let numbers = self.scalars.columns().map(here).collect();
        let within = |layer: &Vec<(usize, Massive)>| {
            let there = layer.iter().filter(|(position, _)| positions.contains(position));
            there.cloned().collect()
        };
        let massive = self.scalars.massive.iter().flatten().map(within).collect();
        let (options, layers) = (self.options.clone(), self.scalars.layers());
        Ok(ScalarRows { options, layers, positions, numbers, massive })
    }

    /// Whether this probe would have measured what is in `rows`.
    pub fn accepts(&self, rows: &ScalarRows) -> bool {
        rows.options == self.options && rows.layers == self.scalars.layers()
    }

    /// Takes over the first `len` of `rows`, as if the probe had measured them. A pass after them
    /// must give it norms and dot products, not rows ([`Probe::measured`]).
    ///
    /// # Errors
    /// The probe measures something else or has not come as far, or there are fewer rows.
    pub fn adopt(&mut self, rows: &ScalarRows, len: usize) -> Result<()> {
        let positions = rows.positions.start..rows.positions.start + len;
        if !self.accepts(rows) || self.seen < positions.start || len > rows.positions.len() {
            return Err(Error::Request(format!(
                "measurements at positions {}..{} do not continue those of {} tokens",
                positions.start, positions.end, self.seen
            )));
        }
        self.truncate(positions.start);
        self.scalars.resize(positions.end);
        for ((candidate, numbers), kept) in self.scalars.columns().zip(&rows.numbers) {
            let to = ScalarRows::of(&positions, candidate);
            let from = to.start - ScalarRows::of(&rows.positions, candidate).start;
            let count = to.len();
            numbers[to].copy_from_slice(&kept[from..from + count]);
        }
        for (layer, kept) in self.scalars.massive.iter_mut().flatten().zip(&rows.massive) {
            let there = kept.iter().filter(|(position, _)| positions.contains(position));
            layer.extend(there.cloned());
        }
        self.seen = positions.end;
        Ok(())
    }

    fn check(&self, at: &At) -> Result<()> {
        let (tokens, layers) = (self.limit, self.scalars.layers());
        if at.positions.end <= tokens && at.layer < layers && !at.positions.is_empty() {
            return Ok(());
        }
        let Range { start, end } = at.positions;
        Err(Error::Request(format!(
            "positions {start}..{end} of layer {} are outside of this probe's {tokens} tokens and \
             {layers} layers",
            at.layer
        )))
    }

    /// The measurements of the tokens given to [`ScalarProbe::new`].
    ///
    /// # Errors
    /// Some tokens have not been through the model.
    pub fn finish(self) -> Result<TraceScalars> {
        self.check_seen(self.scalars.tokens())?;
        Ok(self.scalars)
    }

    /// The measurements of the first tokens of a text, which are `token_ids`.
    ///
    /// # Errors
    /// Some of the tokens have not been through the model.
    pub fn so_far(&self, token_ids: &[u32]) -> Result<TraceScalars> {
        self.check_seen(token_ids.len())?;
        let mut scalars = TraceScalars { token_ids: token_ids.to_vec(), ..self.scalars.clone() };
        scalars.resize(token_ids.len());
        Ok(scalars)
    }

    fn check_seen(&self, tokens: usize) -> Result<()> {
        match self.seen {
            seen if seen < tokens => {
                Err(Error::Request(format!("{seen} of {tokens} tokens were measured")))
            }
            _ => Ok(()),
        }
    }
}

/// What a [`ScalarProbe`] measured at some positions.
#[derive(Clone, Debug)]
pub struct ScalarRows {
    options: ScalarOptions,
    layers: usize,
    positions: Range<usize>,
    /// One element for each of [`TraceScalars::columns`].
    numbers: Vec<Vec<f32>>,
    /// By layer.
    massive: Vec<Vec<(usize, Massive)>>,
}

impl ScalarRows {
    /// The positions whose numbers are known as soon as `positions` were measured, and not before.
    /// A cosine is known when both its position and its candidate were measured.
    fn of(positions: &Range<usize>, candidate: Option<usize>) -> Range<usize> {
        match candidate {
            Some(candidate) if positions.contains(&candidate) => 0..positions.end,
            Some(candidate) if candidate >= positions.end => 0..0,
            _ => positions.clone(),
        }
    }
}

impl Probe for ScalarProbe {
    fn access(&self, site: Site, layer: usize) -> Access {
        self.options.access(site, layer)
    }

    fn reference_positions(&self, _sequence: usize) -> Vec<usize> {
        self.options.candidates.clone()
    }

    fn measured(&mut self, at: &At, measured: &Measured<'_>) -> Result<()> {
        self.check(at)?;
        finite(at, measured.norms)?;
        let scalars = &mut self.scalars;
        if scalars.hidden_norm.tokens() < at.positions.end {
            scalars.resize(at.positions.end);
        }
        let fill = |out: &mut [f32]| out[at.positions.clone()].copy_from_slice(measured.norms);
        match at.site {
            Site::MlpOut => fill(scalars.mlp_out_norm.row_mut(at.layer)),
            Site::K => fill(scalars.key_norm.row_mut(at.layer)),
            Site::V => fill(scalars.value_norm.row_mut(at.layer)),
            Site::ResidPost => {
                let norms = scalars.hidden_norm.row_mut(at.layer);
                fill(norms);
                for (candidate, dots) in scalars.candidates.iter_mut().zip(&measured.dots) {
                    let cosines = candidate.cosine.row_mut(at.layer);
                    cosines_of(at, dots, (norms, candidate.position), cosines);
                }
                if let Some(layers) = &mut scalars.massive {
                    let (layer, start) = (&mut layers[at.layer], at.positions.start);
                    layer.retain(|(position, _)| *position < start);
                    let rows = measured.massive.iter().cloned();
                    layer.extend(rows.map(|(row, massive)| (start + row, massive)));
                }
                if at.layer + 1 == scalars.layers() {
                    self.seen = at.positions.end;
                }
            }
            Site::FinalNorm => {
                if let Some(FinalState { norm, cosine }) = &mut scalars.final_state {
                    fill(norm);
                    let candidates = scalars.candidates.iter().zip(&measured.dots);
                    for ((candidate, dots), cosines) in candidates.zip(cosine) {
                        cosines_of(at, dots, (norm, candidate.position), cosines);
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Measures rows on the host, with the same bits as norms and dot products computed on the
    /// device.
    fn read(&mut self, at: &At, values: &[f32]) -> Result<()> {
        self.check(at)?;
        let access = self.access(at.site, at.layer);
        if access == Access::Skip {
            return Ok(());
        }
        let width = (values.len() / at.positions.len()).max(1);
        let rows = || values.chunks_exact(width);
        let norms: Vec<f32> = rows().map(norm).collect();
        let mut products: Vec<[Vec<f32>; 2]> = Vec::new();
        if matches!(access, Access::Dots | Access::Massive) {
            let place = if at.site == Site::FinalNorm { self.scalars.layers() } else { at.layer };
            let leading = &mut self.leading[place];
            leading.truncate(at.positions.start * width); // rows of discarded positions
            let kept = at.positions.clone().zip(rows());
            for (_, row) in kept.take_while(|(t, _)| *t < self.leading_positions) {
                leading.extend_from_slice(row);
            }
            for CandidateCosines { position, .. } in &self.scalars.candidates {
                let row_of = |t: usize| &leading[t * width..(t + 1) * width];
                let with = |row: &[f32]| dot(row, row_of(*position));
                // Rows before a candidate get their dot products with it in the chunk that contains
                // it.
                let comes_now = at.positions.contains(position);
                let before = if comes_now { 0..at.positions.start } else { 0..0 };
                let these = if *position < at.positions.end { values } else { &[] };
                products.push([
                    before.map(|t| with(row_of(t))).collect(),
                    these.chunks_exact(width).map(with).collect(),
                ]);
            }
        }
        let dots = products.iter().map(|[before, these]| Dots { before, these }).collect();
        let massive = match access {
            Access::Massive => {
                let rows = rows().map(massive).enumerate();
                rows.filter(|(_, massive)| massive.count > 0).collect()
            }
            _ => Vec::new(),
        };
        self.measured(at, &Measured { norms: &norms, dots, massive })
    }
}

/// Cosines of rows with a reference position's row, from their dot products. `norms` and `out` are
/// `[T]`.
fn cosines_of(at: &At, dots: &Dots<'_>, (norms, reference): (&[f32], usize), out: &mut [f32]) {
    let before = dots.before.iter().enumerate();
    let these = at.positions.clone().zip(dots.these);
    for (t, dot) in before.chain(these) {
        out[t] = cosine_of_dot(*dot, norms[t], norms[reference]);
    }
}

/// Rejects norms that are not finite.
fn finite(at: &At, norms: &[f32]) -> Result<()> {
    match at.positions.clone().zip(norms).find(|(_, norm)| !norm.is_finite()) {
        None => Ok(()),
        Some((t, _)) => Err(Error::Request(format!(
            "`{}` of layer {} is not finite at position {t}",
            at.site, at.layer
        ))),
    }
}
