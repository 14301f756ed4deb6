//! Where in an MLP a token turns into a sink (definition 2.5, paper Fig. 3 right).

use serde::{Deserialize, Serialize};

use super::{Analysis, AnalysisResult, SinkNote, Summary};

/// A stage of an MLP at which a sink is compared with the reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Normed input.
    MlpIn,
    /// Gate.
    MlpGate,
    /// Up.
    MlpUp,
    /// silu(gate).
    MlpAct,
    /// silu(gate) · up.
    MlpElementwise,
    /// Down: what is added to the residual stream.
    MlpOut,
    /// The sink's `mlp_out` against the reference's `resid_post`, which is the sink direction whatever
    /// the layer's MLP makes of the reference itself.
    MlpOutToState,
}

impl Stage {
    /// All stages, in the order of the pass.
    pub const ALL: [Stage; 7] = [
        Stage::MlpIn,
        Stage::MlpGate,
        Stage::MlpUp,
        Stage::MlpAct,
        Stage::MlpElementwise,
        Stage::MlpOut,
        Stage::MlpOutToState,
    ];
}

/// Cosines with the reference at every stage, for each sink at its l_start and the layers beside it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stages {
    /// Sinks, noise left out; at most [`super::ExplainOptions::max_sinks`], while the summaries are over all.
    pub sinks: Vec<SinkStages>,
    /// Over all sinks of an l_start, by l_start, layer, stage.
    pub summaries: Vec<StageSummary>,
}

/// One sink's cosines.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SinkStages {
    /// The sink.
    #[serde(flatten)]
    pub sink: SinkNote,
    /// l_start - 1, l_start and l_start + 1, those there are.
    pub layers: Vec<LayerStages>,
}

/// One layer's cosines.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerStages {
    /// The layer.
    pub layer: usize,
    /// In the order of [`Stage::ALL`].
    pub cosines: [f32; 7],
}

/// The cosines of all sinks of one l_start at one stage of one layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageSummary {
    /// First layer of the sinks.
    pub l_start: usize,
    /// The layer looked at.
    pub layer: usize,
    /// The stage.
    pub stage: Stage,
    /// Their cosines.
    pub cosine: Summary,
}

impl AnalysisResult for Stages {
    const ANALYSIS: Analysis = Analysis::Stages;
}
