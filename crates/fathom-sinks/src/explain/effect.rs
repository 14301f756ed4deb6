//! How much attention secondary sinks receive: "Effect on attention" (docs/definitions.md), paper
//! Fig. 4.

use std::mem;

use fathom_backend::Backend;
use fathom_model::{Result, Site};
use serde::{Deserialize, Serialize};

use super::analysis::Analyzer;
use super::parts::{decode, encode};
use super::pass::{Observer, Rows};
use super::scanned::{ScannedRun, ScannedTrace, sample};
use super::statistics::spearman;
use super::{Analysis, AnalysisResult, ExplainOptions, ExplainProgress, Inputs, Line, SinkNote};
use crate::Sink;

/// Sink scores and lifetimes against ‖mlp_out‖ at l_start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Effect {
    /// One entry per layer.
    pub layers: Vec<LayerEffect>,
    /// Spearman's ρ of lifetime and log‖mlp_out‖ at l_start over all secondary sinks; absent if
    /// either is the same for all.
    pub lifetime_rho: Option<f64>,
    /// The layer whose line is steepest, if any layer has a line.
    pub steepest_layer: Option<usize>,
    /// Secondary sinks, at most [`super::ExplainOptions::max_sinks`]; lines and ρ are over all.
    pub sinks: Vec<EffectPoint>,
}

/// Attention at one layer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerEffect {
    /// The layer.
    pub layer: usize,
    /// Mean sink score of the traces' references.
    pub reference: Option<f64>,
    /// Mean sink score of the secondary sinks alive at this layer: sinks at the previous layer,
    /// whose output this layer's attention reads.
    pub secondary: Option<f64>,
    /// How many are alive.
    pub alive: usize,
    /// The line of log(sink score / reference's sink score) on log ‖mlp_out at l_start‖ over the
    /// sinks alive; absent with fewer than three, or if all norms are the same.
    pub line: Option<Line>,
}

/// One secondary sink.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EffectPoint {
    /// The sink.
    #[serde(flatten)]
    pub sink: SinkNote,
    /// ‖mlp_out‖ at l_start.
    pub mlp_out_norm: f32,
    /// Its sink score at every layer, `[L]`.
    pub score: Vec<f32>,
    /// The score of its trace's reference, `[L]`.
    pub reference_score: Vec<f32>,
}

impl AnalysisResult for Effect {
    const ANALYSIS: Analysis = Analysis::Effect;
}

/// Collects sink scores, from the scan if it measured them and from the plain pass otherwise.
pub(super) struct EffectAnalyzer {
    layers: usize,
    options: ExplainOptions,
    points: Vec<Point>,
    /// Scores of the traces' references, `[traces][L]`.
    references: Vec<Vec<f32>>,
    current: TraceScores,
}

/// What one trace adds.
#[derive(Default, Serialize, Deserialize)]
struct TraceScores {
    points: Vec<Point>,
    /// The reference's scores, `[L]`.
    reference: Option<Vec<f32>>,
}

#[derive(Serialize, Deserialize)]
struct Point {
    effect: EffectPoint,
    /// Its layers, ascending.
    layers: Vec<usize>,
}

impl Analyzer for EffectAnalyzer {
    type Output = Effect;
    const HELP: &'static str = "Sink scores and lifetimes against the norm the MLP writes";

    fn from_scan(run: &ScannedRun<'_>) -> Option<Effect> {
        let mut analyzer = EffectAnalyzer::new(run);
        for trace in &run.traces {
            let mut sinks = trace.detection.sinks.iter();
            let reference = sinks.find(|sink| sink.position == trace.reference)?;
            let reference = reference.sink_score.clone()?;
            analyzer.add_trace(TraceScores::of(trace, reference, &|sink| sink.sink_score.clone()));
        }
        Some(analyzer.effect())
    }

    fn new(run: &ScannedRun<'_>) -> EffectAnalyzer {
        EffectAnalyzer {
            layers: run.layers,
            options: run.options.clone(),
            points: Vec::new(),
            references: Vec::new(),
            current: TraceScores::default(),
        }
    }

    fn observers<B: Backend>(&mut self) -> Vec<&mut dyn Observer<B>> {
        vec![self]
    }

    fn finish<B: Backend>(self, _: &Inputs<'_, B>, _: &mut dyn ExplainProgress) -> Result<Effect> {
        Ok(self.effect())
    }
}

impl EffectAnalyzer {
    fn add_trace(&mut self, trace: TraceScores) {
        self.points.extend(trace.points);
        self.references.extend(trace.reference);
    }

