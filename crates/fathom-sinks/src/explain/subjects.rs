//! The tokens that are looked at.

use serde::{Deserialize, Serialize};

use crate::Class;

/// Which sink a result is about.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SinkNote {
    /// 0-based number of the trace in the run: its line in `detections.jsonl`.
    pub trace: usize,
    /// The trace's own index.
    pub sample_index: u64,
    /// Position in the trace.
    pub position: usize,
    /// The token there.
    pub token_id: u32,
    /// The token's text, where the run knows it.
    pub token_text: Option<String>,
    /// Class.
    pub class: Class,
    /// First layer at which it is a sink.
    pub l_start: usize,
    /// Number of layers at which it is one.
    pub lifetime: usize,
}
