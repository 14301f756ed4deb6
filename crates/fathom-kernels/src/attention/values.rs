//! `O += P · V` for one block of keys, each row over exactly its visible keys.

use std::ops::Range;

use super::queries::{Queries, same_within_block, within_block};
use crate::cpu::AttentionScratch;
use crate::gemm::{PANEL, Product, ROW_STRIDE, Tile};
use crate::simd::Simd;

/// The product P · V of one register tile in one block of keys.
pub(super) struct Values<'a> {
    pub(super) queries: &'a Queries<'a>,
    pub(super) scratch: &'a mut AttentionScratch,
    pub(super) block: usize,
    /// The register tile whose probabilities are in `scratch`.
    pub(super) tile: Range<usize>,
    /// Columns of O: head_dim rounded up to whole panels.
    pub(super) width: usize,
}

impl<'a> Values<'a> {
    /// Adds the block's contribution to the tile's rows.
    ///
    /// Keys visible to all rows are one product. Edge keys, where the visible ranges of rows
    /// differ, are added position by position before and after it, so that every row accumulates
    /// over its keys in order.
    #[inline(always)]
    pub(super) fn add<S: Simd, P: Product>(&mut self, s: S) {
        let rows = self.tile.clone();
        if let Some(keys) = same_within_block(&self.scratch.visible[rows.clone()], self.block) {
            self.add_keys::<S, P>(s, rows, keys);
            return;
        }
        let (first, last) = (self.keys(rows.start), self.keys(rows.end - 1));
        // Whole groups of k that every row sees in full. Any other group is an edge.
        let start = last.start.next_multiple_of(P::K_GROUP);
        let end = first.end / P::K_GROUP * P::K_GROUP;
        if start < end {
            self.add_edge::<S, P>(s, rows.clone(), |keys| keys.start..start);
            self.add_tile::<S, P>(s, rows.clone(), start..end);
            self.add_edge::<S, P>(s, rows, |keys| end..keys.end);
        } else {
            self.add_edge::<S, P>(s, rows, |keys| keys);
        }
    }

    /// Keys of the block that are visible to `row`.
    #[inline(always)]
    fn keys(&self, row: usize) -> Range<usize> {
        within_block(&self.scratch.visible[row], self.block)
    }

    /// Adds a part of each row's visible keys; rows with the same visible keys are processed
    /// together.
    #[inline(always)]
    fn add_edge<S: Simd, P: Product>(
        &mut self,
        s: S,
        rows: Range<usize>,
        part: impl Fn(Range<usize>) -> Range<usize>,
    ) {
        let mut row = rows.start;
        while row < rows.end {
            let keys = self.keys(row);
            let same = (row..rows.end).take_while(|&other| self.keys(other) == keys).count();
            self.add_keys::<S, P>(s, row..row + same, part(keys));
            row += same;
        }
    }

    /// Adds keys that are visible to all `rows`: whole groups of k, and partial groups at both
    /// ends.
    #[inline(always)]
    pub(super) fn add_keys<S: Simd, P: Product>(
        &mut self,
        s: S,
        rows: Range<usize>,
        keys: Range<usize>,
    ) {
        if keys.is_empty() {
            return;
        }
        let (start, end) =
            (keys.start.next_multiple_of(P::K_GROUP), keys.end / P::K_GROUP * P::K_GROUP);
        if start > end {
            self.add_part::<S, P>(s, rows, keys);
            return;
        }
        if keys.start < start {
            self.add_part::<S, P>(s, rows.clone(), keys.start..start);
        }
        if start < end {
            self.add_tile::<S, P>(s, rows.clone(), start..end);
        }
        if end < keys.end {
            self.add_part::<S, P>(s, rows, end..keys.end);
        }
    }

    /// Adds whole groups of keys that are visible to all `rows`.
    #[inline(always)]
    fn add_tile<S: Simd, P: Product>(&mut self, s: S, rows: Range<usize>, keys: Range<usize>) {
        let kv = self.queries.kv;
        let first_step = keys.start / P::K;
        let w = &self.panels()[first_step * PANEL..];
        let tile = self.tile::<P>(rows.start, first_step, keys.len() / P::K, w, kv.values_stride());
        // SAFETY: the probabilities and O hold `rows`; V holds `width` columns for all steps of the
        // block; O is borrowed mutably through `self`.
        unsafe { P::tiles(s, rows.len(), self.width / S::LANES, tile) };
    }

    /// Adds part of a group of keys, visible to all `rows`. The group's other keys have probability
    /// 0, and their values are masked to 0 because they may be NaN.
    #[inline(always)]
    fn add_part<S: Simd, P: Product>(&mut self, s: S, rows: Range<usize>, keys: Range<usize>) {
        let first_step = keys.start / P::K_GROUP * P::K_GROUP / P::K;
        let steps = P::K_GROUP / P::K;
        let half = |key, mask| if keys.contains(&key) { mask } else { 0 };
        let mut masked = std::mem::take(&mut self.scratch.masked);
        let panels = self.panels().chunks_exact(self.queries.kv.values_stride());
        for (masked, panel) in masked.chunks_exact_mut(steps * PANEL).zip(panels) {
            let panel = &panel[first_step * PANEL..];
            let words = masked.chunks_exact_mut(PANEL).zip(panel.chunks_exact(PANEL));
            for (step, (masked, words)) in words.enumerate() {
                let key = (first_step + step) * P::K;
                let mask = half(key, 0x0000_ffff) | half(key + 1, 0xffff_0000);
                for (masked, word) in masked.iter_mut().zip(words) {
                    *masked = word & mask;
                }
            }
        }
        let tile = self.tile::<P>(rows.start, first_step, steps, &masked, steps * PANEL);
        // SAFETY: the probabilities and O hold `rows`; `masked` holds one group of `width` columns;
        // O is borrowed mutably through `self`.
        unsafe { P::tiles(s, rows.len(), self.width / S::LANES, tile) };
        self.scratch.masked = masked;
    }

    /// Prefetch distance in words: the task's first tile prefetches the next block's values.
    fn words_to_next_block(&self) -> usize {
        if self.tile.start == 0 { self.queries.kv.words_to_next_block(self.block) } else { 0 }
    }

    /// The block's packed values.
    fn panels(&self) -> &'a [u32] {
        let queries = self.queries;
        queries.kv.values(queries.attention.layer, queries.kv_head, self.block)
    }

    /// The micro-kernel call for `O[row..] += P[row.., step..] · w`.
    #[inline(always)]
    fn tile<P: Product>(
        &mut self,
        row: usize,
        step: usize,
        steps: usize,
        w: &[u32],
        panel_stride: usize,
    ) -> Tile {
        let at = (row - self.tile.start) * ROW_STRIDE + step * P::A_WORDS;
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
            c: self.scratch.split.out[row * self.width..].as_mut_ptr(),
            c_stride: self.width,
            resume: true,
            bias: std::ptr::null(),
            prefetch: (w.as_ptr().wrapping_add(self.words_to_next_block()), PANEL),
            prefetch_a: (a, 0),
        }
    }
}
