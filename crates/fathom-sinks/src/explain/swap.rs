//! Which sinks are gone when a token's vector is swapped early on (definition 2.8, paper Fig. 8).

use serde::{Deserialize, Serialize};

use super::{Analysis, AnalysisResult, Share};

/// How many sinks a swap suppresses, by place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Swap {
    /// Secondary sinks that were swapped, one at a time.
    pub sinks: usize,
    /// Of so many that the run has.
    pub sinks_of: usize,
    /// By l_start, site (`resid_post`, `attn_out`, `mlp_out`), layer.
    pub cells: Vec<SwapCell>,
}

/// Swaps at one place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SwapCell {
    /// First layer of the sinks that were swapped.
    pub l_start: usize,
    /// `resid_post`, `attn_out` or `mlp_out`.
    pub site: String,
    /// Where the vector was replaced by the mean of the trace's tokens that are no sinks: 0 to l_start + 1.
    pub layer: usize,
    /// Sinks whose cosine at l_start is not above the threshold any more.
    pub suppressed: Share,
}

impl AnalysisResult for Swap {
    const ANALYSIS: Analysis = Analysis::Swap;
}
