//! Which weights make sinks and which read them.

use serde::{Deserialize, Serialize};

use super::{Analysis, AnalysisResult, LevelChange};

/// Neurons that write the sink direction, heads that read it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Neurons {
    /// The layers that create most secondary sinks.
    pub layers: Vec<LayerNeurons>,
    /// Heads by how much of their attention secondary sinks draw, descending; the first 64.
    pub heads: Vec<HeadReading>,
}

/// The MLP of one creation layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerNeurons {
    /// The layer, l_start of the sinks.
    pub layer: usize,
    /// Secondary sinks created there.
    pub sinks: usize,
    /// Mean of mlp_out · u over them, u being the unit vector of the reference's `resid_post`.
    pub projection: f64,
    /// Neurons by contribution, descending; the first 32.
    pub neurons: Vec<Neuron>,
    /// The traces scanned again without the strongest of them.
    pub ablation: Ablation,
}

/// One column of the down projection.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Neuron {
    /// Its index in the MLP.
    pub index: usize,
    /// Mean activation (`mlp_elementwise`) over the sinks.
    pub activation: f64,
    /// Its column of the down projection · u.
    pub weight: f64,
    /// activation · weight.
    pub contribution: f64,
    /// contribution / projection.
    pub share: f64,
}

/// What zeroing neurons does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ablation {
    /// The neurons: the fewest that make up 90 % of the projection, at most 32.
    pub neurons: Vec<usize>,
    /// Their share of the projection.
    pub share: f64,
    /// What became of the secondary sinks, by level.
    pub levels: Vec<LevelChange>,
    /// Secondary sinks that were none before.
    pub appeared: usize,
    /// Perplexity of the traces' tokens, before.
    pub perplexity_before: f64,
    /// The same, after.
    pub perplexity_after: f64,
}

/// How much one head looks at secondary sinks.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeadReading {
    /// The layer.
    pub layer: usize,
    /// The head.
    pub head: usize,
    /// Its mean sink score over secondary sinks alive at the layer.
    pub sinks: f64,
    /// Its mean sink score over tokens that are no sinks.
    pub others: f64,
    /// Its mean sink score over the traces' references.
    pub reference: f64,
}

impl AnalysisResult for Neurons {
    const ANALYSIS: Analysis = Analysis::Neurons;
}
