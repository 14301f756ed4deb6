//! The probe of a scan: norms and cosines, chunk by chunk.

use std::ops::Range;

use fathom_model::{Access, At, Dots, Error, Measured, Probe, Result, Site};
use fathom_vector::dot;
use fathom_vector::norm;

use crate::Grid;
use crate::scalars::{CandidateCosines, FinalState, TraceScalars};
use crate::vector::cosine_of_dot;

/// Options of a [`ScalarProbe`].
#[derive(Clone, Debug)]
pub struct ScalarOptions {
    /// Leading positions that are candidates for the reference sink.
    pub candidates: Vec<usize>,
    /// Whether to also measure the state after the final norm.
    pub final_state: bool,
}

/// Fills [`TraceScalars`] while a trace runs through the model in chunks of any size. Hidden states
/// are kept only up to the last candidate.
///
/// For a pass over a single sequence.
#[derive(Debug)]
pub struct ScalarProbe {
    scalars: TraceScalars,
    /// Hidden states of the positions up to the last candidate, per layer; the last entry holds the
    /// states after the final norm.
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
            "positions {start}..{end} of layer {} are outside of this probe's {tokens} tokens and \
             {layers} layers",
            at.layer
        )))
    }

    /// The measurements.
    ///
    /// # Errors
    /// Some tokens have not been through the model.
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

    fn reference_positions(&self, _sequence: usize) -> Vec<usize> {
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
        if access == Access::Dots {
            let place = if at.site == Site::FinalNorm { self.scalars.layers() } else { at.layer };
            let leading = &mut self.leading[place];
            let kept = at.positions.clone().zip(rows());
            for (_, row) in kept.take_while(|(t, _)| *t < self.leading_positions) {
                leading.extend_from_slice(row);
            }
            for CandidateCosines { position, .. } in &self.scalars.candidates {
                let row_of = |t: usize| &leading[t * width..(t + 1) * width];
                let with = |row: &[f32]| dot(row, row_of(*position));
                // Rows before a candidate are measured once the candidate arrives.
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
        self.measured(at, &Measured { norms: &norms, dots })
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
