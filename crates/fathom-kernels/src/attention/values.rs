//! `O += P · V` for one block of keys, each row over exactly the keys it sees.

use std::ops::Range;

use super::{AttentionScratch, Queries, within_block};
use crate::microkernel::{PANEL, ROW_STRIDE, Tile, tiles};
use crate::product::Product;
use crate::simd::Simd;

/// The second product of attention, in one block of keys.
pub(super) struct Values<'a> {
    pub(super) queries: &'a Queries<'a>,
    pub(super) scratch: &'a mut AttentionScratch,
    pub(super) block: usize,
    /// Columns of O: head_dim, padded to whole panels.
    pub(super) width: usize,
}

impl<'a> Values<'a> {
    /// Adds the block's part to `rows`, at most a register tile.
    ///
    /// The keys all rows see are one product; the edges, where rows differ, are added row by row, before
    /// and after it, so that every row's chain runs over its keys in order.
    #[inline(always)]
    pub(super) fn add<S: Simd, P: Product>(&mut self, s: S, rows: Range<usize>) {
        // In whole steps of k: a pair that only some rows see entirely is an edge.
        let start = self.keys(rows.end - 1).start.next_multiple_of(P::K);
        let end = self.keys(rows.start).end / P::K * P::K;
        if start < end {
            for row in rows.clone() {
                self.add_row::<S, P>(s, row, self.keys(row).start..start);
            }
            self.add_tile::<S, P>(s, rows.clone(), start..end);
            for row in rows {
                self.add_row::<S, P>(s, row, end..self.keys(row).end);
            }
        } else {
            for row in rows {
                self.add_row::<S, P>(s, row, self.keys(row));
            }
        }
    }

    /// Keys of the block that `row` sees.
    #[inline(always)]
    fn keys(&self, row: usize) -> Range<usize> {
        within_block(&self.scratch.visible[row], self.block)
    }

    /// Some keys of one row; where a pair is seen by half, the other half is masked out of V.
    #[inline(always)]
    fn add_row<S: Simd, P: Product>(&mut self, s: S, row: usize, mut keys: Range<usize>) {
        if keys.is_empty() {
            return;
        }
        if !keys.start.is_multiple_of(P::K) {
            self.add_half_step::<S, P>(s, row, keys.start);
            keys.start += 1;
        }
        let whole = keys.start..keys.end / P::K * P::K;
        if !whole.is_empty() {
            self.add_tile::<S, P>(s, row..row + 1, whole);
        }
        if !keys.is_empty() && !keys.end.is_multiple_of(P::K) {
            self.add_half_step::<S, P>(s, row, keys.end - 1);
        }
    }

    /// Keys that all `rows` see, whole steps of k.
    #[inline(always)]
    fn add_tile<S: Simd, P: Product>(&mut self, s: S, rows: Range<usize>, keys: Range<usize>) {
        let kv = self.queries.kv;
        let first_step = keys.start / P::K;
        let w = &self.panels()[first_step * PANEL..];
        let tile = self.tile::<P>(rows.start, first_step, keys.len() / P::K, w, kv.values_stride());
        // SAFETY: probabilities and O hold `rows`, V all steps of the block and `width` columns.
        unsafe { tiles::<S, P>(s, rows.len(), self.width / S::LANES, tile) };
    }

    /// One key of one row, whose partner in the pair the row does not see.
    #[inline(always)]
    fn add_half_step<S: Simd, P: Product>(&mut self, s: S, row: usize, key: usize) {
        let half = if key.is_multiple_of(2) { 0x0000_ffff } else { 0xffff_0000 };
        let mut masked = std::mem::take(&mut self.scratch.step);
        let panels = self.panels().chunks_exact(self.queries.kv.values_stride());
        for (step, panel) in masked.chunks_exact_mut(PANEL).zip(panels) {
            for (word, value) in step.iter_mut().zip(&panel[key / 2 * PANEL..]) {
                *word = value & half;
            }
        }
        let tile = self.tile::<P>(row, key / 2, 1, &masked, PANEL);
        // SAFETY: one row, and one step of `width` columns in `masked`.
        unsafe { tiles::<S, P>(s, 1, self.width / S::LANES, tile) };
        self.scratch.step = masked;
    }

    /// V of the block.
    fn panels(&self) -> &'a [u32] {
        let queries = self.queries;
        queries.kv.values(queries.attention.layer, queries.kv_head, self.block)
    }

    /// The tile of `O[row..] += P[row.., step..] · w`.
    #[inline(always)]
    fn tile<P: Product>(
        &mut self,
        row: usize,
        step: usize,
        steps: usize,
        w: &[u32],
        panel_stride: usize,
    ) -> Tile {
        let at = row * ROW_STRIDE + step * P::A_WORDS;
        let a = if P::A_PAIRS {
            self.scratch.probabilities[at..].as_ptr()
        } else {
            self.scratch.scores[at..].as_ptr().cast()
        };
        Tile {
            a,
            w: w.as_ptr(),
            panel_stride,
            steps,
            c: self.scratch.out[row * self.width..].as_mut_ptr(),
            c_stride: self.width,
            resume: true,
            bias: std::ptr::null(),
            prefetch: (w.as_ptr(), PANEL),
        }
    }
}
