//! How compressed the residual stream is: the entropy of its Gram matrix's spectrum, "Compression"
//! (docs/definitions.md).

use std::collections::BTreeSet;

use fathom_backend::Backend;
use fathom_model::{Result, Sequence, Site, Transformer};
use serde::{Deserialize, Serialize};

use super::analysis::Analyzer;
use super::gram::{eigenvalues, smaller_gram};
use super::parts::{decode, encode};
use super::pass::{Observer, Rows};
use super::scanned::{ScannedRun, ScannedTrace};
use super::{Analysis, AnalysisResult, ExplainProgress, Inputs};

/// Matrix-based entropy (Rényi order 1, in nats) by layer and growing window.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entropy {
    /// Maximum number of rows per window; longer windows are sampled evenly.
    pub max_rows: usize,
    /// By trace.
    pub traces: Vec<TraceEntropy>,
}

/// One trace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TraceEntropy {
    /// 0-based number of the trace in the run.
    pub trace: usize,
    /// The trace's own index.
    pub sample_index: u64,
    /// With and without the prompt.
    pub series: Vec<EntropySeries>,
}

/// The tokens of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// From the first token on.
    WithPrompt,
    /// From the first token after the prompt and the reference on.
    WithoutPrompt,
}

/// Windows of growing length.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EntropySeries {
    /// The tokens of its windows.
    pub scope: Scope,
    /// First position of every window.
    pub first: usize,
    /// By length.
    pub windows: Vec<Window>,
}

/// One window.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Window {
    /// Tokens in the window.
    pub tokens: usize,
    /// Tokens the entropy was computed from.
    pub rows: usize,
    /// Entropy of `resid_post` at every layer, `[L]`; between 0 and ln(min(rows, hidden)).
    pub entropy: Vec<f32>,
}

impl AnalysisResult for Entropy {
    const ANALYSIS: Analysis = Analysis::Entropy;
}

/// Maximum number of rows per window: eigenvalues take O(rows³). It also bounds memory: each time a
/// trace's length doubles, at most this many more states are stored per layer.
const MAX_ROWS: usize = 256;
/// The shortest window.
const FIRST_WINDOW: usize = 16;

/// Collects the states that windows are sampled from.
pub(super) struct EntropyAnalyzer {
    /// Positions that are collected, ascending.
    sampled: Vec<usize>,
    /// `resid_post` of those, per layer.
    states: Vec<Vec<Vec<f32>>>,
    /// The result of this trace.
    trace: Option<TraceEntropy>,
    traces: Vec<TraceEntropy>,
}

impl Analyzer for EntropyAnalyzer {
    type Output = Entropy;
    const HELP: &'static str =
        "Matrix-based entropy of the residual stream by layer and growing window";

    fn new(run: &ScannedRun<'_>) -> EntropyAnalyzer {
        let (sampled, states) = (Vec::new(), vec![Vec::new(); run.layers]);
        EntropyAnalyzer { sampled, states, trace: None, traces: Vec::new() }
    }

    fn observers<B: Backend>(&mut self) -> Vec<&mut dyn Observer<B>> {
        vec![self]
    }

    fn finish<B: Backend>(self, _: &Inputs<'_, B>, _: &mut dyn ExplainProgress) -> Result<Entropy> {
        Ok(Entropy { max_rows: MAX_ROWS, traces: self.traces })
    }
}

/// First position of each kind of window.
fn scopes(trace: &ScannedTrace<'_>) -> [(Scope, usize); 2] {
    let after_prompt = trace.prompt_len.max(trace.reference + 1);
    [(Scope::WithPrompt, 0), (Scope::WithoutPrompt, after_prompt)]
}

/// Lengths of the windows over `tokens` tokens: powers of two, and all tokens.
fn lengths(tokens: usize) -> Vec<usize> {
    let doubling = |length: &usize| length.checked_mul(2);
    let mut lengths: Vec<usize> = std::iter::successors(Some(FIRST_WINDOW), doubling)
        .take_while(|length| *length < tokens)
        .collect();
    lengths.extend((tokens > 1).then_some(tokens));
    lengths
}

/// The positions a window is computed from. Strides are powers of two, so that longer windows use
/// positions of shorter ones.
fn positions(first: usize, length: usize) -> impl Iterator<Item = usize> {
    let stride = length.div_ceil(MAX_ROWS).next_power_of_two();
    (first..first + length).step_by(stride)
}

