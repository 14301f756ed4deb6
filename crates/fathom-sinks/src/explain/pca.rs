//! What a creation layer's MLP does along the principal components of its input (definition 2.6, paper
//! Fig. 7).

use serde::{Deserialize, Serialize};

use super::{Analysis, AnalysisResult};

/// A sweep for each of the layers that create most secondary sinks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pca {
    /// By layer.
    pub layers: Vec<LayerPca>,
}

/// The principal components of one layer's `mlp_in`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerPca {
    /// The layer, l_start of the sinks.
    pub layer: usize,
    /// Sink tokens the components are computed from.
    pub sinks: usize,
    /// Tokens that are no sinks, as many where there are.
    pub others: usize,
    /// How many of the others have the id of a sink token; the rest are any tokens.
    pub others_of_same_ids: usize,
    /// Part of the variance each component explains, descending; the first 64.
    pub explained: Vec<f64>,
    /// Mean ‖mlp_out‖ of the sink tokens, to hold the sweep's norms against.
    pub sink_norm: f64,
    /// Sweeps along the first components.
    pub components: Vec<ComponentSweep>,
}

/// ±α · PC through the MLP.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ComponentSweep {
    /// Which component, the first being 1.
    pub component: usize,
    /// Projections (not centred) of the sinks' `mlp_in`: mean.
    pub sink_projection: f64,
    /// The same of the other tokens.
    pub other_projection: f64,
    /// By α, ascending, reaching the largest projection of a sink on both sides.
    pub points: Vec<SweepPoint>,
}

/// One input of a sweep.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SweepPoint {
    /// α.
    pub alpha: f32,
    /// ‖MLP(α · PC)‖.
    pub norm: f32,
    /// Its cosine with the reference's `mlp_out`.
    pub cosine: f32,
    /// Its cosine with the reference's `resid_post`, the sink direction.
    pub cosine_to_state: f32,
}

impl AnalysisResult for Pca {
    const ANALYSIS: Analysis = Analysis::Pca;
}
