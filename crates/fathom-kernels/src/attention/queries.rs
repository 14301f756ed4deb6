//! The query rows of a task: their visible keys, packing and scores.

use std::iter::repeat_n;
use std::ops::Range;

use fathom_backend::Attention;

use super::kv::{BLOCK, Kv};
use super::pass::Span;
use crate::gemm::{CACHE_LINE, PANEL, Product, ROW_STRIDE, Tile, even_parts, k_block, pack_row};
use crate::memory::{Aligned, Rows};
use crate::simd::{MAX_LANES, Simd};

/// Keys per KV split, in whole blocks: small enough that 2048 keys of 2 heads keep 8 threads busy,
/// large enough that merging is negligible (2 operations per element of O, against 4 · 512 for the
/// split's two products).
pub(super) const KV_SPLIT: usize = 4 * BLOCK;

/// Target number of rows per task, so that several register tiles share a block of keys in L1.
const TASK_ROWS: usize = 64;

pub(super) fn check(attention: &Attention, q: &Rows, spans: &[Span<'_>]) {
    let Attention { heads, kv_heads, head_dim, scale, window, .. } = *attention;
    assert!(kv_heads > 0 && heads % kv_heads == 0, "{heads} heads over {kv_heads} key/value heads");
    assert!(scale > 0.0, "the scale of scores is positive");
    assert!(window != Some(0), "a window sees at least one key");
    assert_eq!(q.columns(), heads * head_dim, "query columns");
    assert!(spans.iter().all(|span| span.rows.end <= q.rows()), "span rows");
}

/// Divides spans into tasks of rows that share a key/value head.
pub(super) fn all_queries<'a>(
    attention: &'a Attention,
    q: &'a Rows,
    spans: &'a [Span<'a>],
) -> impl Iterator<Item = Queries<'a>> {
    let positions = (TASK_ROWS / (attention.heads / attention.kv_heads)).max(1);
    spans.iter().flat_map(move |span| {
        even_parts(span.rows.clone(), positions).flat_map(move |rows| {
            (0..attention.kv_heads).map(move |kv_head| Queries {
                attention,
                kv: &*span.kv,
                kv_head,
                until: until(attention, span),
                q,
                first: rows.start,
                position: span.first_position + rows.start - span.rows.start,
                positions: rows.len(),
            })
        })
    })
}

/// From which position on each of a span's keys is hidden in this layer.
pub(super) fn until<'a>(attention: &Attention, span: &'a Span<'_>) -> &'a [usize] {
    span.mask.map_or(&[], |mask| mask.until(attention.layer))
}

/// Consecutive query positions of one key/value head.
#[derive(Clone, Copy)]
pub(super) struct Queries<'a> {
    pub(super) attention: &'a Attention,
    pub(super) kv: &'a Kv,
    pub(super) kv_head: usize,
    /// From which position on each key is hidden; empty: none is.
    pub(super) until: &'a [usize],
    pub(super) q: &'a Rows,
    /// First row of the batch.
    pub(super) first: usize,
    /// Position of that row in the sequence.
    pub(super) position: usize,
    /// Number of positions.
    pub(super) positions: usize,
}

impl<'a> Queries<'a> {
    /// The KV splits that are visible, in part, to any row.
    pub(super) fn kv_splits(&self) -> Range<usize> {
        let keys = self.visible(0).start..self.visible(self.rows() - 1).end;
        keys.start / KV_SPLIT..keys.end.div_ceil(KV_SPLIT)
    }

    /// Query heads per key/value head.
    pub(super) fn group(&self) -> usize {
        self.attention.heads / self.attention.kv_heads
    }

    pub(super) fn rows(&self) -> usize {
        self.positions * self.group()
    }

    /// Approximate number of multiplications of a product with all visible keys.
    pub(super) fn work(&self) -> usize {
        let keys = self.visible(self.rows() - 1).len();
        keys * self.rows() * self.attention.head_dim
    }