impl<B: Backend> Observer<B> for EntropyAnalyzer {
    fn name(&self) -> &'static str {
        Analysis::Entropy.name()
    }

    fn begin(&mut self, trace: &ScannedTrace<'_>) {
        let tokens = trace.ids.len();
        let windows = scopes(trace).into_iter().flat_map(|(_, first)| {
            let lengths = lengths(tokens.saturating_sub(first));
            lengths.into_iter().flat_map(move |length| positions(first, length))
        });
        self.sampled = windows.collect::<BTreeSet<usize>>().into_iter().collect();
        self.states.iter_mut().for_each(Vec::clear);
    }

    fn wants(&self, site: Site, _: usize) -> bool {
        site == Site::ResidPost
    }

    fn read(&mut self, _: Site, layer: usize, rows: &Rows<'_>) {
        let sampled = rows.iter().filter(|(t, _)| self.sampled.binary_search(t).is_ok());
        self.states[layer].extend(sampled.map(|(_, row)| row.to_vec()));
    }

    fn end(
        &mut self,
        _: &Transformer<B>,
        _: &mut Sequence<B>,
        trace: &ScannedTrace<'_>,
        _: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<()> {
        let window = |first: usize, tokens: usize| {
            let indices: Vec<usize> = positions(first, tokens)
                .filter_map(|position| self.sampled.binary_search(&position).ok())
                .collect();
            let of_layer = |states: &Vec<Vec<f32>>| {
                let rows: Vec<&[f32]> = indices.iter().map(|i| states[*i].as_slice()).collect();
                matrix_entropy(&rows) as f32
            };
            let entropy = self.states.iter().map(of_layer).collect();
            Window { tokens, rows: indices.len(), entropy }
        };
        let series = scopes(trace).map(|(scope, first)| {
            let lengths = lengths(trace.ids.len().saturating_sub(first));
            let windows = lengths.into_iter().map(|length| window(first, length)).collect();
            EntropySeries { scope, first, windows }
        });
        self.trace = Some(TraceEntropy {
            trace: trace.number,
            sample_index: trace.detection.sample_index,
            series: series.into(),
        });
        Ok(())
    }

    fn part(&mut self) -> Result<Vec<u8>> {
        encode(&self.trace.take())
    }

    fn add(&mut self, part: &[u8]) -> bool {
        let trace: Option<TraceEntropy> = decode(part);
        trace.map(|trace| self.traces.push(trace)).is_some()
    }
}

/// -Σ p · ln p over the eigenvalues p of X Xᵀ / tr(X Xᵀ), X being the rows.
fn matrix_entropy(rows: &[&[f32]]) -> f64 {
    let values = eigenvalues(smaller_gram(rows));
    let trace: f64 = values.iter().map(|value| value.max(0.0)).sum();
    let term = |value: &f64| match value / trace {
        p if p > 0.0 => -p * p.ln(),
        _ => 0.0,
    };
    values.iter().map(term).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entropy_counts_directions() {
        let e = |i: usize| (0..8).map(|j| if i == j { 2.0 } else { 0.0 }).collect::<Vec<f32>>();
        let rows: Vec<Vec<f32>> = (0..4).map(e).collect();
        let rows: Vec<&[f32]> = rows.iter().map(Vec::as_slice).collect();
        assert!((matrix_entropy(&rows) - 4f64.ln()).abs() < 1e-12, "four, orthogonal");
        let twice: Vec<&[f32]> = rows.iter().cycle().take(40).copied().collect();
        assert!((matrix_entropy(&twice) - 4f64.ln()).abs() < 1e-12, "more rows than columns");
        assert!(matrix_entropy(&rows[..1]).abs() < 1e-12);
        assert!(matrix_entropy(&[&[0.0, 0.0]]).abs() < 1e-12);
    }

    #[test]
    fn entropy_is_numpy_s() {
        let fixture = super::super::fixture::fixture();
        assert!((matrix_entropy(&fixture.rows()) - fixture.entropy).abs() < 1e-5);
    }

    #[test]
    fn windows_double_and_longer_ones_use_positions_of_shorter_ones() {
        assert_eq!(lengths(100), [16, 32, 64, 100]);
        assert!(lengths(1).is_empty());
        assert_eq!(lengths(16), [16]);
        let of = |length| positions(3, length).collect::<BTreeSet<usize>>();
        assert_eq!(of(256).len(), 256);
        assert_eq!(of(257).len(), 129);
        let all: BTreeSet<usize> = lengths(16_384).into_iter().flat_map(of).collect();
        assert_eq!(all.len(), 256 + 6 * 128);
    }
}
