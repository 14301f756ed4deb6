//! Fused causal attention: online softmax over blocks of keys, never T × T.
//!
//! Work is cut into tasks of one key/value head and a few query positions. The query heads that share
//! the key/value head times the positions are the *rows* of the task (`row = position · group + head`).
//! For each block of [`BLOCK`] keys, for each register tile of rows:
//! 1. scores `S = Q · Kᵀ`, the same product as a linear;
//! 2. online softmax (Milakov & Gimelshein 2018, arXiv:1805.02867): with the row's new maximum m',
//!    `P = exp(scale·S - m')`, and sum and result so far are multiplied by `exp(m - m')`;
//! 3. `O += P · V`, the same product again.
//!
//! Blocks lie at fixed positions, every element of S and O is one chain over k, and keys a row does not
//! see never enter its arithmetic — not even as `0 · v`, for v may be NaN: products stop where the
//! row's keys stop, and lanes beyond are selected away. So a row's bits depend on its own query and keys
//! alone.

use std::cmp::Reverse;
use std::ops::Range;

use crate::aligned::Aligned;
use crate::cpu::Cpu;
use crate::exp::exp;
use crate::kv::{BLOCK, Kv};
use crate::microkernel::{
    ForProduct, PANEL, Product, ProductKernel, ROW_STRIDE, Tile, even_parts, tiles,
};
use crate::pack::{k_block, pack_row};
use crate::rows::{Rows, SharedMut};
use crate::simd::{MAX_LANES, Simd};
use crate::{Attention, Span};

/// Rows of a task: enough for several register tiles to share a block of keys in L1.
const TASK_ROWS: usize = 64;

/// Memory of one thread, reused from task to task.
#[derive(Default)]
pub(crate) struct AttentionScratch {
    /// Packed queries `[head_dim blocks][rows][ROW_STRIDE]`.
    pub(crate) q: Aligned<u32>,
    /// Scores, then probabilities, of one block of keys `[rows][ROW_STRIDE]`.
    pub(crate) scores: Aligned<f32>,
    /// Probabilities as bfloat16 pairs `[rows][ROW_STRIDE]`.
    probabilities: Aligned<u32>,
    /// O, not yet divided by the sum: `[rows][head_dim, padded to panels]`.
    out: Aligned<f32>,
    /// One step of the values with one half of each pair masked.
    step: Aligned<u32>,
    /// For each row: the keys it sees, the largest score and the sum so far.
    pub(crate) visible: Vec<Range<usize>>,
    max: Vec<f32>,
    sum: Vec<f32>,
    /// For each row: its log-sum-exp, where that is an input.
    pub(crate) lse: Vec<f32>,
}

/// Some query positions of one key/value head.
#[derive(Clone, Copy)]
pub(crate) struct Queries<'a> {
    pub(crate) attention: &'a Attention,
    pub(crate) kv: &'a Kv,
    pub(crate) kv_head: usize,
    pub(crate) q: &'a Rows,
    /// First row of the batch.
    pub(crate) first: usize,
    /// Its position in the sequence.
    pub(crate) position: usize,
    /// Consecutive positions.
    pub(crate) positions: usize,
}

impl<'a> Queries<'a> {
    /// Query heads per key/value head.
    pub(crate) fn group(&self) -> usize {
        self.attention.heads / self.attention.kv_heads
    }

    pub(crate) fn rows(&self) -> usize {
        self.positions * self.group()
    }

    /// About how many multiplications a product with all visible keys takes.
    fn work(&self) -> usize {
        let keys = self.visible(self.rows() - 1).len();
        keys * self.rows() * self.attention.head_dim
    }

    /// Keys row `row` sees.
    pub(crate) fn visible(&self, row: usize) -> Range<usize> {
        let end = self.position + row / self.group() + 1;
        self.attention.window.map_or(0, |window| end.saturating_sub(window))..end
    }

    /// Keys each row sees, row by row.
    pub(crate) fn list_visible(&self, visible: &mut Vec<Range<usize>>) {
        visible.clear();
        visible.extend((0..self.rows()).map(|row| self.visible(row)));
    }

    /// Batch row and query head of row `row`.
    pub(crate) fn source(&self, row: usize) -> (usize, usize) {
        (self.first + row / self.group(), self.kv_head * self.group() + row % self.group())
    }

