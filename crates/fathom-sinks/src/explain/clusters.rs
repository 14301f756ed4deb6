//! From which layer on future sinks stand apart from other tokens (definition 2.7, paper Fig. 6).

use serde::{Deserialize, Serialize};

use super::{Analysis, AnalysisResult};

/// Future secondary sinks against other tokens, layer by layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Clusters {
    /// The tokens.
    pub points: Vec<ClusterPoint>,
    /// By site (`resid_post`, `attn_out`, `mlp_out`), then layer. Empty with fewer than 5 of either kind.
    pub places: Vec<ClusterPlace>,
}

/// A token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClusterPoint {
    /// 0-based number of the trace in the run.
    pub trace: usize,
    /// Position in the trace.
    pub position: usize,
    /// The token there.
    pub token_id: u32,
    /// Where it becomes a sink; absent where it does not.
    pub l_start: Option<usize>,
    /// Whether some sink has the same token id.
    pub id_of_a_sink: bool,
}

/// The tokens at one place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClusterPlace {
    /// `resid_post`, `attn_out` or `mlp_out`.
    pub site: String,
    /// The layer.
    pub layer: usize,
    /// Mean silhouette of sinks against others, -1 to 1, Euclidean.
    pub silhouette: f64,
    /// Accuracy of a linear (ridge) classifier in 5-fold cross-validation, kinds weighing the same; 0.5 is chance.
    pub separability: f64,
    /// t-SNE coordinates, in the order of `points`.
    pub tsne: Vec<[f32; 2]>,
}

impl AnalysisResult for Clusters {
    const ANALYSIS: Analysis = Analysis::Clusters;
}
