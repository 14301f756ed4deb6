//! Column sums of the attention matrix — what sink scores are made of — in a second pass over the
//! scores, once each row's log-sum-exp is known.
//!
//! Work is cut by key/value head and blocks of keys, so that each (head, key) sum belongs to one
//! task, which adds the rows in position order, in f64: chunks and threads do not change its bits.
//!
//! A row and a block of 128 keys take 128 cycles of products at a head of 64 in bf16, half of what
//! the first pass takes, and as much again for `2^y` and the f64 sums, two vectors for each of
//! scores: so the second pass takes some three fifths of the first. The sums of 4 vectors of keys
//! stay in registers while the rows pass, and the packed queries serve several blocks.

use std::ops::Range;

use fathom_backend::Attention;

use super::column_sums::ColumnSums;
use super::kv::BLOCK;
use super::pass::Span;
use super::queries::{Queries, check, mask, minus_log2, union, within_block};
use crate::cpu::{AttentionScratch, Cpu};
use crate::gemm::{ForProduct, Product, ProductKernel, ROW_STRIDE, even_parts};
use crate::memory::{Rows, SharedMut};
use crate::simd::Simd;
use crate::simd::exp::exp2_scaled;

/// Query rows scored at a time.
const TASK_ROWS: usize = 64;

/// Adds the rows of a span to its sums, where it has any.
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
    let sums = &mut sums.sums[attention.layer];
    assert_eq!(sums.len(), attention.heads, "heads of the column sums");
    if span.rows.is_empty() {
        return;
    }
    let start = span.first_position;
    let blocks = (start + span.rows.len()).div_ceil(BLOCK);
    let first_key = attention.window.map_or(0, |window| (start + 1).saturating_sub(window));
    let first_block = first_key / BLOCK;
    let heads: Vec<SharedMut<f64>> = sums
        .iter_mut()
        .map(|head| {
            head.resize(head.len().max(blocks * BLOCK), 0.0);
            SharedMut::new(head)
        })
        .collect();
    // Blocks that share the packed queries: as many as leave every thread several tasks.
    let per_task = (attention.kv_heads * (blocks - first_block) / (4 * cpu.threads())).clamp(1, 8);
    let tasks: Vec<_> = (first_block..blocks)
        .step_by(per_task)
        .flat_map(|block| (0..attention.kv_heads).map(move |kv_head| (block, kv_head)))
        .collect();
    let work = attention.heads * attention.head_dim * span.rows.len() * blocks * BLOCK;
    cpu.tasks_with_scratch(tasks.len(), work, |task, scratch| {
        let (block, kv_head) = tasks[task];
        let blocks = block..blocks.min(block + per_task);
        let kernel = AddBlocks { attention, q, lse, span, kv_head, blocks, heads: &heads, scratch };
        cpu.isa.run_product(ForProduct {
            storage: span.kv.storage(),
            precision: cpu.precision,
            kernel,
        });
    });
}

/// Adds all rows' probabilities for the keys of some blocks, for one key/value head.
struct AddBlocks<'a> {
    attention: &'a Attention,
    q: &'a Rows,
    lse: &'a Rows,
    span: &'a Span<'a>,
    kv_head: usize,
    blocks: Range<usize>,
    heads: &'a [SharedMut<f64>],
    scratch: &'a mut AttentionScratch,
}

impl ProductKernel for AddBlocks<'_> {
    #[inline(always)]
    fn run<S: Simd, P: Product>(self, s: S, round: bool) {
        let AddBlocks { attention, q, lse, span, kv_head, blocks, heads, scratch } = self;
        let AttentionScratch { q: packed, scores, visible, lse: lses, .. } = scratch;
        let group = attention.heads / attention.kv_heads;
        for batch_rows in even_parts(span.rows.clone(), (TASK_ROWS / group).max(1)) {
            let queries = Queries {
                attention,
                kv: &*span.kv,
                kv_head,
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
                for head in 0..group {
                    let sums = heads[kv_head * group + head];
                    // SAFETY: this task alone has this head and block.
                    let sums = unsafe { sums.slice(block * BLOCK..(block + 1) * BLOCK) };
                    let rows = (head..rows).step_by(group).map(|row| Row {
                        scores: &scores[row * ROW_STRIDE..][..BLOCK],
                        minus_lse: lses[row],
                        visible: within_block(&visible[row], block),
                    });
                    add_head(s, queries.scale_log2(), rows, &keys, sums);
                }
            }
        }
    }
}

/// One query of one head against one block of keys.
struct Row<'a> {
    /// Unscaled.
    scores: &'a [f32],
    /// In units of ln 2, as the scale is.
    minus_lse: f32,
    /// Keys of the block it sees.
    visible: Range<usize>,
}

/// Vectors of keys whose sums stay in registers while the rows pass: so many chains of additions
/// hide each other's latency, and two f64 vectors each still leave registers for `2^y`.
const GROUP: usize = 4;

/// Adds the probabilities of one head's rows to its sums of one block.
#[inline(always)]
fn add_head<'a, S: Simd>(
    s: S,
    scale: f32,
    rows: impl Iterator<Item = Row<'a>> + Clone,
    keys: &Range<usize>,
    sums: &mut [f64],
) {
    let scale = s.splat(scale);
    for (group, sums) in sums.chunks_exact_mut(GROUP * S::LANES).enumerate() {
        let group = group * GROUP * S::LANES..(group + 1) * GROUP * S::LANES;
        if keys.end <= group.start || group.end <= keys.start {
            continue;
        }
        // SAFETY: `sums` holds GROUP vectors.
        let mut sum = unsafe { [s.load_f64(sums.as_ptr()); GROUP] };
        for (sum, sums) in sum.iter_mut().zip(sums.chunks_exact(S::LANES)) {
            // SAFETY: a vector.
            *sum = unsafe { s.load_f64(sums.as_ptr()) };
        }
        for Row { scores, minus_lse, visible } in rows.clone() {
            let minus_lse = s.splat(minus_lse);
            let scores = &scores[group.clone()];
            if visible.start <= group.start && group.end <= visible.end {
                let p: [_; GROUP] = exp2_scaled(s, scores, scale, minus_lse);
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
            // SAFETY: a vector.
            unsafe { s.store_f64(sums.as_mut_ptr(), sum) };
        }
    }
}
