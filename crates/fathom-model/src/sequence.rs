//! One sequence on its way through a model.

use fathom_backend::Backend;

use crate::landmarks::Landmarks;

/// How a sequence is going to be used.
#[derive(Clone, Copy, Debug, Default)]
pub struct SequenceOptions {
    /// Tokens the sequence is known to reach at least (the prompt's, or the whole trace's). Rotary
    /// scalings that depend on the length (longrope, dynamic) are chosen for it, as HuggingFace
    /// does for a prompt given in one call, however the tokens are then cut into chunks. `None`:
    /// the first step's.
    pub planned_len: Option<usize>,
    /// Accumulate attention column sums, for [`crate::Model::sink_score`].
    pub sink_scores: bool,
    /// Compute only so many layers, the first: a pass over the sequence ends there, shows a probe
    /// nothing of what follows, and has no logits. The bits of what it does compute are those of a
    /// whole pass. `None`: all.
    pub layers: Option<usize>,
}

/// Tokens seen so far, their keys and values, and what is accumulated over them.
pub struct Sequence<B: Backend> {
    pub(crate) tokens: Vec<u32>,
    pub(crate) kv: B::Kv,
    pub(crate) column_sums: Option<B::ColumnSums>,
    pub(crate) planned_len: Option<usize>,
    /// Layers that are computed, at most the model's.
    pub(crate) layers: usize,
    /// Which rotary frequencies the cached keys carry; see [`crate::RopeConfig::regime`].
    pub(crate) regime: Option<u64>,
    /// Rows that probes compare others with.
    pub(crate) landmarks: Landmarks<B>,
}

impl<B: Backend> Sequence<B> {
    /// Tokens seen so far.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Number of tokens seen so far, and the position of the next one.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether no token has been seen yet.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Forgets the sink scores accumulated so far and accumulates none from now on: the sequence
    /// can be truncated.
    pub fn stop_sink_scores(&mut self) {
        self.column_sums = None;
    }
}
