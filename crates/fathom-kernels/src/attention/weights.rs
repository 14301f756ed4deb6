//! The full attention matrix, for short sequences.

use fathom_backend::Attention;

use super::kv::BLOCK;
use super::pass::Span;
use super::queries::{Queries, all_queries, blocks, check, minus_log2, union, within_block};
use crate::cpu::{AttentionScratch, Cpu};
use crate::gemm::{ForProduct, Product, ProductKernel, ROW_STRIDE};
use crate::memory::{Rows, SharedMut};
use crate::simd::Simd;
use crate::simd::exp::exp2;

/// The probabilities `exp(scale·S - lse)`, `[heads, rows, keys]`, with the keys up to the last
/// row's position.
pub(crate) fn weights(
    cpu: &Cpu,
    attention: &Attention,
    q: &Rows,
    lse: &Rows,
    span: &Span<'_>,
) -> Vec<f32> {
    check(attention, q, std::slice::from_ref(span));
    assert_eq!((lse.rows(), lse.columns()), (q.rows(), attention.heads), "log-sum-exp");
    let keys = span.first_position + span.rows.len();
    let mut weights = vec![0.0; attention.heads * span.rows.len() * keys];
    let out = SharedMut::new(&mut weights);
    let all: Vec<_> = all_queries(attention, q, std::slice::from_ref(span)).collect();
    cpu.tasks_with_scratch(all.len(), all.iter().map(Queries::work).sum(), |task, scratch| {
        let kernel = Weights { queries: all[task], lse, out, span, keys, scratch };
        let storage = span.kv.storage();
        cpu.isa.run_product(ForProduct { storage, precision: cpu.precision, kernel });
    });
    weights
}

struct Weights<'a> {
    queries: Queries<'a>,
    lse: &'a Rows,
    out: SharedMut,
    span: &'a Span<'a>,
    keys: usize,
    scratch: &'a mut AttentionScratch,
}

impl ProductKernel for Weights<'_> {
    #[inline(always)]
    fn run<S: Simd, P: Product>(self, s: S, round: bool) {
        let Weights { queries, lse, out, span, keys: all_keys, scratch } = self;
        let AttentionScratch { q, scores, visible, .. } = scratch;
        let rows = queries.rows();
        scores.reserve(P::tile_rows::<S>() * ROW_STRIDE);
        queries.list_visible(visible);
        queries.pack::<S, P>(s, round, q);
        for block in blocks(&union(visible, 0..rows)) {
            for tile_rows in P::row_tiles::<S>(0..rows) {
                let keys = within_block(&union(visible, tile_rows.clone()), block);
                if keys.is_empty() {
                    continue;
                }
                queries.scores::<S, P>(s, q, tile_rows.clone(), block, keys, scores);
                queries.hide(tile_rows.clone(), block, scores);
                for row in tile_rows.clone() {
                    let (batch_row, head) = queries.source(row);
                    let keys = within_block(&visible[row], block);
                    let line = head * span.rows.len() + batch_row - span.rows.start;
                    let at = line * all_keys + block * BLOCK;
                    // SAFETY: each (batch row, head) belongs to one task, and `keys` are within the
                    // `all_keys` columns of its line.
                    let out = unsafe { out.slice(at + keys.start..at + keys.end) };
                    let scores = &scores[(row - tile_rows.start) * ROW_STRIDE..][keys];
                    let scale = s.splat(queries.scale_log2());
                    let minus_lse = s.splat(minus_log2(lse.row(batch_row)[head]));
                    for (out, x) in out.chunks_mut(S::LANES).zip(scores.chunks(S::LANES)) {
                        let [weight] = exp2(s, [s.fma(s.load_some(x), scale, minus_lse)]);
                        s.store_some(out, weight);
                    }
                }
            }
        }
    }
}
