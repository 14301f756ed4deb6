//! What happens without the secondary sinks of a layer (definition 2.11).

use serde::{Deserialize, Serialize};

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
