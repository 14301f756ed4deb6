//! What happens without the secondary sinks of a layer: "Suppression" (docs/definitions.md).

use fathom_backend::Backend;
use fathom_model::{Edits, ModelConfig, Result};
use serde::{Deserialize, Serialize};

use super::analysis::Analyzer;
use super::batch::EditedPass;
use super::creation::{CreationLayer, CreationObserver};
use super::edited::{Outcome, Passes, SinkChanges};
use super::intervention::Intervention;
use super::parts::{decode, encode};
use super::pass::Observer;
use super::scanned::{ScannedRun, ScannedTrace, creation_layers};
use super::statistics::Mean;
use super::{Analysis, AnalysisResult, ExplainProgress, Inputs, LevelChange, Summary};
use crate::{CLAMP_COSINE, clamp};

/// The run's traces, scanned again with the sink direction clamped at a layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Suppress {
    /// A token is clamped if the cosine of its `mlp_out` with the sink direction is above this.
    pub cosine: f32,
    /// The layers that create the most secondary sinks, each clamped alone.
    pub layers: Vec<SuppressedLayer>,
}

/// The effects of clamping one layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SuppressedLayer {
    /// The layer.
    pub layer: usize,
    /// ‖mlp_out‖ of the clamped tokens: the mean of tokens that are not sinks.
    pub norm: f32,
    /// Tokens clamped.
    pub clamped: usize,
    /// What became of the secondary sinks, by level.
    pub levels: Vec<LevelChange>,
    /// Secondary sinks that were not sinks before.
    pub appeared: usize,
    /// The clamped tokens, from this layer on.
    pub later: Vec<LaterLayer>,
    /// KL(before ‖ after) of the next-token distributions in nats, over positions from the first
    /// clamped token on.
    pub kl: Option<Summary>,
    /// Mean negative log-likelihood of the traces' tokens in nats, before.
    pub nll_before: f64,
    /// The same, after.
    pub nll_after: f64,
    /// What the model generates without and with the clamp: one per trace in which a token before
    /// the generated text was clamped.
    #[serde(default)]
    pub continuations: Vec<Continuation>,
}

/// Text generated greedily after part of a trace, with and without a layer clamped.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Continuation {
    /// 0-based number of the trace in the run.
    pub trace: usize,
    /// The trace's own index.
    pub sample_index: u64,
    /// Position of the first generated token: halfway between the first token that any layer's
    /// clamp changed and the end of the trace.
    pub from: usize,
    /// Clamped tokens before it.
    pub clamped: usize,
    /// The text without the clamp.
    pub before: Written,
    /// The text with the clamp, which also acts on the generated tokens.
    pub after: Written,
    /// 0-based number of the first token in which they differ; absent if they are the same.
    pub differs_at: Option<usize>,
}

/// Text that the model generated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Written {
    /// Its tokens.
    pub ids: Vec<u32>,
    /// Their text, if the model has a tokenizer.
    pub text: Option<String>,
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

/// Tokens of a continuation.
const CONTINUED: usize = 48;

/// Clamps each creation layer alone.
pub(super) struct SuppressAnalyzer {
    creation: CreationObserver,
    /// Filled when the plain passes are done.
    layers: Vec<ClampedLayer>,
}

impl Analyzer for SuppressAnalyzer {
    type Output = Suppress;
    const HELP: &'static str = "Clamp what makes sinks at a layer: later layers, logits";
    const SHARED_PARTS: &'static [&'static str] = &[CreationObserver::NAME];

    fn edited_passes(run: &ScannedRun<'_>) -> usize {
        creation_layers(&run.traces).len()
    }

    fn new(run: &ScannedRun<'_>) -> SuppressAnalyzer {
        SuppressAnalyzer { creation: CreationObserver::new(run), layers: Vec::new() }
    }

    fn observers<B: Backend>(&mut self) -> Vec<&mut dyn Observer<B>> {
        vec![&mut self.creation]
    }

    fn interventions<B: Backend>(
        &mut self,
        _: &Inputs<'_, B>,
    ) -> Result<Vec<&mut dyn Intervention<B>>> {
        self.layers = self.creation.layers().iter().map(ClampedLayer::new).collect();
        Ok(vec![self])
    }

    fn finish<B: Backend>(
        self,
        _: &Inputs<'_, B>,
        _: &mut dyn ExplainProgress,
    ) -> Result<Suppress> {
        let layers = self.layers.into_iter().map(ClampedLayer::finish).collect();
        Ok(Suppress { cosine: CLAMP_COSINE, layers })
    }
}

