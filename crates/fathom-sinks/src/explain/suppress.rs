//! What happens without the secondary sinks of a layer (definition 2.11).

use fathom_model::{Change, Edit, Edits, ModelConfig, Positions, Result, Site};
use serde::{Deserialize, Serialize};

use super::again::{Changes, Mean, Outcome};
use super::creation::Creation;
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
    /// KL(before ‖ after) of the next-token distributions in nats, over positions from the first clamped token on.
    pub kl: Option<Summary>,
    /// Mean negative log-likelihood of the traces' tokens in nats, before.
    pub nll_before: f64,
    /// The same, after.
    pub nll_after: f64,
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
/// The direction is the reference's state rather than its own `mlp_out`: the two agree where that MLP
/// writes the reference's sink direction again, and where it does not only the state has it.
const COSINE: f32 = 0.98;

/// Clamping one layer, trace by trace.
pub(super) struct Clamped {
    layer: usize,
    norm: f32,
    direction: Vec<f32>,
    clamped: usize,
    changes: Changes,
    /// Per layer from this one on: cosine and norm, before and after.
    later: Vec<[Mean; 4]>,
    kl: Vec<f64>,
    nll: [Mean; 2],
}

impl Clamped {
    pub fn new(creation: &Creation) -> Clamped {
        Clamped {
            layer: creation.layer,
            norm: creation.other_norm(),
            direction: creation.direction(),
            clamped: 0,
            changes: Changes::default(),
            later: Vec::new(),
            kl: Vec::new(),
            nll: Default::default(),
        }
    }

    /// What to change in a trace's pass.
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
        Edits::new(vec![edit], config, Some(subject.ids.len()))
    }

    /// Takes in a trace's passes.
    pub fn add(&mut self, subject: &Subject<'_>, before: &Outcome, after: &Outcome) {
        self.changes.add(subject, &after.detection);
        // Aligned rows no longer than the clamp stay as they are.
        let norms = before.scalars.mlp_out_norm.row(self.layer);
        let clamped: Vec<usize> =
            after.aligned.iter().copied().filter(|t| norms[*t] > self.norm).collect();
        self.clamped += clamped.len();
        if let Some(first) = clamped.first() {
            self.kl.extend(&after.kl[*first..]);
        }
        self.nll[0].add(&before.nll);
        self.nll[1].add(&after.nll);
        let layers = before.scalars.layers();
        self.later.resize_with(layers - self.layer, Default::default);
        for (l, means) in (self.layer..layers).zip(&mut self.later) {
            for t in &clamped {
                for (i, outcome) in [before, after].into_iter().enumerate() {
                    let scalars = &outcome.scalars;
                    let reference = subject.reference;
                    let mut candidates = scalars.candidates.iter();
                    if let Some(found) = candidates.find(|c| c.position == reference) {
                        means[i].add(&[f64::from(found.cosine.at(l, *t))]);
                    }
                    means[2 + i].add(&[f64::from(scalars.hidden_norm.at(l, *t))]);
                }
            }
        }
    }

    fn finish(self) -> SuppressedLayer {
        let (levels, appeared) = self.changes.finish();
        let later = |(layer, means): (usize, [Mean; 4])| {
            let [cosine_before, cosine_after, norm_before, norm_after] = means.map(|m| m.get());
            LaterLayer { layer, cosine_before, cosine_after, norm_before, norm_after }
        };
        let any = self.clamped > 0;
        SuppressedLayer {
            layer: self.layer,
            norm: self.norm,
            clamped: self.clamped,
            levels,
            appeared,
            later: (self.layer..).zip(self.later).filter(|_| any).map(later).collect(),
            kl: Summary::of(self.kl),
            nll_before: self.nll[0].get(),
            nll_after: self.nll[1].get(),
        }
    }
}

impl Suppress {
    pub(super) fn of(layers: Vec<Clamped>) -> Suppress {
        Suppress { cosine: COSINE, layers: layers.into_iter().map(Clamped::finish).collect() }
    }
}
