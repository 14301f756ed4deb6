//! What happens without the secondary sinks of a layer (definition 2.11).

use fathom_model::{Change, Edit, Edits, ModelConfig, Positions, Result, Site};
use serde::{Deserialize, Serialize};

use super::again::{Changes, Outcome};
use super::creation::Creation;
use super::statistics::Mean;
use super::subjects::Subject;
use super::{Analysis, AnalysisResult, Summary};

/// The run's traces, scanned again with the sink direction clamped at a layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Suppress {
    /// A token is clamped where the cosine of its `mlp_out` with the sink direction is above this.
    pub cosine: f32,
    /// The layers that create most secondary sinks, each clamped on its own.
    pub layers: Vec<SuppressedLayer>,
}

/// Consequences of clamping one layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SuppressedLayer {
    /// The layer.
    pub layer: usize,
    /// ‖mlp_out‖ that was left to the clamped tokens: the mean of tokens that are no sinks.
    pub norm: f32,
    /// Tokens clamped.
    pub clamped: usize,
    /// What became of the secondary sinks, by level.
    pub levels: Vec<LevelChange>,
    /// Secondary sinks that were none before.
    pub appeared: usize,
    /// The clamped tokens from this layer on.
    pub later: Vec<LaterLayer>,
    /// KL(before ‖ after) of the next-token distributions in nats, over positions from the first
    /// clamped token on.
    pub kl: Option<Summary>,
    /// Mean negative log-likelihood of the traces' tokens in nats, before.
    pub nll_before: f64,
    /// The same, after.
    pub nll_after: f64,
    /// What the model writes by itself, without and with the clamp: one a trace in which a token
    /// before it was clamped.
    #[serde(default)]
    pub continuations: Vec<Continuation>,
}

/// Greedy text from somewhere in a trace, with and without a layer clamped.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Continuation {
    /// 0-based number of the trace in the run.
    pub trace: usize,
    /// The trace's own index.
    pub sample_index: u64,
    /// Position of the first token that is written, half-way from the first token that any layer's
    /// clamp changed to the end of the trace; before it stands the trace's own text.
    pub from: usize,
    /// Clamped tokens before it.
    pub clamped: usize,
    /// What is written without the clamp.
    pub before: Written,
    /// What is written with it, the clamp acting on what is written too.
    pub after: Written,
    /// Number of the first token in which they differ; absent where they are the same.
    pub differs_at: Option<usize>,
}

/// A model's own text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Written {
    /// Its tokens.
    pub ids: Vec<u32>,
    /// Its text, where the model has a tokenizer.
    pub text: Option<String>,
}

/// What became of the secondary sinks of a level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LevelChange {
    /// First layer.
    pub l_start: usize,
    /// Number of layers.
    pub lifetime: usize,
    /// Sinks there were.
    pub before: usize,
    /// Of which are sinks at the very same layers.
    pub kept: usize,
    /// Of which are sinks at other layers.
    pub changed: usize,
    /// Of which are no sinks any more.
    pub gone: usize,
}

/// The clamped tokens at one layer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LaterLayer {
    /// The layer.
    pub layer: usize,
    /// Mean cosine with the reference, before.
    pub cosine_before: f64,
    /// The same, after.
    pub cosine_after: f64,
    /// Mean ‖resid_post‖, before.
    pub norm_before: f64,
    /// The same, after.
    pub norm_after: f64,
}

impl AnalysisResult for Suppress {
    const ANALYSIS: Analysis = Analysis::Suppress;
}

/// Beyond this cosine with the sink direction an `mlp_out` makes a sink (definition 2.11).
///
/// The direction is the reference's state rather than its own `mlp_out`: the two agree where that
/// MLP writes the reference's sink direction again, and where it does not only the state has it.
const COSINE: f32 = 0.98;

/// Tokens of a continuation.
pub(super) const CONTINUED: usize = 48;

/// Clamping one layer, trace by trace.
pub(super) struct Clamped {
    layer: usize,
    norm: f32,
    direction: Vec<f32>,
    sum: ClampedTrace,
    continuations: Vec<Continuation>,
}

/// What clamping one layer did to one trace, or to several.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct ClampedTrace {
    clamped: usize,
    changes: Changes,
    /// Per layer from the clamped one on: cosine and norm, before and after.
    later: Vec<[Mean; 4]>,
    kl: Vec<f64>,
    nll: [Mean; 2],
    continuation: Option<Continuation>,
}

impl Clamped {
    pub fn new(creation: &Creation) -> Clamped {
        Clamped {
            layer: creation.layer,
            norm: creation.other_norm(),
            direction: creation.direction(),
            sum: ClampedTrace::default(),
            continuations: Vec::new(),
        }
    }

    /// All that its edits depend on beside the trace, as parts are sealed with it.
    pub fn change(&self) -> (usize, f32, &[f32]) {
        (self.layer, self.norm, &self.direction)
    }

