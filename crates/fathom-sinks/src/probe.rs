//! The streaming pass: norms and cosines, chunk by chunk.

use std::ops::Range;

use fathom_model::{Access, At, Dots, Error, Measured, Probe, Result, Site};
use fathom_vector::norm;

use crate::Grid;
use crate::scalars::{CandidateCosines, FinalState, TraceScalars};
use crate::vector::{cosine, cosine_of_dot};

/// What a [`ScalarProbe`] measures.
#[derive(Clone, Debug)]
pub struct ScalarOptions {
    /// Leading positions that may be the reference sink.
    pub candidates: Vec<usize>,
    /// Also measure the state after the final norm.
    pub final_state: bool,
}

/// Fills [`TraceScalars`] while a trace runs through the model, in chunks of any size. Of the hidden
/// states only those up to the last candidate are kept.
///
/// For a pass over a single sequence.
#[derive(Debug)]
pub struct ScalarProbe {
    scalars: TraceScalars,
    /// Hidden states of the positions up to the last candidate, per layer; the last entry is for the
    /// state after the final norm.
    leading: Vec<Vec<f32>>,
    leading_positions: usize,
    seen: usize,
}

impl ScalarProbe {
    /// A probe for a trace of `token_ids` through a model of `layers` layers.
    pub fn new(layers: usize, token_ids: &[u32], options: &ScalarOptions) -> ScalarProbe {
        let tokens = token_ids.len();
        let grid = || Grid::zeros(layers, tokens);
        let candidate = |position: &usize| CandidateCosines { position: *position, cosine: grid() };
        let final_state = || FinalState {
            norm: vec![0.0; tokens],
            cosine: vec![vec![0.0; tokens]; options.candidates.len()],
        };
        ScalarProbe {
            scalars: TraceScalars {
                token_ids: token_ids.to_vec(),
                hidden_norm: grid(),
                mlp_out_norm: grid(),
                key_norm: grid(),
                value_norm: grid(),
                candidates: options.candidates.iter().map(candidate).collect(),
                final_state: options.final_state.then(final_state),
            },
            leading: vec![Vec::new(); layers + 1],
            leading_positions: options.candidates.iter().max().map_or(0, |last| last + 1),
            seen: 0,
        }
    }

    fn check(&self, at: &At) -> Result<()> {
        let (tokens, layers) = (self.scalars.tokens(), self.scalars.layers());
        if at.positions.end <= tokens && at.layer < layers && !at.positions.is_empty() {
            return Ok(());
        }
        let Range { start, end } = at.positions;
        Err(Error::Request(format!(
            "positions {start}..{end} of layer {} came to a probe for {tokens} tokens and \
             {layers} layers",
            at.layer
        )))
    }

    /// What was measured.
    ///
    /// # Errors
    /// Not every token has been through the model.
    pub fn finish(self) -> Result<TraceScalars> {
        let tokens = self.scalars.tokens();
        if self.seen < tokens {
            let seen = self.seen;
            return Err(Error::Request(format!("{seen} of {tokens} tokens were measured")));
        }
        Ok(self.scalars)
    }
}

impl Probe for ScalarProbe {
    fn access(&self, site: Site, layer: usize) -> Access {
        match site {
            Site::ResidPost => Access::Dots,
            Site::MlpOut | Site::K | Site::V => Access::Norms,
            Site::FinalNorm if layer == 0 && self.scalars.final_state.is_some() => Access::Dots,
            _ => Access::Skip,
        }
    }

    fn landmarks(&self, _sequence: usize) -> Vec<usize> {
        self.scalars.candidates.iter().map(|candidate| candidate.position).collect()
    }