    fn query(&self, row: usize) -> &'a [f32] {
        let (batch_row, head) = self.source(row);
        let head_dim = self.attention.head_dim;
        &self.q.row(batch_row)[head * head_dim..(head + 1) * head_dim]
    }

    /// Packs the queries.
    #[inline(always)]
    pub(crate) fn pack<S: Simd, P: Product>(&self, s: S, round: bool, packed: &mut Aligned<u32>) {
        let (rows, head_dim) = (self.rows(), self.attention.head_dim);
        packed.reserve(head_dim.div_ceil(k_block::<P>()) * rows * ROW_STRIDE);
        for row in 0..rows {
            for (block, x) in self.query(row).chunks(k_block::<P>()).enumerate() {
                let at = (block * rows + row) * ROW_STRIDE;
                if let Some(out) = packed[at..].first_chunk_mut() {
                    pack_row::<S, P>(s, round, x, out);
                }
            }
        }
    }

    /// Unscaled scores of `rows` (at most a register tile) with keys `keys` of block `block`, into
    /// `scores[row][key]`. Whole panels are computed; what lies outside `keys` is meaningless.
    #[inline(always)]
    pub(crate) fn scores<S: Simd, P: Product>(
        &self,
        s: S,
        packed: &Aligned<u32>,
        rows: Range<usize>,
        block: usize,
        keys: Range<usize>,
        scores: &mut Aligned<f32>,
    ) {
        let Attention { layer, head_dim, .. } = *self.attention;
        let panels = keys.start / PANEL..keys.end.div_ceil(PANEL);
        let stride = self.kv.keys_stride();
        let words = &self.kv.keys(layer, self.kv_head, block)[panels.start * stride..];
        let c = &mut scores[rows.start * ROW_STRIDE + panels.start * PANEL..];
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
                prefetch: (w.as_ptr(), PANEL),
            };
            // SAFETY: `a` holds the packed rows, `words` the panels, `c` the rows of scores.
            unsafe { tiles::<S, P>(s, rows.len(), panels.len() * PANEL / S::LANES, tile) };
        }
    }
}

/// Keys any of `rows` sees, given those each row sees.
pub(crate) fn union(visible: &[Range<usize>], rows: Range<usize>) -> Range<usize> {
    visible[rows.start].start..visible[rows.end - 1].end
}

/// The part of `keys` that lies in block `block`, counted from the block's start.
pub(crate) fn within_block(keys: &Range<usize>, block: usize) -> Range<usize> {
    let start = block * BLOCK;
    let clamp = |key: usize| key.clamp(start, start + BLOCK) - start;
    clamp(keys.start)..clamp(keys.end)
}

/// Blocks that hold `keys`, which are not empty.
pub(crate) fn blocks(keys: &Range<usize>) -> Range<usize> {
    keys.start / BLOCK..keys.end.div_ceil(BLOCK)
}

/// Lane numbers.
pub(crate) const IOTA: [f32; MAX_LANES] =
    [0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.];

