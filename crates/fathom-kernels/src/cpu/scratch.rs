//! Memory that kernels work in and that is kept from one call to the next.

use std::ops::Range;
use std::sync::Mutex;

use crate::memory::Aligned;

/// The scratch memory of a [`Cpu`](super::Cpu).
#[derive(Default)]
pub(crate) struct Scratch {
    /// Attention's, for each thread.
    pub(crate) attention: Vec<Mutex<AttentionScratch>>,
    /// Sums of the product under way, for each thread.
    pub(crate) sums: Vec<Mutex<Aligned<f32>>>,
    /// Stretches of keys computed by several threads for the attention under way.
    pub(crate) stretches: Mutex<Aligned<f32>>,
}

impl Scratch {
    /// Makes room for so many threads, if there are more than before.
    pub(super) fn grow(&mut self, threads: usize) {
        let threads = threads.max(self.threads());
        self.attention.resize_with(threads, Mutex::default);
        self.sums.resize_with(threads, Mutex::default);
    }

    /// Threads there is memory for.
    pub(super) fn threads(&self) -> usize {
        self.sums.len()
    }
}

/// Memory of one thread, reused from task to task.
#[derive(Default)]
pub(crate) struct AttentionScratch {
    /// Packed queries `[head_dim blocks][rows][ROW_STRIDE]`.
    pub(crate) q: Aligned<u32>,
    /// Scores, then probabilities, of rows in one block of keys `[rows][ROW_STRIDE]`.
    pub(crate) scores: Aligned<f32>,
    /// Probabilities as bfloat16 pairs `[rows][ROW_STRIDE]`.
    pub(crate) probabilities: Aligned<u32>,
    /// A group of values of which a row sees a part: `[head_dim panels][steps][32]`.
    pub(crate) masked: Aligned<u32>,
    /// For each row: the keys it sees.
    pub(crate) visible: Vec<Range<usize>>,
    /// The stretch under way.
    pub(crate) part: SoftmaxState,
    /// The stretches before it.
    pub(crate) total: SoftmaxState,
    /// For each row: its log-sum-exp, where that is an input.
    pub(crate) lse: Vec<f32>,
}

/// Of each row: the largest scaled score so far, in units of ln 2; the sum of `2^(score - max)`;
/// and the values weighted with the same, `[rows][width]`. A row that has seen nothing has the sum
/// 0. What is done with it is attention's affair (`attention/state.rs`).
#[derive(Default)]
pub(crate) struct SoftmaxState {
    pub(crate) max: Aligned<f32>,
    pub(crate) sum: Aligned<f32>,
    pub(crate) out: Aligned<f32>,
    /// The sum while it grows, `[rows][MAX_LANES]`: adding up a vector takes as long as a dozen
    /// other operations, so it is done once a stretch.
    pub(crate) lanes: Aligned<f32>,
}
