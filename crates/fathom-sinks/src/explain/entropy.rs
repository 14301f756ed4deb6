//! How compressed the residual stream is (definition 2.10): the entropy of its Gram matrix's spectrum.

use serde::{Deserialize, Serialize};

use super::{Analysis, AnalysisResult};

/// Matrix-based entropy (Rényi order 1, in nats) per layer and growing window.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entropy {
    /// Rows a window is computed from at most; longer windows are sampled evenly.
    pub max_rows: usize,
    /// Trace by trace.
    pub traces: Vec<TraceEntropy>,
}

/// One trace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TraceEntropy {
    /// 0-based number of the trace in the run.
    pub trace: usize,
    /// The trace's own index.
    pub sample_index: u64,
    /// With and without the prompt.
    pub series: Vec<EntropySeries>,
}

/// Which tokens count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// From the first token on.
    WithPrompt,
    /// From behind the prompt and the reference on.
    WithoutPrompt,
}

/// Growing windows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EntropySeries {
    /// Which tokens count.
    pub scope: Scope,
    /// First position of every window.
    pub first: usize,
    /// By length.
    pub windows: Vec<Window>,
}

/// One window.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Window {
    /// Tokens in the window.
    pub tokens: usize,
    /// Tokens the entropy was computed from.
    pub rows: usize,
    /// Entropy of `resid_post` at every layer, `[L]`; between 0 and ln(min(rows, hidden)).
    pub entropy: Vec<f32>,
}

impl AnalysisResult for Entropy {
    const ANALYSIS: Analysis = Analysis::Entropy;
}