    fn measured(&mut self, at: &At, measured: &Measured<'_>) -> Result<()> {
        self.check(at)?;
        finite(at, measured.norms)?;
        let scalars = &mut self.scalars;
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

    /// The same from rows, where they are at hand: the same numbers.
    fn read(&mut self, at: &At, values: &[f32]) -> Result<()> {
        self.check(at)?;
        let scalars = &mut self.scalars;
        let layers = scalars.layers();
        let chunk = Chunk::new(at, values);
        match at.site {
            Site::MlpOut => chunk.norms(scalars.mlp_out_norm.row_mut(at.layer))?,
            Site::K => chunk.norms(scalars.key_norm.row_mut(at.layer))?,
            Site::V => chunk.norms(scalars.value_norm.row_mut(at.layer))?,
            Site::ResidPost => {
                let norms = scalars.hidden_norm.row_mut(at.layer);
                chunk.norms(norms)?;
                let leading = &mut self.leading[at.layer];
                chunk.keep(leading, self.leading_positions);
                for candidate in &mut scalars.candidates {
                    let cosines = candidate.cosine.row_mut(at.layer);
                    chunk.cosines(candidate.position, leading, norms, cosines);
                }
                if at.layer + 1 == layers {
                    self.seen = at.positions.end;
                }
            }
            Site::FinalNorm => {
                let Some(FinalState { norm, cosine }) = &mut scalars.final_state else {
                    return Ok(());
                };
                chunk.norms(norm)?;
                let leading = &mut self.leading[layers];
                chunk.keep(leading, self.leading_positions);
                for (candidate, cosines) in scalars.candidates.iter().zip(cosine) {
                    chunk.cosines(candidate.position, leading, norm, cosines);
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// Cosines of rows with a landmark's, from their dot products. `norms` and `out` are `[T]`.
fn cosines_of(at: &At, dots: &Dots<'_>, (norms, landmark): (&[f32], usize), out: &mut [f32]) {
    let before = dots.before.iter().enumerate();
    let these = at.positions.clone().zip(dots.these);
    for (t, dot) in before.chain(these) {
        out[t] = cosine_of_dot(*dot, norms[t], norms[landmark]);
    }
}

/// Refuses norms that are not finite.
fn finite(at: &At, norms: &[f32]) -> Result<()> {
    match at.positions.clone().zip(norms).find(|(_, norm)| !norm.is_finite()) {
        None => Ok(()),
        Some((t, _)) => Err(Error::Request(format!(
            "`{}` of layer {} is not finite at position {t}",
            at.site, at.layer
        ))),
    }
}

/// Some consecutive positions' values at one place. Outputs hold all of the trace's positions, `[T]`.
struct Chunk<'a> {
    at: &'a At,
    values: &'a [f32], // [positions, width]
    width: usize,
}

impl<'a> Chunk<'a> {
    /// `at.positions` is not empty.
    fn new(at: &'a At, values: &'a [f32]) -> Chunk<'a> {
        Chunk { at, values, width: (values.len() / at.positions.len()).max(1) }
    }

    /// (position, row) of the chunk.
    fn rows(&self) -> impl Iterator<Item = (usize, &'a [f32])> {
        self.at.positions.clone().zip(self.values.chunks_exact(self.width))
    }

    fn norms(&self, out: &mut [f32]) -> Result<()> {
        for (t, row) in self.rows() {
            out[t] = norm(row);
        }
        finite(self.at, &out[self.at.positions.clone()])
    }

    /// Appends the rows of the first `positions` positions to `leading` `[positions, width]`.
    fn keep(&self, leading: &mut Vec<f32>, positions: usize) {
        for (_, row) in self.rows().take_while(|(t, _)| *t < positions) {
            leading.extend_from_slice(row);
        }
    }

    /// Cosines of the chunk's rows with `candidate`, once it has come; those of the rows before it are
    /// made up for in the chunk it comes with.
    fn cosines(&self, candidate: usize, leading: &[f32], norms: &[f32], out: &mut [f32]) {
        let row_of = |t: usize| &leading[t * self.width..(t + 1) * self.width];
        if candidate >= self.at.positions.end {
            return;
        }
        let with_candidate =
            |t: usize, row: &[f32]| cosine(row, norms[t], row_of(candidate), norms[candidate]);
        if candidate >= self.at.positions.start {
            let earlier = &mut out[..self.at.positions.start];
            for (t, out) in earlier.iter_mut().enumerate() {
                *out = with_candidate(t, row_of(t));
            }
        }
        for (t, row) in self.rows() {
            out[t] = with_candidate(t, row);
        }
    }
}
