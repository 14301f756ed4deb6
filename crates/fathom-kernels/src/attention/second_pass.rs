//! Column sums of the attention matrix, from which sink scores are computed, in a second pass over
//! the scores once each row's log-sum-exp is known: Sink score (docs/definitions.md).
//!
//! Work is divided by key/value head and blocks of keys. Each (head, key) sum belongs to one task,
//! which adds the rows in position order, in f64, so chunks and threads do not affect its bits.
//!
//! A row and a block of 128 keys take 128 cycles of products at a head dimension of 64 in bf16,
//! half of the first pass, and as much again for `2^y` and the f64 sums (two vectors per vector of
//! scores). So the second pass takes about three fifths of the first. The sums of 4 vectors of keys
//! stay in registers while the rows are added, and packed queries are reused for several blocks.

use std::ops::Range;

use fathom_backend::Attention;

use super::column_sums::ColumnSums;
use super::kv::BLOCK;
use super::pass::Span;
use super::queries::{Queries, check, mask, minus_log2, union, until, within_block};
use crate::cpu::{AttentionScratch, Cpu};
use crate::gemm::{ForProduct, Product, ProductKernel, ROW_STRIDE, even_parts};
use crate::memory::{Rows, SharedMut};
use crate::simd::Simd;
use crate::simd::exp::{exp2, exp2_scaled};

/// Query rows scored together.
const TASK_ROWS: usize = 64;

/// Adds the rows of a span to its column sums, if it has any.
pub(crate) fn add_column_sums(
    cpu: &Cpu,
    attention: &Attention,
    q: &Rows,
    lse: &Rows,
    span: &mut Span<'_>,
) {
    let Some(sums) = span.column_sums.take() else { return };
    add_to(cpu, attention, q, lse, span, sums);
    span.column_sums = Some(sums);
}

fn add_to(
    cpu: &Cpu,
    attention: &Attention,
    q: &Rows,
    lse: &Rows,
    span: &Span<'_>,
    sums: &mut ColumnSums,
) {
    check(attention, q, std::slice::from_ref(span));
    assert_eq!((lse.rows(), lse.columns()), (q.rows(), attention.heads), "log-sum-exp");
    let ColumnSums { sums, entropies } = sums;
    let sums = &mut sums[attention.layer];
    assert_eq!(sums.len(), attention.heads, "heads of the column sums");
    if span.rows.is_empty() {
        return;
    }
    let start = span.first_position;
    let blocks = (start + span.rows.len()).div_ceil(BLOCK);
    let first_key = attention.window.map_or(0, |window| (start + 1).saturating_sub(window));
    let first_block = first_key / BLOCK;
    let share = |head: &mut Vec<f64>| {
        head.resize(head.len().max(blocks * BLOCK), 0.0);
        SharedMut::new(head)
    };
    let heads: Vec<SharedMut<f64>> = sums.iter_mut().map(share).collect();
    let entropies: Vec<SharedMut<f64>> =
        entropies.get_mut(attention.layer).into_iter().flatten().map(share).collect();
    // Blocks per task. The blocks of a task share the packed queries, but at least four tasks per
    // thread should remain.
    let per_task = (attention.kv_heads * (blocks - first_block) / (4 * cpu.threads())).clamp(1, 8);
    let tasks: Vec<_> = (first_block..blocks)
        .step_by(per_task)
        .flat_map(|block| (0..attention.kv_heads).map(move |kv_head| (block, kv_head)))
        .collect();
    let work = attention.heads * attention.head_dim * span.rows.len() * blocks * BLOCK;
    cpu.tasks_with_scratch(tasks.len(), work, |task, scratch| {
        let (block, kv_head) = tasks[task];
        let blocks = block..blocks.min(block + per_task);
        let (heads, entropies) = (&heads, &entropies);
        let kernel =
            AddBlocks { attention, q, lse, span, kv_head, blocks, heads, entropies, scratch };
        cpu.isa.run_product(ForProduct {
            storage: span.kv.storage(),
            precision: cpu.precision,
            kernel,
        });
    });
}

/// Adds the probabilities of all rows for the keys of `blocks`, for one key/value head.
struct AddBlocks<'a> {
    attention: &'a Attention,
    q: &'a Rows,
    lse: &'a Rows,
    span: &'a Span<'a>,
    kv_head: usize,
    blocks: Range<usize>,
    heads: &'a [SharedMut<f64>],
    /// Empty if entropies are not wanted.
    entropies: &'a [SharedMut<f64>],
    scratch: &'a mut AttentionScratch,
}