impl<B: Backend> Intervention<B> for SuppressAnalyzer {
    fn name(&self) -> &'static str {
        Analysis::Suppress.name()
    }

    fn settings(&self) -> Result<Vec<u8>> {
        let settings = |layer: &ClampedLayer| (layer.layer, layer.norm, layer.direction.clone());
        encode(&self.layers.iter().map(settings).collect::<Vec<_>>())
    }

    fn passes(&self, _: &ScannedTrace<'_>) -> usize {
        self.layers.len()
    }

    fn edits(&self, trace: &ScannedTrace<'_>, config: &ModelConfig) -> Result<Vec<EditedPass>> {
        let of_layer = |layer: &ClampedLayer| layer.edits(trace, config).map(EditedPass::of);
        self.layers.iter().map(of_layer).collect()
    }

    fn part(
        &self,
        trace: &ScannedTrace<'_>,
        passes: Passes<'_, B>,
        text: &dyn Fn(&[u32]) -> Option<String>,
    ) -> Result<Vec<u8>> {
        let each = || self.layers.iter().zip(passes.edited);
        let mut parts: Vec<ClampedTrace> =
            each().map(|(layer, edited)| layer.part(trace, passes.plain, edited)).collect();
        let clamped: Vec<Vec<usize>> =
            each().map(|(layer, edited)| layer.clamped(passes.plain, edited)).collect();
        let Some(first) = clamped.iter().filter_map(|positions| positions.first()).min() else {
            return encode(&parts);
        };
        // Halfway between the first clamped token and the end of the trace.
        let from = (first + 1 + passes.plain.scalars.tokens()).div_ceil(2);
        let texts = passes.continue_greedily(from, CONTINUED)?;
        if let Some((plain, edited)) = texts.split_first() {
            for ((part, positions), edited) in parts.iter_mut().zip(&clamped).zip(edited) {
                let clamped = positions.iter().filter(|position| **position < from).count();
                if clamped > 0 {
                    let texts = [plain.as_slice(), edited];
                    part.continuation = Some(Continuation::of(trace, from, clamped, texts, text));
                }
            }
        }
        encode(&parts)
    }

    fn add(&mut self, part: &[u8]) -> bool {
        let Some(layers) = decode::<Vec<ClampedTrace>>(part) else { return false };
        if layers.len() != self.layers.len() {
            return false;
        }
        self.layers.iter_mut().zip(layers).for_each(|(layer, trace)| layer.add(trace));
        true
    }
}

/// One clamped layer, over the traces so far.
struct ClampedLayer {
    layer: usize,
    norm: f32,
    direction: Vec<f32>,
    sum: ClampedTrace,
    continuations: Vec<Continuation>,
}

/// What clamping one layer did to one trace, or to several.
#[derive(Default, Serialize, Deserialize)]
struct ClampedTrace {
    clamped: usize,
    changes: SinkChanges,
    /// By layer, from the clamped one on: cosine before and after, norm before and after.
    later: Vec<[Mean; 4]>,
    kl: Vec<f64>,
    nll: [Mean; 2],
    continuation: Option<Continuation>,
}

impl ClampedLayer {
    fn new(creation: &CreationLayer) -> ClampedLayer {
        ClampedLayer {
            layer: creation.layer,
            norm: creation.other_norm(),
            direction: creation.direction(),
            sum: ClampedTrace::default(),
            continuations: Vec::new(),
        }
    }

    /// Clamps every token after the reference whose `mlp_out` has the sink direction.
    fn edits(&self, trace: &ScannedTrace<'_>, config: &ModelConfig) -> Result<Edits> {
        let edit = clamp(self.layer, self.direction.clone(), self.norm, trace.reference);
        Edits::new(vec![edit], config, None)
    }

    /// The tokens of a trace whose `mlp_out` was changed. A clamp leaves aligned tokens unchanged
    /// if their norm is small enough.
    fn clamped(&self, before: &Outcome, after: &Outcome) -> Vec<usize> {
        let norms = before.scalars.mlp_out_norm.row(self.layer);
        after.aligned.iter().copied().filter(|t| norms[*t] > self.norm).collect()
    }

    /// The effects on one trace, without a continuation.
    fn part(&self, trace: &ScannedTrace<'_>, before: &Outcome, after: &Outcome) -> ClampedTrace {
        let clamped = self.clamped(before, after);
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
                    if let Some(found) = candidates.find(|c| c.position == trace.reference) {
                        means[i].add(&[f64::from(found.cosine.at(l, *t))]);
                    }
                    means[2 + i].add(&[f64::from(scalars.hidden_norm.at(l, *t))]);
                }
            }
        }
        ClampedTrace {
            clamped: clamped.len(),
            changes: SinkChanges::of(trace, &after.detection),
            later,
            kl: after.kl[first..].to_vec(),
            nll,
            continuation: None,
        }
    }

    fn add(&mut self, trace: ClampedTrace) {
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

impl Continuation {
    /// Compares the texts generated without and with the clamp after the first `from` tokens of a
    /// trace. `clamped` of these tokens were clamped.
    fn of(
        trace: &ScannedTrace<'_>,
        from: usize,
        clamped: usize,
        [before, after]: [&[u32]; 2],
        text: &dyn Fn(&[u32]) -> Option<String>,
    ) -> Continuation {
        let written = |ids: &[u32]| Written { ids: ids.to_vec(), text: text(ids) };
        Continuation {
            trace: trace.number,
            sample_index: trace.detection.sample_index,
            from,
            clamped,
            before: written(before),
            after: written(after),
            differs_at: before.iter().zip(after).position(|(before, after)| before != after),
        }
    }
}
