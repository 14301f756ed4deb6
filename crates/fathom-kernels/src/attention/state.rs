//! The online-softmax state of rows, and the merge of KV splits.

use super::queries::Queries;
use crate::cpu::SoftmaxState;
use crate::gemm::PANEL;
use crate::memory::SharedMut;
use crate::simd::exp::exp2;
use crate::simd::{MAX_LANES, Simd};

/// Columns of O: `head_dim` rounded up to whole panels.
pub(super) fn width(queries: &Queries<'_>) -> usize {
    queries.attention.head_dim.next_multiple_of(PANEL)
}

impl SoftmaxState {
    pub(super) fn clear(&mut self, rows: usize, width: usize) {
        let padded = rows.next_multiple_of(MAX_LANES);
        self.max.reserve(padded);
        self.sum.reserve(padded);
        self.out.reserve(rows * width);
        self.max[..padded].fill(f32::NEG_INFINITY);
        self.sum[..padded].fill(0.0);
        self.out[..rows * width].fill(0.0);
        self.lane_sums.reserve(rows * MAX_LANES);
        self.lane_sums[..rows * MAX_LANES].fill(0.0);
    }

    /// Reduces the lane-wise sums to one sum per row.
    #[inline(always)]
    pub(super) fn reduce_lane_sums<S: Simd>(&mut self, s: S, rows: usize) {
        let lanes = self.lane_sums.chunks_exact(MAX_LANES);
        for (sum, lanes) in self.sum[..rows].iter_mut().zip(lanes) {
            *sum = s.sum(s.load_some(lanes));
        }
    }

    pub(super) fn partial(&self, rows: usize, width: usize) -> Partial<'_> {
        let padded = rows.next_multiple_of(MAX_LANES);
        Partial {
            max: &self.max[..padded],
            sum: &self.sum[..padded],
            out: &self.out[..rows * width],
        }
    }

    /// Merges the next KV split `(m', l', O')` into `(m, l, O)`, with `M = max(m, m')`:
    /// `l = 2^(m-M)·l + 2^(m'-M)·l'`, and O likewise. The splits of a row must be merged one by one
    /// in order; then the result does not depend on which thread computed them.
    #[inline(always)]
    pub(super) fn merge<S: Simd>(&mut self, s: S, next: Partial<'_>, rows: usize, width: usize) {
        for first in (0..rows).step_by(S::LANES) {
            let (max, sum) = (s.load_some(&self.max[first..]), s.load_some(&self.sum[first..]));
            let next_max = s.load_some(&next.max[first..]);
            let new_max = s.max(next_max, max);
            let [scale, next_scale] = exp2(s, [s.sub(max, new_max), s.sub(next_max, new_max)]);
            let new_sum = s.fma(s.load_some(&next.sum[first..]), next_scale, s.mul(sum, scale));
            let [mut new_maxes, mut new_sums, mut scales, mut next_scales] = [[0.0; MAX_LANES]; 4];
            for (array, x) in [
                (&mut new_maxes, new_max),
                (&mut new_sums, new_sum),
                (&mut scales, scale),
                (&mut next_scales, next_scale),
            ] {
                s.store_some(array, x);
            }
            for lane in 0..S::LANES.min(rows - first) {
                let row = first + lane;
                if next.sum[row] == 0.0 {
                    continue;
                }
                let out = self.out[row * width..][..width].chunks_exact_mut(S::LANES);
                let outs = out.zip(next.out[row * width..][..width].chunks_exact(S::LANES));
                if self.sum[row] == 0.0 {
                    (self.max[row], self.sum[row]) = (next.max[row], next.sum[row]);
                    for (out, next) in outs {
                        s.store_some(out, s.load_some(next));
                    }
                    continue;
                }
                (self.max[row], self.sum[row]) = (new_maxes[lane], new_sums[lane]);
                let (scale, next_scale) = (s.splat(scales[lane]), s.splat(next_scales[lane]));
                for (out, next) in outs {
                    let scaled = s.mul(s.load_some(out), scale);
                    s.store_some(out, s.fma(s.load_some(next), next_scale, scaled));
                }
            }
        }
    }

    /// Writes `O / sum`, and the log-sum-exp if requested.
    #[inline(always)]
    pub(super) fn finish<S: Simd>(
        &self,
        s: S,
        queries: &Queries<'_>,
        out: SharedMut,
        lse: Option<SharedMut>,
    ) {
        let (heads, head_dim) = (queries.attention.heads, queries.attention.head_dim);
        for (row, (batch_row, head)) in queries.sources().enumerate() {
            let at = batch_row * heads + head;
            // SAFETY: each (batch row, head) belongs to one `Queries`, which one task finishes;
            // `out` is `[rows, heads · head_dim]`.
            let out = unsafe { out.slice(at * head_dim..(at + 1) * head_dim) };
            // One division per row: its latency is that of ten multiplications.
            let share = s.splat(1.0 / self.sum[row]);
            let result = &self.out[row * width(queries)..][..head_dim];
            for (out, x) in out.chunks_mut(S::LANES).zip(result.chunks(S::LANES)) {
                s.store_some(out, s.mul(s.load_some(x), share));
            }
            if let Some(lse) = lse {
                let log2 = f64::from(self.max[row]) + f64::from(self.sum[row]).log2();
                // SAFETY: as above, with `lse` `[rows, heads]`.
                unsafe { *lse.pointer().add(at) = (log2 * std::f64::consts::LN_2) as f32 };
            }
        }
    }
}

/// The partial result of rows over one KV split, borrowed from a [`SoftmaxState`] or from the
/// buffer of partial results.
pub(super) struct Partial<'a> {
    max: &'a [f32],
    sum: &'a [f32],
    out: &'a [f32],
}

impl<'a> Partial<'a> {
    /// Length of a partial result in the buffer, in floats.
    pub(super) fn len(rows: usize, width: usize) -> usize {
        2 * rows.next_multiple_of(MAX_LANES) + rows * width
    }

    pub(super) fn read(buffer: &'a [f32], rows: usize) -> Partial<'a> {
        let (max, rest) = buffer.split_at(rows.next_multiple_of(MAX_LANES));
        let (sum, out) = rest.split_at(rows.next_multiple_of(MAX_LANES));
        Partial { max, sum, out }
    }

    pub(super) fn write(&self, buffer: &mut [f32]) {
        let (max, rest) = buffer.split_at_mut(self.max.len());
        let (sum, out) = rest.split_at_mut(self.sum.len());
        max.copy_from_slice(self.max);
        sum.copy_from_slice(self.sum);
        out.copy_from_slice(self.out);
    }
}
