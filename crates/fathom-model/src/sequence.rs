//! One sequence with its key/value cache.

use fathom_backend::{Backend, KeyMask};

use crate::reference_rows::ReferenceRows;

/// Options of a new sequence.
#[derive(Clone, Copy, Debug, Default)]
pub struct SequenceOptions {
    /// Length in tokens that the sequence will reach at least: that of the prompt or of the whole
    /// trace. Rotary scalings that depend on the length (longrope, dynamic) use it from the first
    /// chunk on, so they do not depend on the chunk size. HuggingFace does the same for a prompt
    /// given in one call. `None`: the length of the first step.
    pub planned_len: Option<usize>,
    /// Accumulate attention column sums, for [`crate::Transformer::sink_score`].
    pub sink_scores: bool,
    /// With `sink_scores`, also accumulate the entropy of the attention, for
    /// [`crate::Transformer::attention_entropy`].
    pub attention_entropy: bool,
    /// Compute only this many layers: a pass over the sequence ends there, calls no probe for later
    /// sites, and has no logits. The values it computes are bitwise equal to those of a complete
    /// pass. `None`: all layers.
    pub layers: Option<usize>,
}

/// The tokens run so far, their keys and values, and values accumulated over them.
pub struct Sequence<B: Backend> {
    pub(crate) tokens: Vec<u32>,
    pub(crate) kv: B::Kv,
    pub(crate) column_sums: Option<B::ColumnSums>,
    /// Whether the column sums include entropies.
    pub(crate) attention_entropy: bool,
    pub(crate) key_mask: KeyMask,
    pub(crate) planned_len: Option<usize>,
    /// Number of layers that passes compute, at most that of the model.
    pub(crate) layers: usize,
    /// Rotary regime of the cached keys; see [`crate::RopeConfig::regime`].
    pub(crate) regime: Option<u64>,
    /// Rows for the dot products of probes.
    pub(crate) reference_rows: ReferenceRows<B>,
}

impl<B: Backend> Sequence<B> {
    /// The tokens run so far.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Number of tokens run so far, and the position of the next one.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether no token has been run yet.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// The keys that are hidden from later queries; none in a new sequence. A change applies to the
    /// tokens run after it.
    pub fn key_mask_mut(&mut self) -> &mut KeyMask {
        &mut self.key_mask
    }

    /// The first rows at the sites where a probe of its passes wanted dot products.
    pub fn reference_rows(&self) -> ReferenceRows<B> {
        self.reference_rows.clone()
    }

    /// Takes over the reference rows of a sequence that began with the same tokens, as if a probe
    /// had wanted them in the passes over this one: after [`crate::Transformer::adopt`], a probe
    /// can go on where one of the other sequence was.
    pub fn adopt_reference_rows(&mut self, rows: &ReferenceRows<B>) {
        self.reference_rows = rows.clone();
        self.reference_rows.truncate(self.tokens.len());
    }

    /// Drops the accumulated sink scores and stops accumulating. The sequence can be truncated
    /// afterwards.
    pub fn stop_sink_scores(&mut self) {
        self.column_sums = None;
    }
}
