//! Fused causal attention as in FlashAttention (Dao et al. 2022, arXiv:2205.14135): online softmax
//! over blocks of keys, without materializing the T × T matrix.
//!
//! The *rows* of a task are the query heads that share a key/value head, at several query positions
//! (`row = position · group + head`). For each block of [`BLOCK`] keys and each register tile of
//! rows:
//! 1. Scores `S = Q · Kᵀ`, with the micro-kernel of a linear layer.
//! 2. Online softmax: with the row's new maximum m', `P = 2^(scale·log₂e·S - m')`; the row's sum
//!    and O are rescaled by `2^(m - m')`.
//! 3. `O += P · V`, with the same micro-kernel.
//!
//! A tile's working set in a block fits L1. With a head dimension of 64 in bf16 it is 16 KB of keys
//! and 16 KB of values, shared by all tiles of the task, plus 14 rows of scores (14 × 512 bytes)
//! and probabilities. Per row and block, the two products are 2 · 128 · 64 / 32 = 512 `vdpbf16ps`:
//! 256 cycles at two per cycle. Softmax takes about 70 more, so the limit is just under four fifths
//! of the matrix rate at a head dimension of 64, and nine tenths at 128. Decoding with 7 query
//! heads per key/value head reads 256 bytes per key for about 14 cycles of products: 18 bytes a
//! cycle per core, more than memory delivers. Decoding is therefore memory-bound, provided that
//! prefetch keeps up: a task prefetches its first block, and the products of one block prefetch the
//! next.
//!
//! **KV splits** (as in Flash-Decoding). Keys are further divided into splits of [`KV_SPLIT`] keys
//! at fixed positions. Each split has its own maximum, sum and O; the splits of a row are merged in
//! order. So even a long context with few rows (decoding, verification) is divided among many
//! threads, one or more splits per task. A task of many rows processes all splits in sequence and
//! merges as it goes. The arithmetic and its order are the same in both cases, so a row has the
//! same bits.
//!
//! Blocks and splits are at fixed positions, every element of S and O is accumulated sequentially
//! over k, and masked keys never enter a row's arithmetic, not even as `0 · v`, because v may be
//! NaN: products end at the row's last visible key, and lanes beyond it are masked by selection. So
//! a row's bits depend only on its own query and keys. Keys that a mask hides are in `hidden.rs`.

use std::cmp::Reverse;
use std::ops::Range;

use fathom_backend::Attention;

use super::hidden::hide_unseen;
use super::kv::BLOCK;
use super::pass::Span;
use super::queries::{KV_SPLIT, Queries, all_queries, blocks, check, union, within_block};
use super::softmax::softmax;
use super::state::{Partial, width};
use super::values::Values;
use crate::cpu::{AttentionScratch, Cpu, PARALLEL_THRESHOLD, lock};
use crate::gemm::{ForProduct, Product, ProductKernel, ROW_STRIDE, Storage, even_parts};
use crate::memory::{Rows, SharedMut};
use crate::simd::{Kernel, Simd};

/// Tasks per thread, so that threads finish at about the same time.
const TASKS_PER_THREAD: usize = 4;

pub(crate) fn attend(
    cpu: &Cpu,
    attention: &Attention,
    q: &Rows,
    spans: &[Span<'_>],
    out: &mut Rows,
    lse: Option<&mut Rows>,
) {
    check(attention, q, spans);
    assert_eq!((out.rows(), out.columns()), (q.rows(), q.columns()), "attention output");
    if let Some(lse) = &lse {
        assert_eq!((lse.rows(), lse.columns()), (q.rows(), attention.heads), "log-sum-exp output");
    }
    let storage = Storage::of_cache(cpu.precision);
    let (out, lse) = (out.shared(), lse.map(Rows::shared));
    let Plan { tasks, merges, partials, work } = Plan::new(cpu, attention, q, spans);
    let mut buffer = lock(&cpu.scratch.partials);
    buffer.reserve(partials);
    let partials = SharedMut::new(&mut buffer);
    cpu.tasks_with_scratch(tasks.len(), work, |task, scratch| {
        let kernel = Attend { task: tasks[task].clone(), partials, out, lse, scratch };
        cpu.isa.run_product(ForProduct { storage, precision: cpu.precision, kernel });
    });
    let buffer = &buffer[..];
    let work = 2 * buffer.len().min(work);
    cpu.tasks_with_scratch(merges.len(), work, |task, scratch| {
        let kernel = Merge { task: merges[task].clone(), buffer, out, lse, scratch };
        cpu.isa.run(kernel);
    });
}

/// Rows and the KV splits they are processed with.
#[derive(Clone)]
struct Task<'a> {
    queries: Queries<'a>,
    splits: Range<usize>,
    /// Offset in the buffer of the first split's partial result; `None` if this task covers all
    /// splits of its rows.
    partials: Option<usize>,
}

