//! Fused causal attention: online softmax over blocks of keys, never T × T.
//!
//! The query heads that share a key/value head times some query positions are the *rows* of a task
//! (`row = position · group + head`). For each block of [`BLOCK`] keys, for each register tile of
//! rows:
//! 1. scores `S = Q · Kᵀ`, the same product as a linear;
//! 2. online softmax: with the row's new maximum m', `P = 2^(scale·log₂e·S - m')`, and sum and
//!    result so far are multiplied by `2^(m - m')`;
//! 3. `O += P · V`, the same product again.
//!
//! What a tile touches in a block stays in L1: at a head of 64 in bf16 16 KB of keys and 16 KB of
//! values, shared by all tiles of the task, and 14 rows of scores (14 × 512 bytes) and
//! probabilities. Per row and block the two products are 2 · 128 · 64 / 32 = 512 `vdpbf16ps`, 256
//! cycles where two start in a cycle; softmax takes some 70 more, so just under four fifths of the
//! matrix rate is the limit at a head of 64, nine tenths at 128. Decoding reads 256 bytes a key for
//! some 14 cycles of products (a group of 7): 18 bytes a cycle and core, more than memory delivers,
//! so there memory is the limit if what comes next is asked for in time: a task asks for its first
//! block, and products for the next one while they work on one.
//!
//! **Stretches.** Keys are further cut into stretches of [`STRETCH`] at fixed positions. Each has
//! its own maximum, sum and O; those of a row's stretches are merged in order. A long context and
//! few rows — decoding, verification — is thus work for many threads, one or more stretches a task.
//! A task of many rows takes all stretches one after the other and merges as it goes: the same
//! arithmetic in the same order, so a row has the same bits either way.
//!
//! Blocks and stretches lie at fixed positions, every element of S and O is one chain over k, and
//! keys a row does not see never enter its arithmetic — not even as `0 · v`, for v may be NaN:
//! products stop where the row's keys stop, and lanes beyond are selected away. So a row's bits
//! depend on its own query and keys alone.

use std::cmp::Reverse;
use std::ops::Range;

use fathom_backend::Attention;

use super::kv::BLOCK;
use super::pass::Span;
use super::queries::{Queries, STRETCH, all_queries, blocks, check, union, within_block};
use super::softmax::softmax;
use super::state::{Record, width};
use super::values::Values;
use crate::cpu::{AttentionScratch, Cpu, WORTH_A_HAND_OFF, lock};
use crate::gemm::{ForProduct, Product, ProductKernel, ROW_STRIDE, Storage, even_parts};
use crate::memory::{Rows, SharedMut};
use crate::simd::{Kernel, Simd};

/// Tasks a thread should find, so that all finish together.
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
    let Plan { tasks, merges, records, work } = Plan::new(cpu, attention, q, spans);
    let mut buffer = lock(&cpu.scratch.stretches);
    buffer.reserve(records);
    let records = SharedMut::new(&mut buffer);
    cpu.tasks_with_scratch(tasks.len(), work, |task, scratch| {
        let kernel = Attend { task: tasks[task].clone(), records, out, lse, scratch };
        cpu.isa.run_product(ForProduct { storage, precision: cpu.precision, kernel });
    });
    let buffer = &buffer[..];
    let work = 2 * buffer.len().min(work);
    cpu.tasks_with_scratch(merges.len(), work, |task, scratch| {
        let kernel = Merge { task: merges[task].clone(), buffer, out, lse, scratch };
        cpu.isa.run(kernel);
    });
}

/// Rows, and the stretches of keys they meet.
#[derive(Clone)]
struct Task<'a> {
    queries: Queries<'a>,
    stretches: Range<usize>,
    /// Where in the buffer the first of those is recorded; otherwise they are all there are.
    records: Option<usize>,
}

impl Task<'_> {
    fn work(&self) -> usize {
        self.queries.work() * self.stretches.len() / self.queries.stretches().len().max(1)
    }

    fn record_len(&self) -> usize {
        Record::len(self.queries.rows(), width(&self.queries))
    }
}

/// How the work is cut. It changes no bits.
struct Plan<'a> {
    /// The longest first, so that threads finish together.
    tasks: Vec<Task<'a>>,
    /// What is left to do for rows whose stretches are several tasks.
    merges: Vec<Task<'a>>,
    /// Length of the buffer of records.
    records: usize,
    /// Multiplications in all.
    work: usize,
}

