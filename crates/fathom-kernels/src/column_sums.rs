//! Column sums of the attention matrix — what sink scores are made of — in a second pass over the
//! scores, once each row's log-sum-exp is known.
//!
//! Work is cut by key/value head and block of keys, so that each (head, key) sum belongs to one task,
//! which adds the rows in position order, in f64: chunks and threads do not change its bits.

use std::ops::Range;

use crate::attention::{AttentionScratch, Queries, check, mask, within_block};
use crate::cpu::Cpu;
use crate::exp::exp;
use crate::kv::{BLOCK, Kv};
use crate::microkernel::{ForProduct, Product, ProductKernel, ROW_STRIDE, even_parts};
use crate::rows::{Rows, SharedMut};
use crate::simd::Simd;
use crate::{Attention, Span};

/// Σ_t a[h, t, k] of one sequence for every layer, head h and key k.
pub struct ColumnSums {
    /// `[layer][head][key]`, keys padded to whole blocks.
    sums: Vec<Vec<Vec<f64>>>,
}

impl ColumnSums {
    pub(crate) fn new(layers: usize, heads: usize) -> ColumnSums {
        ColumnSums { sums: vec![vec![Vec::new(); heads]; layers] }
    }

    pub(crate) fn of_layer(&self, layer: usize, tokens: usize) -> Vec<f64> {
        let heads = &self.sums[layer];
        let head = |sums: &Vec<f64>| {
            (0..tokens).map(|key| sums.get(key).copied().unwrap_or(0.0)).collect::<Vec<_>>()
        };
        heads.iter().flat_map(head).collect()
    }
}

/// Query rows scored at a time.
const TASK_ROWS: usize = 64;

pub(crate) fn add(
    cpu: &Cpu,
    attention: &Attention,
    q: &Rows,
    lse: &Rows,
    span: &Span<'_, Kv>,
    sums: &mut ColumnSums,
) {
    check(attention, q, std::slice::from_ref(span));
    assert_eq!((lse.rows(), lse.columns()), (q.rows(), attention.heads), "log-sum-exp");
    let sums = &mut sums.sums[attention.layer];
    assert_eq!(sums.len(), attention.heads, "heads of the column sums");
    if span.rows.is_empty() {
        return;
    }
    let start = span.kv.len();
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
    let tasks = attention.kv_heads * (blocks - first_block);
    cpu.tasks(tasks, |task, scratch| {
        let (kv_head, block) = (task % attention.kv_heads, first_block + task / attention.kv_heads);
        let kernel = AddBlock { attention, q, lse, span, kv_head, block, heads: &heads, scratch };
        cpu.isa.run(ForProduct { storage: span.kv.storage, precision: cpu.precision, kernel });
    });
}

struct AddBlock<'a> {
    attention: &'a Attention,
    q: &'a Rows,
    lse: &'a Rows,
    span: &'a Span<'a, Kv>,
    kv_head: usize,
    block: usize,
    heads: &'a [SharedMut<f64>],
    scratch: &'a mut AttentionScratch,
}

impl ProductKernel for AddBlock<'_> {
    #[inline(always)]
    fn run<S: Simd, P: Product>(self, s: S, round: bool) {
        let AddBlock { attention, q, lse, span, kv_head, block, heads, scratch } = self;
        let group = attention.heads / attention.kv_heads;
        for batch_rows in even_parts(span.rows.clone(), (TASK_ROWS / group).max(1)) {
            let queries = Queries {
                attention,
                kv: &*span.kv,
                kv_head,
                q,
                first: batch_rows.start,
                position: span.kv.len() + batch_rows.start - span.rows.start,
                positions: batch_rows.len(),
            };
            let rows = queries.rows();
            let keys = within_block(&queries.visible_to_any(0..rows), block);
            if keys.is_empty() {
                continue;
            }
            let AttentionScratch { q, scores, .. } = &mut *scratch;
            scores.reserve(rows * ROW_STRIDE);
            queries.pack::<S, P>(s, round, q);
            for tile_rows in even_parts(0..rows, S::TILE_ROWS) {
                queries.scores::<S, P>(s, q, tile_rows, block, keys.clone(), scores);
            }
            for head in 0..group {
                let sums = heads[kv_head * group + head];
                // SAFETY: this task alone has this head and block.
                let sums = unsafe { sums.slice(block * BLOCK..(block + 1) * BLOCK) };
                add_head(s, &queries, head, block, keys.clone(), lse, scores, sums);
            }
        }
    }
}

/// Adds the probabilities of one head's rows to its sums of one block: a vector of keys at a time, its
/// sums staying in registers while the rows pass.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn add_head<S: Simd>(
    s: S,
    queries: &Queries<'_>,
    head: usize,
    block: usize,
    keys: Range<usize>,
    lse: &Rows,
    scores: &[f32],
    sums: &mut [f64],
) {
    let scale = s.splat(queries.attention.scale);
    for key in (keys.start / S::LANES * S::LANES..keys.end).step_by(S::LANES) {
        // SAFETY: `key` is a multiple of LANES within the block, which is `sums` long.
        let mut sum = unsafe { s.load_f64(sums[key..].as_ptr()) };
        for row in (head..queries.rows()).step_by(queries.group()) {
            let visible = within_block(&queries.visible(row), block);
            if visible.end <= key || key + S::LANES <= visible.start {
                continue;
            }
            let (batch_row, query_head) = queries.source(row);
            let lse = s.splat(lse.row(batch_row)[query_head]);
            // SAFETY: rows of scores are ROW_STRIDE ≥ BLOCK long.
            let score = unsafe { s.load(scores[row * ROW_STRIDE + key..].as_ptr()) };
            let p = exp(s, s.sub(s.mul(score, scale), lse));
            sum = s.add_f64(sum, mask(s, &visible, key, p, 0.0));
        }
        // SAFETY: as above.
        unsafe { s.store_f64(sums[key..].as_mut_ptr(), sum) };
    }
}