impl Task<'_> {
    fn work(&self) -> usize {
        self.queries.work() * self.splits.len() / self.queries.kv_splits().len().max(1)
    }

    fn partial_len(&self) -> usize {
        Partial::len(self.queries.rows(), width(&self.queries))
    }
}

/// How the work is divided. It does not affect any bits.
struct Plan<'a> {
    /// Longest first, so that threads finish at about the same time.
    tasks: Vec<Task<'a>>,
    /// Merges of rows whose splits were processed by several tasks.
    merges: Vec<Task<'a>>,
    /// Length of the buffer of partial results, in floats.
    partials: usize,
    /// Total number of multiplications.
    work: usize,
}

impl<'a> Plan<'a> {
    fn new(cpu: &Cpu, attention: &'a Attention, q: &'a Rows, spans: &'a [Span<'a>]) -> Plan<'a> {
        let all: Vec<_> = all_queries(attention, q, spans).collect();
        let work: usize = all.iter().map(Queries::work).sum();
        let mut plan = Plan { tasks: Vec::new(), merges: Vec::new(), partials: 0, work };
        let alone = cpu.threads() == 1 || work < PARALLEL_THRESHOLD;
        for queries in all {
            let splits = queries.kv_splits();
            let share = queries.work() * TASKS_PER_THREAD * cpu.threads();
            let pieces = if alone { 1 } else { share.div_ceil(work).clamp(1, splits.len()) };
            let whole = Task { queries, splits, partials: None };
            if pieces == 1 {
                plan.tasks.push(whole);
                continue;
            }
            let whole = Task { partials: Some(plan.partials), ..whole };
            let (first, len) = (whole.splits.start, whole.partial_len());
            for part in even_parts(whole.splits.clone(), whole.splits.len().div_ceil(pieces)) {
                let partials = Some(plan.partials + (part.start - first) * len);
                plan.tasks.push(Task { splits: part, partials, ..whole.clone() });
            }
            plan.partials += whole.splits.len() * len;
            plan.merges.push(whole);
        }
        plan.tasks.sort_by_key(|task| Reverse(task.work()));
        plan
    }
}

struct Attend<'a> {
    task: Task<'a>,
    partials: SharedMut,
    out: SharedMut,
    lse: Option<SharedMut>,
    scratch: &'a mut AttentionScratch,
}

impl ProductKernel for Attend<'_> {
    #[inline(always)]
    fn run<S: Simd, P: Product>(self, s: S, round: bool) {
        let Attend { task, partials, out, lse, scratch } = self;
        let queries = &task.queries;
        let (rows, width) = (queries.rows(), width(queries));
        scratch.scores.reserve(P::tile_rows::<S>() * ROW_STRIDE);
        scratch.probabilities.reserve(P::tile_rows::<S>() * ROW_STRIDE);
        scratch.masked.reserve(width * P::K_GROUP / P::K);
        scratch.merged.clear(rows, width);
        queries.list_visible(&mut scratch.visible);
        let seen = union(&scratch.visible, 0..rows);
        queries.prefetch_block(s, seen.start.max(task.splits.start * KV_SPLIT) / BLOCK, &seen);
        queries.pack::<S, P>(s, round, &mut scratch.q);
        for split in task.splits.clone() {
            scratch.split.clear(rows, width);
            let keys = split * KV_SPLIT..(split + 1) * KV_SPLIT;
            for block in blocks(&(seen.start.max(keys.start)..seen.end.min(keys.end))) {
                attend_block::<S, P>(s, queries, block, scratch);
            }
            scratch.split.reduce_lane_sums(s, rows);
            let partial = scratch.split.partial(rows, width);
            match task.partials {
                None => scratch.merged.merge(s, partial, rows, width),
                Some(first) => {
                    let len = task.partial_len();
                    let at = first + (split - task.splits.start) * len;
                    // SAFETY: the buffer holds `plan.partials` floats, and `Plan::new` gives each
                    // split of each task a disjoint range of it.
                    partial.write(unsafe { partials.slice(at..at + len) });
                }
            }
        }
        if task.partials.is_none() {
            scratch.merged.finish(s, queries, out, lse);
        }
    }
}

