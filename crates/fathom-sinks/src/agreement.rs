//! Four measures (docs/definitions.md), counted over a run: where they agree, the sink rate,
//! massive activations by dimension, and tokens that draw attention without being aligned.

mod count;

use std::collections::BTreeMap;

use fathom_model::Result;

use self::count::Counter;
use crate::{MeasureRow, MeasureSet, Phases, RunDir, TokenMeasures, TraceDetection};

/// The four measures over all traces of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Agreement {
    /// Whether attention was measured.
    pub attention: bool,
    /// Number of traces.
    pub traces: usize,
    /// Number of tokens.
    pub tokens: usize,
    /// Number of layers.
    pub layers: usize,
    /// Each combination of measures that occurs, and the empty one: by descending number of
    /// (token, layer), the empty one last.
    pub combinations: Vec<Combination>,
    /// Sink rates, if attention was measured.
    pub rates: Option<SinkRates>,
    /// Dimensions with massive activations, by descending number of tokens, then by index.
    pub massive: Vec<MassiveDim>,
    /// Number of tokens that draw attention at layers at which they are not aligned.
    pub unaligned_count: usize,
    /// Number of them that are aligned at no layer.
    pub never_aligned_count: usize,
    /// The strongest of them: first those that are aligned at no layer, by descending score.
    pub unaligned: Vec<MeasuredToken>,
    /// The strongest tokens by any measure: by descending sink score, then number of layers.
    pub strongest: Vec<MeasuredToken>,
}

/// How often exactly these measures hold together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Combination {
    /// The measures.
    pub set: MeasureSet,
    /// Number of (token, layer) at which they hold and no other does.
    pub pairs: usize,
    /// Those among the last [`Agreement::FEW_LATER`] tokens of their trace.
    pub near_end: usize,
    /// Number of tokens for which each of them holds at some layer, and no other at any.
    pub tokens: usize,
}

/// The share of traces in which a head's sink score is above ε, by layer and head.
#[derive(Clone, Debug, PartialEq)]
pub struct SinkRates {
    /// Number of heads per layer.
    pub heads: usize,
    /// At the reference, `[layers][heads]`.
    pub reference: Vec<Vec<f64>>,
    /// At any token but the last [`Agreement::FEW_LATER`] of the trace, `[layers][heads]`.
    pub anywhere: Vec<Vec<f64>>,
}

/// A dimension of the residual stream with massive activations.
#[derive(Clone, Debug, PartialEq)]
pub struct MassiveDim {
    /// Its index.
    pub dim: usize,
    /// Number of tokens that have one at some layer.
    pub tokens: usize,
    /// By layer.
    pub layers: BTreeMap<usize, MassiveLayer>,
}

/// The massive activations of a dimension at a layer.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct MassiveLayer {
    /// Number of tokens.
    pub tokens: usize,
    /// The value with the largest |x|.
    pub largest: f32,
}

/// A token with its measures at the layers at which at least one holds.
#[derive(Clone, Debug, PartialEq)]
pub struct MeasuredToken {
    /// 0-based number of the trace in the run.
    pub trace: usize,
    /// Index of the trace in its data set.
    pub sample_index: u64,
    /// Position in the trace.
    pub position: usize,
    /// The token.
    pub token_id: u32,
    /// The token's text, if known.
    pub token_text: Option<String>,
    /// Whether it is among the last [`Agreement::FEW_LATER`] tokens of its trace.
    pub near_end: bool,
    /// Its measures by layer.
    pub layers: Vec<TokenMeasures>,
}

impl Agreement {
    /// Only few positions attend to the last tokens of a trace, so a single one can raise their
    /// sink score above ε. Rankings leave out this many.
    pub const FEW_LATER: usize = 10;

    /// Counts the measures of a run, finished or not, with the `most` strongest tokens of each
    /// kind. `None` if the run has no measures: it was scanned by an earlier version.
    ///
    /// # Errors
    /// Tables of the run that are missing or damaged.
    pub fn of_run(run: &RunDir, most: usize) -> Result<Option<Agreement>> {
        let traces = run.detections_of(Phases::Largest)?;
        let model = &run.manifest().model;
        let attention = run.manifest().options.attention;
        let mut counter = Counter::new(&traces, (model.layers, model.heads), most);
        let mut token: Option<MeasuredToken> = None;
        let found = run.measures(traces.len(), &mut |row| {
            let same = |token: &MeasuredToken| {
                (token.trace, token.position) == (row.trace, row.measures.position)
            };
            if !token.as_ref().is_some_and(same) {
                token.take().into_iter().for_each(|done| counter.add(done));
                token = Some(MeasuredToken::new(&row, &traces[row.trace]));
            }
            token.iter_mut().for_each(|token| token.layers.push(row.measures.clone()));
        })?;
        token.into_iter().for_each(|done| counter.add(done));
        Ok(found.then(|| counter.finish(attention)))
    }

    /// Number of (token, layer).
    pub fn pairs(&self) -> usize {
        self.tokens * self.layers
    }
}

impl MeasuredToken {
    fn new(row: &MeasureRow, trace: &TraceDetection) -> MeasuredToken {
        let position = row.measures.position;
        MeasuredToken {
            trace: row.trace,
            sample_index: trace.sample_index,
            position,
            token_id: row.token_id,
            token_text: row.token_text.clone(),
            near_end: position + Agreement::FEW_LATER >= trace.scanned_tokens(),
            layers: Vec::new(),
        }
    }

    /// The layers at which `holds` is true.
    pub fn layers_where(&self, holds: impl Fn(&TokenMeasures) -> bool) -> Vec<usize> {
        self.layers.iter().filter(|at| holds(at)).map(|at| at.layer).collect()
    }

    /// The measures that hold at some layer.
    pub fn holds(&self) -> MeasureSet {
        self.layers.iter().fold(MeasureSet::default(), |all, at| all.union(at.holds()))
    }

    /// Whether it draws attention at a layer without being aligned there, and is not near the end.
    fn draws_unaligned(&self) -> bool {
        !self.near_end && self.layers.iter().any(TokenMeasures::draws_unaligned)
    }

    fn is_aligned_anywhere(&self) -> bool {
        self.layers.iter().any(|at| at.aligned)
    }

    /// The largest score of a head at the layers at which `holds` is true.
    fn score(&self, holds: impl Fn(&TokenMeasures) -> bool) -> f32 {
        let at = self.layers.iter().filter(|at| holds(at)).filter_map(|at| at.scores.as_ref());
        at.map(|scores| scores.max).fold(0.0, f32::max)
    }

    /// The largest mean score over heads; 0 near the end.
    fn mean_score(&self) -> f32 {
        let scores = self.layers.iter().filter_map(|at| at.scores.as_ref());
        let scores = scores.map(|scores| scores.mean).filter(|_| !self.near_end);
        scores.fold(0.0, f32::max)
    }
}

impl TokenMeasures {
    /// Whether it draws attention at this layer without being aligned there.
    pub fn draws_unaligned(&self) -> bool {
        let draws = self.scores.as_ref().is_some_and(|scores| !scores.heads_above.is_empty());
        draws && !self.aligned
    }
}

impl SinkRates {
    /// The sink rate of the model: the mean over layers and heads.
    pub fn mean(rates: &[Vec<f64>]) -> f64 {
        let (sum, count) =
            rates.iter().flatten().fold((0.0, 0u32), |(sum, count), rate| (sum + rate, count + 1));
        if count == 0 { 0.0 } else { sum / f64::from(count) }
    }
}