    /// The scale of scores in base 2: `e^(scale·x) = 2^(scale_log2·x)`.
    pub(super) fn scale_log2(&self) -> f32 {
        self.attention.scale * std::f32::consts::LOG2_E
    }

    /// Keys visible to row `row`.
    pub(super) fn visible(&self, row: usize) -> Range<usize> {
        let end = self.position + row / self.group() + 1;
        self.attention.window.map_or(0, |window| end.saturating_sub(window))..end
    }

    /// Lists the keys visible to each row.
    pub(super) fn list_visible(&self, visible: &mut Vec<Range<usize>>) {
        visible.clear();
        let first_of_each = (0..self.rows()).step_by(self.group());
        visible.extend(first_of_each.flat_map(|row| repeat_n(self.visible(row), self.group())));
    }

    /// Batch row and query head of row `row`.
    pub(super) fn source(&self, row: usize) -> (usize, usize) {
        (self.first + row / self.group(), self.kv_head * self.group() + row % self.group())
    }

    /// [`Queries::source`] of each row.
    pub(super) fn sources(&self) -> impl Iterator<Item = (usize, usize)> + use<'a> {
        let heads = self.kv_head * self.group()..(self.kv_head + 1) * self.group();
        let batch_rows = self.first..self.first + self.positions;
        batch_rows.flat_map(move |row| heads.clone().map(move |head| (row, head)))
    }

    /// Packs the queries `[head_dim blocks][rows][ROW_STRIDE]`.
    #[inline(always)]
    pub(super) fn pack<S: Simd, P: Product>(&self, s: S, round: bool, packed: &mut Aligned<u32>) {
        let (rows, head_dim) = (self.rows(), self.attention.head_dim);
        packed.reserve(head_dim.div_ceil(k_block::<P>()) * rows * ROW_STRIDE);
        for (row, (batch_row, head)) in self.sources().enumerate() {
            let query = &self.q.row(batch_row)[head * head_dim..(head + 1) * head_dim];
            for (block, x) in query.chunks(k_block::<P>()).enumerate() {
                let at = (block * rows + row) * ROW_STRIDE;
                if let Some(out) = packed[at..].first_chunk_mut() {
                    pack_row::<S, P>(s, round, x, out);
                }
            }
        }
    }

    /// Prefetches the keys `seen` of block `block`, and their values.
    #[inline(always)]
    pub(super) fn prefetch_block<S: Simd>(&self, s: S, block: usize, seen: &Range<usize>) {
        let (kv, layer) = (self.kv, self.attention.layer);
        let keys = within_block(seen, block);
        let panels = keys.start / PANEL..keys.end.div_ceil(PANEL);
        let stride = kv.keys_stride();
        let of_keys =
            &kv.keys(layer, self.kv_head, block)[panels.start * stride..panels.end * stride];
        let steps = keys.start / kv.storage().k_per_word()..kv.storage().steps(keys.end);
        let panels = kv.values(layer, self.kv_head, block).chunks_exact(kv.values_stride());
        let of_values = panels.map(|panel| &panel[steps.start * PANEL..steps.end * PANEL]);
        for words in [of_keys].into_iter().chain(of_values) {
            words.chunks(CACHE_LINE).for_each(|line| s.prefetch(line.as_ptr()));
        }
    }

    /// Computes the unscaled scores of `rows` (at most a register tile) with keys `keys` of block
    /// `block`, into `scores[row - rows.start][key]`. Whole panels are computed; entries outside
    /// `keys` are meaningless. The task's first tile prefetches the next block's keys.
    #[inline(always)]
    pub(super) fn scores<S: Simd, P: Product>(
        &self,
        s: S,
        packed: &Aligned<u32>,
        rows: Range<usize>,
        block: usize,
        keys: Range<usize>,
        scores: &mut [f32],
    ) {
        let Attention { layer, head_dim, .. } = *self.attention;
        let panels = keys.start / PANEL..keys.end.div_ceil(PANEL);
        let stride = self.kv.keys_stride();
        let words = &self.kv.keys(layer, self.kv_head, block)[panels.start * stride..];
        let next = if rows.start == 0 { self.kv.words_to_next_block(block) } else { 0 };
        let c = &mut scores[panels.start * PANEL..];
        debug_assert!(c.len() >= (rows.len() - 1) * ROW_STRIDE + panels.len() * PANEL);
        for (i, k) in (0..head_dim).step_by(k_block::<P>()).enumerate() {
            let steps = (head_dim.min(k + k_block::<P>()) - k).div_ceil(P::K);
            let w = &words[k / P::K * PANEL..];
            let a = &packed[(i * self.rows() + rows.start) * ROW_STRIDE..];
            let tile = Tile {
                a: a.as_ptr(),
                w: w.as_ptr(),
                panel_stride: stride,
                steps,
                c: c.as_mut_ptr(),
                c_stride: ROW_STRIDE,
                resume: i > 0,
                bias: std::ptr::null(),
                prefetch: (w.as_ptr().wrapping_add(next), PANEL),
                prefetch_a: (a.as_ptr(), 0),
            };
            // SAFETY: `a` reaches `rows` packed rows of ROW_STRIDE words, `w` the `panels` of the
            // block for `steps` steps, and `c`, borrowed mutably, `rows` rows of `panels` panels:
            // every caller has reserved `scores` for a register tile of rows.
            unsafe { P::tiles(s, rows.len(), panels.len() * PANEL / S::LANES, tile) };
        }
    }
}