/// Processes all rows of a task in one block of keys.
#[inline(always)]
fn attend_block<S: Simd, P: Product>(
    s: S,
    queries: &Queries<'_>,
    block: usize,
    scratch: &mut AttentionScratch,
) {
    let (width, scale) = (width(queries), queries.scale_log2());
    if queries.hides(block) {
        return attend_masked_block::<S, P>(s, queries, block, scratch);
    }
    for tile in P::row_tiles::<S>(0..queries.rows()) {
        let AttentionScratch { q, scores, visible, .. } = &mut *scratch;
        let keys = within_block(&union(visible, tile.clone()), block);
        if keys.is_empty() {
            continue;
        }
        queries.scores::<S, P>(s, q, tile.clone(), block, keys, scores);
        softmax::<S, P>(s, scratch, tile.clone(), block, scale, width);
        Values { queries, scratch, block, tile, width }.add::<S, P>(s);
    }
}

/// [`attend_block`] for a block in which the mask hides keys: consecutive rows that see the same
/// keys are a tile.
#[inline(always)]
fn attend_masked_block<S: Simd, P: Product>(
    s: S,
    queries: &Queries<'_>,
    block: usize,
    scratch: &mut AttentionScratch,
) {
    let (width, scale) = (width(queries), queries.scale_log2());
    for tile in P::row_tiles::<S>(0..queries.rows()) {
        let mut rest = tile;
        while !rest.is_empty() {
            let (tile, seen) = queries.rows_alike(rest.clone(), block);
            rest.start = tile.end;
            let keys = seen.hull();
            if keys.is_empty() {
                continue;
            }
            let AttentionScratch { q, scores, visible, .. } = &mut *scratch;
            visible[tile.clone()].fill(block * BLOCK + keys.start..block * BLOCK + keys.end);
            queries.scores::<S, P>(s, q, tile.clone(), block, keys, scores);
            for scores in scores.chunks_mut(ROW_STRIDE).take(tile.len()) {
                hide_unseen(seen, scores);
            }
            softmax::<S, P>(s, scratch, tile.clone(), block, scale, width);
            let mut values = Values { queries, scratch, block, tile: tile.clone(), width };
            for keys in seen.runs() {
                values.add_keys::<S, P>(s, tile.clone(), keys);
            }
        }
    }
    queries.list_visible(&mut scratch.visible);
}

/// Merges the partial results of rows whose splits were processed by several tasks.
struct Merge<'a> {
    task: Task<'a>,
    buffer: &'a [f32],
    out: SharedMut,
    lse: Option<SharedMut>,
    scratch: &'a mut AttentionScratch,
}

impl Kernel for Merge<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Merge { task, buffer, out, lse, scratch } = self;
        let (rows, width) = (task.queries.rows(), width(&task.queries));
        scratch.merged.clear(rows, width);
        let partials = &buffer[task.partials.unwrap_or(0)..];
        for partial in partials.chunks_exact(task.partial_len()).take(task.splits.len()) {
            scratch.merged.merge(s, Partial::read(partial, rows), rows, width);
        }
        scratch.merged.finish(s, &task.queries, out, lse);
    }
}
