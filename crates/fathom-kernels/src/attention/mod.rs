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
use crate::microkernel::{PANEL, ROW_STRIDE, even_parts};
use crate::pack::Storage;
use crate::product::{ForProduct, Product, ProductKernel};
use crate::rows::{Rows, SharedMut};
use crate::simd::Simd;
use crate::{Attention, Span};
use values::Values;

mod queries;
mod values;
mod weights;

pub(crate) use queries::{Queries, blocks, mask, union, within_block};
pub(crate) use weights::weights;

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
    /// A group of values of which a row sees a part: `[head_dim panels][steps][32]`.
    masked: Aligned<u32>,
    /// For each row: the keys it sees, the largest score and the sum so far.
    pub(crate) visible: Vec<Range<usize>>,
    max: Vec<f32>,
    sum: Vec<f32>,
    /// For each row: its log-sum-exp, where that is an input.
    pub(crate) lse: Vec<f32>,
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
    let storage = Storage::of_cache(cpu.precision);
    let out = out.shared();
    let lse = lse.map(Rows::shared);
    let tasks = tasks(attention, q, spans);
    cpu.tasks_with_scratch(tasks.len(), tasks.iter().map(Queries::work).sum(), |task, scratch| {
        let kernel = Attend { queries: tasks[task], out, lse, scratch };
        cpu.isa.run_product(ForProduct { storage, precision: cpu.precision, kernel });
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
        scratch.masked.reserve(width * P::GROUP / P::K);
        scratch.max.clear();
        scratch.max.resize(rows, f32::NEG_INFINITY);
        scratch.sum.clear();
        scratch.sum.resize(rows, 0.0);

        queries.list_visible(&mut scratch.visible);

        queries.pack::<S, P>(s, round, &mut scratch.q);
        for block in blocks(&union(&scratch.visible, 0..rows)) {
            for tile_rows in P::row_tiles::<S>(0..rows) {
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
                Values { queries: &queries, scratch, block, width }.add::<S, P>(s, tile_rows);
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
    // Whole groups of the second product: it reads all of them.
    let unit = S::LANES.max(P::GROUP);
    let vectors = || (keys.start / unit * unit..keys.end.next_multiple_of(unit)).step_by(S::LANES);
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