    fn effect(self) -> Effect {
        let layers: Vec<LayerEffect> = (0..self.layers).map(|l| self.layer(l)).collect();
        let slope = |effect: &LayerEffect| Some((effect.layer, effect.line?.slope));
        let steepest = layers.iter().filter_map(slope).max_by(|a, b| a.1.total_cmp(&b.1));
        let lifetimes: Vec<(f64, f64)> = self
            .points
            .iter()
            .map(|point| (log_norm(&point.effect), point.layers.len() as f64))
            .collect();
        let token = |point: &EffectPoint| (point.sink.trace, point.sink.position);
        let tokens = self.points.iter().map(|point| token(&point.effect));
        let listed = sample(tokens, self.options.max_sinks, self.options.seed);
        let sinks = self.points.into_iter().map(|point| point.effect);
        Effect {
            layers,
            lifetime_rho: spearman(&lifetimes),
            steepest_layer: steepest.map(|(layer, _)| layer),
            sinks: sinks.filter(|sink| listed.binary_search(&token(sink)).is_ok()).collect(),
        }
    }

    fn layer(&self, layer: usize) -> LayerEffect {
        let alive = |point: &&Point| layer > 0 && point.layers.contains(&(layer - 1));
        let alive: Vec<&EffectPoint> =
            self.points.iter().filter(alive).map(|point| &point.effect).collect();
        let ratio = |point: &&EffectPoint| {
            let (score, reference) = (point.score[layer], point.reference_score[layer]);
            let ratio = f64::from(score) / f64::from(reference);
            (ratio > 0.0 && ratio.is_finite()).then(|| (log_norm(point), ratio.ln()))
        };
        let points: Vec<(f64, f64)> = alive.iter().filter_map(ratio).collect();
        LayerEffect {
            layer,
            reference: mean(self.references.iter().map(|scores| scores[layer])),
            secondary: mean(alive.iter().map(|point| point.score[layer])),
            alive: alive.len(),
            line: Line::fit(&points),
        }
    }
}

impl TraceScores {
    /// A trace's secondary sinks.
    fn of(
        trace: &ScannedTrace<'_>,
        reference: Vec<f32>,
        score: &dyn Fn(&Sink) -> Option<Vec<f32>>,
    ) -> TraceScores {
        let point = |sink: &Sink| {
            let effect = EffectPoint {
                sink: trace.note(sink),
                mlp_out_norm: sink.measures?.mlp_out_norm,
                score: score(sink)?,
                reference_score: reference.clone(),
            };
            Some(Point { effect, layers: sink.layers.clone() })
        };
        let points = trace.secondary().filter_map(point).collect();
        TraceScores { points, reference: Some(reference) }
    }
}

fn log_norm(point: &EffectPoint) -> f64 {
    f64::from(point.mlp_out_norm).max(f64::MIN_POSITIVE).ln()
}

fn mean(values: impl Iterator<Item = f32>) -> Option<f64> {
    let (sum, n) = values.fold((0.0, 0usize), |(sum, n), x| (sum + f64::from(x), n + 1));
    (n > 0).then(|| sum / n as f64)
}

impl<B: Backend> Observer<B> for EffectAnalyzer {
    fn name(&self) -> &'static str {
        Analysis::Effect.name()
    }

    fn wants_scores(&self) -> bool {
        true
    }

    fn begin(&mut self, trace: &ScannedTrace<'_>) {
        let empty = vec![0.0; self.layers];
        self.current = TraceScores::of(trace, empty.clone(), &|_| Some(empty.clone()));
    }

    fn wants(&self, _: Site, _: usize) -> bool {
        false
    }

    fn read(&mut self, _: Site, _: usize, _: &Rows<'_>) {}

    fn scores(&mut self, trace: &ScannedTrace<'_>, layer: usize, scores: &[f32]) {
        let tokens = trace.ids.len();
        let of = |position: usize| {
            let heads = scores.iter().skip(position).step_by(tokens); // [heads, T]
            mean(heads.copied()).unwrap_or(0.0) as f32
        };
        let reference = of(trace.reference);
        if let Some(scores) = &mut self.current.reference {
            scores[layer] = reference;
        }
        for point in &mut self.current.points {
            point.effect.score[layer] = of(point.effect.sink.position);
            point.effect.reference_score[layer] = reference;
        }
    }

    fn part(&mut self) -> Result<Vec<u8>> {
        encode(&mem::take(&mut self.current))
    }

    fn add(&mut self, part: &[u8]) -> bool {
        decode(part).map(|trace| self.add_trace(trace)).is_some()
    }
}