/// `x` in the lanes whose key, `key + lane`, is in `keys`; `otherwise` in the others.
#[inline(always)]
pub(crate) fn mask<S: Simd>(
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

pub(crate) fn check(attention: &Attention, q: &Rows, spans: &[Span<'_, Kv>]) {
    let Attention { heads, kv_heads, head_dim, scale, window, .. } = *attention;
    assert!(kv_heads > 0 && heads % kv_heads == 0, "{heads} heads over {kv_heads} key/value heads");
    assert!(scale > 0.0, "the scale of scores is positive");
    assert!(window != Some(0), "a window sees at least one key");
    assert_eq!(q.columns(), heads * head_dim, "query columns");
    assert!(spans.iter().all(|span| span.rows.end <= q.rows()), "span rows");
}

pub(crate) fn attend(
    cpu: &Cpu,
    attention: &Attention,
    q: &Rows,
    spans: &[Span<'_, Kv>],
    out: &mut Rows,
    lse: Option<&mut Rows>,
) {
    check(attention, q, spans);
    assert_eq!((out.rows(), out.columns()), (q.rows(), q.columns()), "attention output");
    if let Some(lse) = &lse {
        assert_eq!((lse.rows(), lse.columns()), (q.rows(), attention.heads), "log-sum-exp output");
    }
    let storage = crate::pack::Storage::of_cache(cpu.precision);
    let out = out.shared();
    let lse = lse.map(Rows::shared);
    let tasks = tasks(attention, q, spans);
    cpu.tasks(tasks.len(), tasks.iter().map(Queries::work).sum(), |task, scratch| {
        let kernel = Attend { queries: tasks[task], out, lse, scratch };
        cpu.isa.run(ForProduct { storage, precision: cpu.precision, kernel });
    });
}

/// Cuts spans into tasks, the longest first so that threads finish together.
fn tasks<'a>(attention: &'a Attention, q: &'a Rows, spans: &'a [Span<'_, Kv>]) -> Vec<Queries<'a>> {
    let group = attention.heads / attention.kv_heads;
    let positions = (TASK_ROWS / group).max(1);
    let mut tasks = Vec::new();
    for span in spans {
        for rows in even_parts(span.rows.clone(), positions) {
            tasks.extend((0..attention.kv_heads).map(|kv_head| Queries {
                attention,
                kv: &*span.kv,
                kv_head,
                q,
                first: rows.start,
                position: span.kv.len() + rows.start - span.rows.start,
                positions: rows.len(),
            }));
        }
    }
    tasks.sort_by_key(|task| Reverse(task.work()));
    tasks
}

struct Attend<'a> {
    queries: Queries<'a>,
    out: SharedMut,
    lse: Option<SharedMut>,
    scratch: &'a mut AttentionScratch,
}

impl ProductKernel for Attend<'_> {
    #[inline(always)]
    fn run<S: Simd, P: Product>(self, s: S, round: bool) {
        let Attend { queries, out, lse, scratch } = self;
        let Attention { heads, head_dim, scale, .. } = *queries.attention;
        let rows = queries.rows();
        let width = head_dim.next_multiple_of(PANEL);
        scratch.scores.reserve(rows * ROW_STRIDE);
        scratch.probabilities.reserve(rows * ROW_STRIDE);
        scratch.out.reserve(rows * width);
        scratch.out[..rows * width].fill(0.0);
        scratch.step.reserve(width);
        scratch.max.clear();
        scratch.max.resize(rows, f32::NEG_INFINITY);
        scratch.sum.clear();
        scratch.sum.resize(rows, 0.0);

        queries.list_visible(&mut scratch.visible);

        queries.pack::<S, P>(s, round, &mut scratch.q);
        for block in blocks(&union(&scratch.visible, 0..rows)) {
            for tile_rows in even_parts(0..rows, S::TILE_ROWS) {
                let AttentionScratch { q, scores, visible, .. } = &mut *scratch;
                let keys = within_block(&union(visible, tile_rows.clone()), block);
                if keys.is_empty() {
                    continue;
                }
                queries.scores::<S, P>(s, q, tile_rows.clone(), block, keys, scores);
                for row in tile_rows.clone() {
                    let keys = within_block(&scratch.visible[row], block);
                    if !keys.is_empty() {
                        softmax::<S, P>(s, round, scratch, row, keys, scale, width);
                    }
                }
                values::<S, P>(s, &queries, scratch, tile_rows, block, width);
            }
        }

        for row in 0..rows {
            let (batch_row, head) = queries.source(row);
            let at = batch_row * heads + head;
            // SAFETY: tasks have disjoint (row, head).
            let out = unsafe { out.slice(at * head_dim..(at + 1) * head_dim) };
            let sum = s.splat(scratch.sum[row]);
            let result = &scratch.out[row * width..][..head_dim];
            for (out, x) in out.chunks_mut(S::LANES).zip(result.chunks(S::LANES)) {
                s.store_some(out, s.div(s.load_some(x), sum));
            }
            if let Some(lse) = lse {
                // SAFETY: as above.
                unsafe { *lse.pointer().add(at) = scratch.max[row] + scratch.sum[row].ln() };
            }
        }
    }
}

/// One row's step of the online softmax: scores of `keys` become probabilities (relative to the new
/// maximum; 0 elsewhere in their vectors), and what the row has so far is rescaled.
#[inline(always)]
fn softmax<S: Simd, P: Product>(
    s: S,
    round: bool,
    scratch: &mut AttentionScratch,
    row: usize,
    keys: Range<usize>,
    scale: f32,
    width: usize,
) {
    let vectors = || (keys.start / S::LANES * S::LANES..keys.end).step_by(S::LANES);
    let scores = scratch.scores[row * ROW_STRIDE..][..BLOCK].as_mut_ptr();
    let pairs = scratch.probabilities[row * ROW_STRIDE..][..BLOCK].as_mut_ptr().cast::<u16>();
    let mut largest = s.splat(f32::NEG_INFINITY);
    for key in vectors() {
        // SAFETY: vectors start within the block, whose length is a multiple of LANES.
        unsafe {
            let mut x = s.load(scores.add(key));
            if key < keys.start || keys.end < key + S::LANES {
                x = mask(s, &keys, key, x, f32::NEG_INFINITY);
                s.store(scores.add(key), x);
            }
            largest = s.max(largest, x);
        }
    }
    let old = scratch.max[row];
    // The scale is positive: the largest score is the largest scaled.
    let block_max = s.max_lane(largest) * scale;
    let max = if block_max > old { block_max } else { old };
    let mut sum = s.splat(0.0);
    for key in vectors() {
        // SAFETY: as above.
        unsafe {
            let x = s.load(scores.add(key));
            let p = exp(s, s.fma(x, s.splat(scale), s.splat(-max)));
            sum = s.add(sum, p);
            if P::A_PAIRS {
                s.store_bf16(pairs.add(key), p);
            } else {
                s.store(scores.add(key), if round { s.round_bf16(p) } else { p });
            }
        }
    }
    if max > old {
        let rescale = s.max_lane(exp(s, s.splat(old - max)));
        scratch.max[row] = max;
        scratch.sum[row] *= rescale;
        let out = &mut scratch.out[row * width..][..width];
        for out in out.chunks_exact_mut(S::LANES) {
            let scaled = s.mul(s.load_some(out), s.splat(rescale));
            s.store_some(out, scaled);
        }
    }
    scratch.sum[row] += s.sum(sum);
}

/// `O += P · V` over the keys of `block` that each row sees.
///
/// The keys all rows see are one product; the edges, where rows differ, are added row by row, before and
/// after it, so that every row's chain runs over its keys in order.
#[inline(always)]
fn values<S: Simd, P: Product>(
    s: S,
    queries: &Queries<'_>,
    scratch: &mut AttentionScratch,
    rows: Range<usize>,
    block: usize,
    width: usize,
) {
    let visible = std::mem::take(&mut scratch.visible);
    let keys_of = |row: usize| within_block(&visible[row], block);
    // In whole steps of k: a pair that only some rows see entirely is an edge.
    let start = keys_of(rows.end - 1).start.next_multiple_of(P::K);
    let end = keys_of(rows.start).end / P::K * P::K;
    if start < end {
        for row in rows.clone() {
            let keys = keys_of(row).start..start;
            values_of_row::<S, P>(s, queries, scratch, row, block, keys, width);
        }
        values_of_tile::<S, P>(s, queries, scratch, rows.clone(), block, start..end, width);
        for row in rows {
            let keys = end..keys_of(row).end;
            values_of_row::<S, P>(s, queries, scratch, row, block, keys, width);
        }
    } else {
        for row in rows {
            values_of_row::<S, P>(s, queries, scratch, row, block, keys_of(row), width);
        }
    }
    scratch.visible = visible;
}

/// `O += P · V` of rows that all see `keys`, whole steps of k.
#[inline(always)]
fn values_of_tile<S: Simd, P: Product>(
    s: S,
    queries: &Queries<'_>,
    scratch: &mut AttentionScratch,
    rows: Range<usize>,
    block: usize,
    keys: Range<usize>,
    width: usize,
) {
    let kv = queries.kv;
    let values = kv.values(queries.attention.layer, queries.kv_head, block);
    let first_step = keys.start / P::K;
    let w = &values[first_step * PANEL..];
    let tile = Tile {
        a: probabilities::<P>(scratch, rows.start, first_step),
        w: w.as_ptr(),
        panel_stride: kv.values_stride(),
        steps: keys.len() / P::K,
        c: scratch.out[rows.start * width..].as_mut_ptr(),
        c_stride: width,
        resume: true,
        bias: std::ptr::null(),
        prefetch: (w.as_ptr(), PANEL),
    };
    // SAFETY: probabilities and O hold `rows`, `values` all steps of the block and `width` columns.
    unsafe { tiles::<S, P>(s, rows.len(), width / S::LANES, tile) };
}

/// `O += P · V` of one row; where a pair is seen by half, the other half is masked out of V.
#[inline(always)]
fn values_of_row<S: Simd, P: Product>(
    s: S,
    queries: &Queries<'_>,
    scratch: &mut AttentionScratch,
    row: usize,
    block: usize,
    mut keys: Range<usize>,
    width: usize,
) {
    if P::K == 2 && !keys.is_empty() && keys.start % 2 == 1 {
        half_step::<S, P>(s, queries, scratch, row, block, keys.start, width);
        keys.start += 1;
    }
    let whole = keys.start..keys.end / P::K * P::K;
    if !whole.is_empty() {
        values_of_tile::<S, P>(s, queries, scratch, row..row + 1, block, whole, width);
    }
    if P::K == 2 && !keys.is_empty() && keys.end % 2 == 1 {
        half_step::<S, P>(s, queries, scratch, row, block, keys.end - 1, width);
    }
}

/// `O += p · V[key]` of one row and one key, whose partner in the pair the row does not see.
#[inline(always)]
fn half_step<S: Simd, P: Product>(
    s: S,
    queries: &Queries<'_>,
    scratch: &mut AttentionScratch,
    row: usize,
    block: usize,
    key: usize,
    width: usize,
) {
    let kv = queries.kv;
    let values = kv.values(queries.attention.layer, queries.kv_head, block);
    let half = if key.is_multiple_of(2) { 0x0000_ffff } else { 0xffff_0000 };
    let panels = values.chunks_exact(kv.values_stride());
    for (step, panel) in scratch.step.chunks_exact_mut(PANEL).zip(panels) {
        for (word, value) in step.iter_mut().zip(&panel[key / 2 * PANEL..]) {
            *word = value & half;
        }
    }
    let w = &scratch.step;
    let tile = Tile {
        a: probabilities::<P>(scratch, row, key / 2),
        w: w.as_ptr(),
        panel_stride: PANEL,
        steps: 1,
        c: scratch.out[row * width..].as_mut_ptr(),
        c_stride: width,
        resume: true,
        bias: std::ptr::null(),
        prefetch: (w.as_ptr(), PANEL),
    };
    // SAFETY: one row, and one step of `width` columns in `step`.
    unsafe { tiles::<S, P>(s, 1, width / S::LANES, tile) };
}

/// Row `row` of P from step `step` on.
#[inline(always)]
fn probabilities<P: Product>(scratch: &AttentionScratch, row: usize, step: usize) -> *const u32 {
    let at = row * ROW_STRIDE + step * P::A_WORDS;
    if P::A_PAIRS {
        scratch.probabilities[at..].as_ptr()
    } else {
        scratch.scores[at..].as_ptr().cast()
    }
}

/// The probabilities `exp(scale·S - lse)` themselves, `[heads, rows, kv_len + rows]`.
pub(crate) fn weights(
    cpu: &Cpu,
    attention: &Attention,
    q: &Rows,
    lse: &Rows,
    span: &Span<'_, Kv>,
) -> Vec<f32> {
    check(attention, q, std::slice::from_ref(span));
    assert_eq!((lse.rows(), lse.columns()), (q.rows(), attention.heads), "log-sum-exp");
    let keys = span.kv.len() + span.rows.len();
    let mut weights = vec![0.0; attention.heads * span.rows.len() * keys];
    let out = SharedMut::new(&mut weights);
    let tasks = tasks(attention, q, std::slice::from_ref(span));
    cpu.tasks(tasks.len(), tasks.iter().map(Queries::work).sum(), |task, scratch| {
        let kernel = Weights { queries: tasks[task], lse, out, span, keys, scratch };
        let storage = span.kv.storage;
        cpu.isa.run(ForProduct { storage, precision: cpu.precision, kernel });
    });
    weights
}

struct Weights<'a> {
    queries: Queries<'a>,
    lse: &'a Rows,
    out: SharedMut,
    span: &'a Span<'a, Kv>,
    keys: usize,
    scratch: &'a mut AttentionScratch,
}

impl ProductKernel for Weights<'_> {
    #[inline(always)]
    fn run<S: Simd, P: Product>(self, s: S, round: bool) {
        let Weights { queries, lse, out, span, keys: all_keys, scratch } = self;
        let AttentionScratch { q, scores, visible, .. } = scratch;
        let rows = queries.rows();
        scores.reserve(rows * ROW_STRIDE);
        queries.list_visible(visible);
        queries.pack::<S, P>(s, round, q);
        for block in blocks(&union(visible, 0..rows)) {
            for tile_rows in even_parts(0..rows, S::TILE_ROWS) {
                let keys = within_block(&union(visible, tile_rows.clone()), block);
                if keys.is_empty() {
                    continue;
                }
                queries.scores::<S, P>(s, q, tile_rows.clone(), block, keys, scores);
                for row in tile_rows {
                    let (batch_row, head) = queries.source(row);
                    let keys = within_block(&visible[row], block);
                    let line = head * span.rows.len() + batch_row - span.rows.start;
                    let at = line * all_keys + block * BLOCK;
                    // SAFETY: tasks have disjoint (row, head), and `keys` are keys of the span.
                    let out = unsafe { out.slice(at + keys.start..at + keys.end) };
                    let scores = &scores[row * ROW_STRIDE..][keys];
                    let scale = s.splat(queries.attention.scale);
                    let minus_lse = s.splat(-lse.row(batch_row)[head]);
                    for (out, x) in out.chunks_mut(S::LANES).zip(scores.chunks(S::LANES)) {
                        s.store_some(out, exp(s, s.fma(s.load_some(x), scale, minus_lse)));
                    }
                }
            }
        }
    }
}
