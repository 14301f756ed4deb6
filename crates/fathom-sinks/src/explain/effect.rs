//! What secondary sinks do to attention (definition 2.9, paper Fig. 4).

use serde::{Deserialize, Serialize};

use super::{Analysis, AnalysisResult, Line, SinkNote};

/// Sink scores and lifetimes against the norm sinks are made with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Effect {
    /// One entry a layer.
    pub layers: Vec<LayerEffect>,
    /// Spearman's ρ of lifetime and log‖mlp_out‖ at l_start over all secondary sinks; absent where either is the
    /// same for all.
    pub lifetime_rho: Option<f64>,
    /// The layer whose line is steepest, where there is a line.
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
    /// Mean sink score of the secondary sinks alive at this layer: aligned in the layer before it, whose
    /// output its attention reads.
    pub secondary: Option<f64>,
    /// How many are alive.
    pub alive: usize,
    /// log(sink score / the reference's) of those alive on log‖mlp_out at l_start‖; absent with fewer than three
    /// or where all norms are the same.
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