impl ProductKernel for AddBlocks<'_> {
    #[inline(always)]
    fn run<S: Simd, P: Product>(self, s: S, round: bool) {
        let AddBlocks { attention, q, lse, span, kv_head, blocks, heads, entropies, scratch } =
            self;
        let AttentionScratch { q: packed, scores, visible, lse: lses, .. } = scratch;
        let group = attention.heads / attention.kv_heads;
        for batch_rows in even_parts(span.rows.clone(), (TASK_ROWS / group).max(1)) {
            let queries = Queries {
                attention,
                kv: &*span.kv,
                kv_head,
                until: until(attention, span),
                q,
                first: batch_rows.start,
                position: span.first_position + batch_rows.start - span.rows.start,
                positions: batch_rows.len(),
            };
            let rows = queries.rows();
            queries.list_visible(visible);
            let seen = union(visible, 0..rows);
            if seen.end <= blocks.start * BLOCK || blocks.end * BLOCK <= seen.start {
                continue;
            }
            scores.reserve(rows * ROW_STRIDE);
            queries.pack::<S, P>(s, round, packed);
            lses.clear();
            let of_row = |(batch_row, head): (usize, usize)| minus_log2(lse.row(batch_row)[head]);
            lses.extend(queries.sources().map(of_row));
            for block in blocks.clone() {
                let keys = within_block(&seen, block);
                if keys.is_empty() {
                    continue;
                }
                for tile in P::row_tiles::<S>(0..rows) {
                    let scores = &mut scores[tile.start * ROW_STRIDE..];
                    queries.scores::<S, P>(s, packed, tile, block, keys.clone(), scores);
                }
                queries.hide(0..rows, block, scores);
                for head in 0..group {
                    let sums = heads[kv_head * group + head];
                    // SAFETY: each task has its own blocks and key/value head, so no other task
                    // accesses these sums; every head was resized to hold all blocks.
                    let sums = unsafe { sums.slice(block * BLOCK..(block + 1) * BLOCK) };
                    let rows = (head..rows).step_by(group).map(|row| Row {
                        scores: &scores[row * ROW_STRIDE..][..BLOCK],
                        minus_lse: lses[row],
                        visible: within_block(&visible[row], block),
                    });
                    if let Some(entropies) = entropies.get(kv_head * group + head) {
                        // SAFETY: as for `sums`.
                        let entropies =
                            unsafe { entropies.slice(block * BLOCK..(block + 1) * BLOCK) };
                        add_entropies(s, queries.scale_log2(), rows.clone(), &keys, entropies);
                    }
                    add_head(s, queries.scale_log2(), rows, &keys, sums);
                }
            }
        }
    }
}

/// The scores of one query row and head for one block of keys.
struct Row<'a> {
    /// Unscaled scores.
    scores: &'a [f32],
    /// Negated log-sum-exp in base 2.
    minus_lse: f32,
    /// Visible keys of the block.
    visible: Range<usize>,
}

/// Vectors of keys whose sums stay in registers while the rows are added: enough independent
/// accumulators to hide the latency of addition. Each needs two f64 vectors, which leaves registers
/// for `2^y`.
const UNROLL: usize = 4;

/// Adds the probabilities of one head's rows to its sums in one block.
#[inline(always)]
fn add_head<'a, S: Simd>(
    s: S,
    scale: f32,
    rows: impl Iterator<Item = Row<'a>> + Clone,
    keys: &Range<usize>,
    sums: &mut [f64],
) {
    let scale = s.splat(scale);
    for (group, sums) in sums.chunks_exact_mut(UNROLL * S::LANES).enumerate() {
        let group = group * UNROLL * S::LANES..(group + 1) * UNROLL * S::LANES;
        if keys.end <= group.start || group.end <= keys.start {
            continue;
        }
        // SAFETY: `sums` holds UNROLL ≥ 1 vectors of LANES elements.
        let mut sum = unsafe { [s.load_f64(sums.as_ptr()); UNROLL] };
        for (sum, sums) in sum.iter_mut().zip(sums.chunks_exact(S::LANES)) {
            // SAFETY: `chunks_exact` yields LANES elements.
            *sum = unsafe { s.load_f64(sums.as_ptr()) };
        }
        for Row { scores, minus_lse, visible } in rows.clone() {
            let minus_lse = s.splat(minus_lse);
            let scores = &scores[group.clone()];
            if visible.start <= group.start && group.end <= visible.end {
                let p: [_; UNROLL] = exp2_scaled(s, scores, scale, minus_lse);
                for (sum, p) in sum.iter_mut().zip(p) {
                    *sum = s.add_f64(*sum, p);
                }
            } else {
                let vectors = scores.chunks_exact(S::LANES);
                for ((sum, x), key) in
                    sum.iter_mut().zip(vectors).zip(group.clone().step_by(S::LANES))
                {
                    if visible.start < key + S::LANES && key < visible.end {
                        let [p] = exp2_scaled(s, x, scale, minus_lse);
                        *sum = s.add_f64(*sum, mask(s, &visible, key, p, 0.0));
                    }
                }
            }
        }
        for (sums, sum) in sums.chunks_exact_mut(S::LANES).zip(sum) {
            // SAFETY: `chunks_exact_mut` yields LANES elements.
            unsafe { s.store_f64(sums.as_mut_ptr(), sum) };
        }
    }
}

/// Adds `p · log₂ p` of one head's rows to its sums in one block.
#[inline(always)]
fn add_entropies<'a, S: Simd>(
    s: S,
    scale: f32,
    rows: impl Iterator<Item = Row<'a>> + Clone,
    keys: &Range<usize>,
    sums: &mut [f64],
) {
    let scale = s.splat(scale);
    for (sums, key) in sums.chunks_exact_mut(S::LANES).zip((0..).step_by(S::LANES)) {
        if keys.end <= key || key + S::LANES <= keys.start {
            continue;
        }
        // SAFETY: `chunks_exact_mut` yields LANES elements.
        let mut sum = unsafe { s.load_f64(sums.as_ptr()) };
        for Row { scores, minus_lse, visible } in rows.clone() {
            if visible.start < key + S::LANES && key < visible.end {
                let log_p = s.fma(s.load_some(&scores[key..]), scale, s.splat(minus_lse));
                let [p] = exp2(s, [log_p]);
                // p · log₂ p tends to 0 with p. A hidden key's log is -∞.
                let tiny = s.lt(log_p, s.splat(f32::MIN_EXP as f32));
                let term = s.select(tiny, s.splat(0.0), s.mul(p, log_p));
                sum = s.add_f64(sum, mask(s, &visible, key, term, 0.0));
            }
        }
        // SAFETY: as above.
        unsafe { s.store_f64(sums.as_mut_ptr(), sum) };
    }
}