impl<'a> Plan<'a> {
    fn new(cpu: &Cpu, attention: &'a Attention, q: &'a Rows, spans: &'a [Span<'a>]) -> Plan<'a> {
        let all: Vec<_> = all_queries(attention, q, spans).collect();
        let work: usize = all.iter().map(Queries::work).sum();
        let mut plan = Plan { tasks: Vec::new(), merges: Vec::new(), records: 0, work };
        let alone = cpu.threads() == 1 || work < WORTH_A_HAND_OFF;
        for queries in all {
            let stretches = queries.stretches();
            let share = queries.work() * TASKS_PER_THREAD * cpu.threads();
            let pieces = if alone { 1 } else { share.div_ceil(work).clamp(1, stretches.len()) };
            let whole = Task { queries, stretches, records: None };
            if pieces == 1 {
                plan.tasks.push(whole);
                continue;
            }
            let whole = Task { records: Some(plan.records), ..whole };
            let (first, len) = (whole.stretches.start, whole.record_len());
            for part in even_parts(whole.stretches.clone(), whole.stretches.len().div_ceil(pieces))
            {
                let records = Some(plan.records + (part.start - first) * len);
                plan.tasks.push(Task { stretches: part, records, ..whole.clone() });
            }
            plan.records += whole.stretches.len() * len;
            plan.merges.push(whole);
        }
        plan.tasks.sort_by_key(|task| Reverse(task.work()));
        plan
    }
}

struct Attend<'a> {
    task: Task<'a>,
    records: SharedMut,
    out: SharedMut,
    lse: Option<SharedMut>,
    scratch: &'a mut AttentionScratch,
}

impl ProductKernel for Attend<'_> {
    #[inline(always)]
    fn run<S: Simd, P: Product>(self, s: S, round: bool) {
        let Attend { task, records, out, lse, scratch } = self;
        let queries = &task.queries;
        let (rows, width) = (queries.rows(), width(queries));
        scratch.scores.reserve(P::tile_rows::<S>() * ROW_STRIDE);
        scratch.probabilities.reserve(P::tile_rows::<S>() * ROW_STRIDE);
        scratch.masked.reserve(width * P::GROUP / P::K);
        scratch.total.clear(rows, width);
        queries.list_visible(&mut scratch.visible);
        let seen = union(&scratch.visible, 0..rows);
        queries.prefetch_block(s, seen.start.max(task.stretches.start * STRETCH) / BLOCK, &seen);
        queries.pack::<S, P>(s, round, &mut scratch.q);
        for stretch in task.stretches.clone() {
            scratch.part.clear(rows, width);
            let keys = stretch * STRETCH..(stretch + 1) * STRETCH;
            for block in blocks(&(seen.start.max(keys.start)..seen.end.min(keys.end))) {
                attend_block::<S, P>(s, round, queries, block, scratch);
            }
            scratch.part.add_up_lanes(s, rows);
            let record = scratch.part.record(rows, width);
            match task.records {
                None => scratch.total.merge(s, record, rows, width),
                Some(first) => {
                    let len = task.record_len();
                    let at = first + (stretch - task.stretches.start) * len;
                    // SAFETY: each stretch of each task has its own part of the buffer.
                    record.write(unsafe { records.slice(at..at + len) });
                }
            }
        }
        if task.records.is_none() {
            scratch.total.finish(s, queries, out, lse);
        }
    }
}

/// All rows of a task in one block of keys.
#[inline(always)]
fn attend_block<S: Simd, P: Product>(
    s: S,
    round: bool,
    queries: &Queries<'_>,
    block: usize,
    scratch: &mut AttentionScratch,
) {
    let width = width(queries);
    for tile in P::row_tiles::<S>(0..queries.rows()) {
        let AttentionScratch { q, scores, visible, .. } = &mut *scratch;
        let keys = within_block(&union(visible, tile.clone()), block);
        if keys.is_empty() {
            continue;
        }
        queries.scores::<S, P>(s, q, tile.clone(), block, keys, scores);
        let scale = queries.scale_log2();
        softmax::<S, P>(s, round, scratch, tile.clone(), block, scale, width);
        Values { queries, scratch, block, tile, width }.add::<S, P>(s);
    }
}

/// Merges the stretches of rows that several tasks have worked on.
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
        scratch.total.clear(rows, width);
        let records = &buffer[task.records.unwrap_or(0)..];
        for record in records.chunks_exact(task.record_len()).take(task.stretches.len()) {
            scratch.total.merge(s, Record::read(record, rows), rows, width);
        }
        scratch.total.finish(s, &task.queries, out, lse);
    }
}