    /// What to change in a trace's pass, and in what is written after it.
    ///
    /// # Errors
    /// Activations that are not finite.
    pub fn edits(&self, subject: &Subject<'_>, config: &ModelConfig) -> Result<Edits> {
        let direction = self.direction.clone();
        let positions =
            Positions::Aligned { direction, cosine: COSINE, from: subject.reference + 1 };
        let edit = Edit {
            site: Site::MlpOut,
            layer: self.layer,
            positions,
            columns: None,
            change: Change::Clamp(self.norm),
        };
        Edits::new(vec![edit], config, None)
    }

    /// The tokens of a trace that were clamped: aligned ones no longer than the clamp stay as they
    /// are.
    pub fn positions(&self, before: &Outcome, after: &Outcome) -> Vec<usize> {
        let norms = before.scalars.mlp_out_norm.row(self.layer);
        after.aligned.iter().copied().filter(|t| norms[*t] > self.norm).collect()
    }

    /// What a trace's passes came to.
    pub fn part(&self, subject: &Subject<'_>, before: &Outcome, after: &Outcome) -> ClampedTrace {
        let clamped = self.positions(before, after);
        let first = clamped.first().copied().unwrap_or(after.kl.len());
        let mut nll = [Mean::default(); 2];
        nll[0].add(&before.nll);
        nll[1].add(&after.nll);
        let layers = before.scalars.layers();
        let mut later = vec![[Mean::default(); 4]; layers - self.layer];
        for (l, means) in (self.layer..layers).zip(&mut later) {
            for t in &clamped {
                for (i, outcome) in [before, after].into_iter().enumerate() {
                    let scalars = &outcome.scalars;
                    let mut candidates = scalars.candidates.iter();
                    if let Some(found) = candidates.find(|c| c.position == subject.reference) {
                        means[i].add(&[f64::from(found.cosine.at(l, *t))]);
                    }
                    means[2 + i].add(&[f64::from(scalars.hidden_norm.at(l, *t))]);
                }
            }
        }
        ClampedTrace {
            clamped: clamped.len(),
            changes: Changes::of(subject, &after.detection),
            later,
            kl: after.kl[first..].to_vec(),
            nll,
            continuation: None,
        }
    }

    /// Takes in what a trace's passes came to.
    pub fn add(&mut self, trace: ClampedTrace) {
        let sum = &mut self.sum;
        sum.clamped += trace.clamped;
        sum.changes.merge(trace.changes);
        sum.later.resize(trace.later.len(), Default::default());
        for (means, more) in sum.later.iter_mut().flatten().zip(trace.later.iter().flatten()) {
            means.merge(more);
        }
        sum.kl.extend(trace.kl);
        sum.nll.iter_mut().zip(&trace.nll).for_each(|(mean, more)| mean.merge(more));
        self.continuations.extend(trace.continuation);
    }

    fn finish(self) -> SuppressedLayer {
        let ClampedTrace { clamped, changes, later, kl, nll, .. } = self.sum;
        let (levels, appeared) = changes.finish();
        let of_layer = |(layer, means): (usize, [Mean; 4])| {
            let [cosine_before, cosine_after, norm_before, norm_after] = means.map(|m| m.get());
            LaterLayer { layer, cosine_before, cosine_after, norm_before, norm_after }
        };
        SuppressedLayer {
            layer: self.layer,
            norm: self.norm,
            clamped,
            levels,
            appeared,
            later: (self.layer..).zip(later).filter(|_| clamped > 0).map(of_layer).collect(),
            kl: Summary::of(kl),
            nll_before: nll[0].get(),
            nll_after: nll[1].get(),
            continuations: self.continuations,
        }
    }
}

/// Where a trace is continued from: half-way from the first token that some clamp changed to its
/// end.
pub(super) fn continued_from(
    clamps: &[Clamped],
    before: &Outcome,
    after: &[Outcome],
) -> Option<usize> {
    let clamped = clamps.iter().zip(after);
    let first =
        clamped.filter_map(|(clamp, after)| clamp.positions(before, after).first().copied()).min();
    first.map(|first| (first + 1 + before.scalars.tokens()).div_ceil(2))
}

impl ClampedTrace {
    /// Adds what the model writes behind the first `from` tokens, of which `clamped` were clamped.
    pub fn continues(
        &mut self,
        subject: &Subject<'_>,
        (from, clamped): (usize, usize),
        [before, after]: [&[u32]; 2],
        text: &dyn Fn(&[u32]) -> Option<String>,
    ) {
        let written = |ids: &[u32]| Written { ids: ids.to_vec(), text: text(ids) };
        self.continuation = Some(Continuation {
            trace: subject.number,
            sample_index: subject.detection.sample_index,
            from,
            clamped,
            before: written(before),
            after: written(after),
            differs_at: before.iter().zip(after).position(|(before, after)| before != after),
        });
    }
}

impl Suppress {
    pub(super) fn of(layers: Vec<Clamped>) -> Suppress {
        Suppress { cosine: COSINE, layers: layers.into_iter().map(Clamped::finish).collect() }
    }
}
