//! Epilogues: what is done with a group of panels of a product while its sums are still in a cache.
//!
//! A product accumulates into its thread's scratch memory; the epilogue moves the sums to their
//! destination. Each epilogue does element by element what the separate operation does, so it
//! returns the same bits.

use std::ops::Range;
use std::sync::Mutex;

use super::operand::SharedOperand;
use crate::cpu::lock;
use crate::gemm::{PANEL, Product, ProductKernel, k_block, store_packed};
use crate::memory::SharedMut;
use crate::simd::Simd;
use crate::simd::exp::silu;

/// Distance in elements between the rows of a product's scratch memory: a group of panels, plus a
/// cache line so that rows map to different cache sets.
pub(super) const SCRATCH_STRIDE: usize = GROUP_PANELS * PANEL + 16;
/// Panels per group: their sums stay in L2 while k advances.
pub(super) const GROUP_PANELS: usize = 8;

/// Vectors of the gate that are activated together, to overlap their latency.
const UNROLL: usize = 4;

/// The destination of a product's result.
#[derive(Clone, Copy)]
pub(super) enum Epilogue<'a> {
    /// `out = x · Wᵀ + bias`
    Set(SharedMut),
    /// `out += x · Wᵀ + bias`
    Add(SharedMut),
    /// `out = silu(gate) · (x · Wᵀ + bias)`, with the gate's sums in scratch memory too.
    Gate(SharedOperand),
    /// The running argmax of each row over the first `limit` columns.
    Best {
        /// One per row.
        best: &'a Mutex<Vec<Best>>,
        /// Number of columns considered.
        limit: usize,
    },
}

/// A row's largest result and its column; ties go to the lowest column.
#[derive(Clone, Copy)]
pub(super) struct Best {
    value: f32,
    pub(super) column: Option<usize>,
}

impl Best {
    /// No result yet.
    pub(super) const NONE: Best = Best { value: f32::NEG_INFINITY, column: None };

    /// NaN never wins: it is neither larger nor equal.
    fn update(&mut self, value: f32, column: usize) {
        let lower = value == self.value && self.column.is_none_or(|best| column < best);
        if value > self.value || lower {
            *self = Best { value, column: Some(column) };
        }
    }
}

/// Applies the epilogue to finished columns of some rows.
pub(super) struct ApplyEpilogue<'a> {
    pub(super) epilogue: Epilogue<'a>,
    pub(super) rows: Range<usize>,
    /// Finished panels, and the total number of columns of the matrix.
    pub(super) panels: Range<usize>,
    pub(super) columns: usize,
    /// Sums, `[rows, SCRATCH_STRIDE]`.
    pub(super) sums: &'a [f32],
    /// The gate's sums, if there is a gate.
    pub(super) gate: &'a [f32],
}

impl ProductKernel for ApplyEpilogue<'_> {
    #[inline(always)]
    fn run<S: Simd, P: Product>(self, s: S, round: bool) {
        let columns = self.panels.start * PANEL..self.columns.min(self.panels.end * PANEL);
        let rows = self.rows.zip(self.sums.chunks_exact(SCRATCH_STRIDE));
        match self.epilogue {
            Epilogue::Set(out) => {
                for (row, sums) in rows {
                    let at = row * self.columns;
                    // SAFETY: tasks have disjoint panels, so only this task accesses these columns
                    // of `out` `[rows, columns]`.
                    let out = unsafe { out.slice(at + columns.start..at + columns.end) };
                    out.copy_from_slice(&sums[..columns.len()]);
                }
            }
            Epilogue::Add(out) => {
                for (row, sums) in rows {
                    let at = row * self.columns;
                    // SAFETY: as above.
                    let out = unsafe { out.slice(at + columns.start..at + columns.end) };
                    for (out, sums) in out.chunks_mut(S::LANES).zip(sums.chunks(S::LANES)) {
                        let sum = s.add(s.load_some(out), s.load_some(sums));
                        s.store_some(out, sum);
                    }
                }
            }
            Epilogue::Gate(out) => {
                let rows = rows.zip(self.gate.chunks_exact(SCRATCH_STRIDE));
                for ((row, sums), gate) in rows {
                    let (sums, gate) = (&sums[..columns.len()], &gate[..columns.len()]);
                    let padded = self.panels.len() * PANEL;
                    for first in (0..padded).step_by(UNROLL * S::LANES) {
                        // Columns beyond the last load zeros, so the operand is padded as packing
                        // pads it.
                        let vectors = (first..).step_by(S::LANES).map(|i| i.min(columns.len()));
                        let mut activated = [s.splat(0.0); UNROLL];
                        for (x, from) in activated.iter_mut().zip(vectors.clone()) {
                            *x = s.load_some(&gate[from..]);
                        }
                        let activated = silu(s, activated);
                        let inside = (first..padded).step_by(S::LANES).zip(vectors);
                        for (x, (i, from)) in activated.into_iter().zip(inside) {
                            let column = columns.start + i;
                            let (block, k) = (column / k_block::<P>(), column % k_block::<P>());
                            let gated = s.mul(x, s.load_some(&sums[from..]));
                            // SAFETY: tasks have disjoint panels, so only this task accesses these
                            // columns of the operand, which is sized for all rows and blocks; a
                            // block holds whole vectors.
                            unsafe {
                                store_packed::<S, P>(s, round, gated, out.block(row, block), k);
                            }
                        }
                    }
                }
            }
            Epilogue::Best { best, limit } => {
                let columns = columns.start..columns.end.min(limit);
                let mut all = lock(best);
                for (row, sums) in rows {
                    let best = &mut all[row];
                    let sums = &sums[..columns.len()];
                    let mut most = s.splat(f32::NEG_INFINITY);
                    for sums in sums.chunks_exact(S::LANES) {
                        // `Simd::max` returns its second argument if the first is NaN, so NaN is
                        // skipped.
                        most = s.max(s.load_some(sums), most);
                    }
                    let rest = sums.chunks_exact(S::LANES).remainder();
                    let most =
                        rest.iter().fold(s.max_lane(most), |a, &b| if b > a { b } else { a });
                    if most >= best.value
                        && let Some(i) = sums.iter().position(|&x| x == most)
                    {
                        best.update(most, columns.start + i);
                    }
                }
            }
        }
    }
}
