//! Scratch memory of kernels, reused from call to call.

use std::ops::Range;
use std::sync::Mutex;

use crate::memory::Aligned;

/// The scratch memory of a [`Cpu`](super::Cpu).
#[derive(Default)]
pub(crate) struct Scratch {
    /// Attention scratch of each thread.
    pub(crate) attention: Vec<Mutex<AttentionScratch>>,
    /// Accumulators of the current matrix product, for each thread.
    pub(crate) sums: Vec<Mutex<Aligned<f32>>>,
    /// Partial results of KV splits that several threads compute for the current attention call.
    pub(crate) partials: Mutex<Aligned<f32>>,
}

impl Scratch {
    /// Grows to at least `threads` threads.
    pub(super) fn grow(&mut self, threads: usize) {
        let threads = threads.max(self.threads());
        self.attention.resize_with(threads, Mutex::default);
        self.sums.resize_with(threads, Mutex::default);
    }

    /// Number of threads that have scratch memory.
    pub(super) fn threads(&self) -> usize {
        self.sums.len()
    }
}

/// Attention scratch of one thread, reused from task to task.
#[derive(Default)]
pub(crate) struct AttentionScratch {
    /// Packed queries `[head_dim blocks][rows][ROW_STRIDE]`.
    pub(crate) q: Aligned<u32>,
    /// Scores, then probabilities, of a tile's rows in one block of keys `[rows][ROW_STRIDE]`.
    pub(crate) scores: Aligned<f32>,
    /// Probabilities as bfloat16 pairs `[rows][ROW_STRIDE]`.
    pub(crate) probabilities: Aligned<u32>,
    /// A group of values with masked keys set to 0: `[head_dim panels][steps][32]`.
    pub(crate) masked: Aligned<u32>,
    /// The visible keys of each row.
    pub(crate) visible: Vec<Range<usize>>,
    /// State of the current KV split.
    pub(crate) split: SoftmaxState,
    /// Merged state of the KV splits before it.
    pub(crate) merged: SoftmaxState,
    /// The log-sum-exp of each row, where it is an input.
    pub(crate) lse: Vec<f32>,
}

/// Online-softmax state of each row: the largest scaled score so far in base 2 (`max`), the sum of
/// `2^(score - max)` (`sum`), and the values weighted by `2^(score - max)`, `[rows][width]`
/// (`out`). `sum` is 0 for a row that has seen no keys. The operations on it are in
/// `attention/state.rs`.
#[derive(Default)]
pub(crate) struct SoftmaxState {
    pub(crate) max: Aligned<f32>,
    pub(crate) sum: Aligned<f32>,
    pub(crate) out: Aligned<f32>,
    /// The sum while it is accumulated, `[rows][MAX_LANES]`: reducing a vector costs as much as a
    /// dozen other operations, so it is done once per KV split.
    pub(crate) lane_sums: Aligned<f32>,
}