/// Keys visible to any of `rows`, given the keys visible to each row.
pub(super) fn union(visible: &[Range<usize>], rows: Range<usize>) -> Range<usize> {
    visible[rows.start].start..visible[rows.end - 1].end
}

/// The part of `keys` in block `block`, relative to the block's start.
pub(super) fn within_block(keys: &Range<usize>, block: usize) -> Range<usize> {
    let start = block * BLOCK;
    let clamp = |key: usize| key.clamp(start, start + BLOCK) - start;
    clamp(keys.start)..clamp(keys.end)
}

/// The keys of block `block` that are visible to each row, if they are the same for all rows. This
/// holds for all blocks except those in which a visible range begins or ends.
#[inline(always)]
pub(super) fn same_within_block(visible: &[Range<usize>], block: usize) -> Option<Range<usize>> {
    let first = within_block(&visible[0], block);
    (within_block(&visible[visible.len() - 1], block) == first).then_some(first)
}

/// Blocks that hold `keys`, which must not be empty.
pub(super) fn blocks(keys: &Range<usize>) -> Range<usize> {
    keys.start / BLOCK..keys.end.div_ceil(BLOCK)
}

/// The negated log-sum-exp in base 2: `e^(x - lse) = 2^(x·log₂e + minus_log2(lse))`.
pub(super) fn minus_log2(lse: f32) -> f32 {
    -lse * std::f32::consts::LOG2_E
}

/// Lane indices.
pub(super) const IOTA: [f32; MAX_LANES] =
    [0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.];

/// `x` in lanes whose key, `key + lane`, is in `keys`; `otherwise` in the other lanes.
#[inline(always)]
pub(super) fn mask<S: Simd>(
    s: S,
    keys: &Range<usize>,
    key: usize,
    x: S::F32,
    otherwise: f32,
) -> S::F32 {
    // SAFETY: IOTA holds MAX_LANES ≥ LANES elements.
    let lane = s.add(unsafe { s.load(IOTA.as_ptr()) }, s.splat(key as f32));
    let otherwise = s.splat(otherwise);
    let x = s.select(s.lt(lane, s.splat(keys.end as f32)), x, otherwise);
    s.select(s.lt(lane, s.splat(keys.start as f32)), otherwise, x)
}
