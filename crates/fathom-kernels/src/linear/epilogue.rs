//! What becomes of a product's columns once a group of them is done, while they are in a cache.
//!
//! A product adds up into its thread's scratch memory; the epilogue takes the sums from there to
//! where they are wanted. Each is element by element what the separate operation does, hence the
//! same bits.

use std::ops::Range;
use std::sync::Mutex;

use super::operand::SharedOperand;
use crate::cpu::lock;
use crate::gemm::{PANEL, Product, ProductKernel, k_block, store_packed};
use crate::memory::SharedMut;
use crate::simd::Simd;
use crate::simd::exp::silu;

/// Elements between the rows of a product's scratch memory: a group of panels, and a cache line
/// more, so that rows fall into different cache sets.
pub(super) const SCRATCH_STRIDE: usize = GROUP * PANEL + 16;
/// Panels whose sums stay in L2 while k runs.
pub(super) const GROUP: usize = 8;

/// Vectors of a gate that are activated together.
const AT_ONCE: usize = 4;

/// Where a product's result goes.
#[derive(Clone, Copy)]
pub(super) enum Epilogue<'a> {
    /// `out = x · Wᵀ + bias`
    Set(SharedMut),
    /// `out += x · Wᵀ + bias`
    Add(SharedMut),
    /// `out = silu(gate) · (x · Wᵀ + bias)`, the gate's sums lying in scratch memory too.
    Gate(SharedOperand),
    /// The largest result of each row so far within the first `limit` columns.
    Best {
        /// One per row.
        best: &'a Mutex<Vec<Best>>,
        /// Columns that count.
        limit: usize,
    },
}

/// A row's largest result and its column; the lowest column of several.
#[derive(Clone, Copy)]
pub(super) struct Best {
    value: f32,
    pub(super) column: Option<usize>,
}

impl Best {
    /// Nothing compares with it.
    pub(super) const NONE: Best = Best { value: f32::NEG_INFINITY, column: None };

    /// A NaN is neither larger nor equal.
    fn update(&mut self, value: f32, column: usize) {
        let lower = value == self.value && self.column.is_none_or(|best| column < best);
        if value > self.value || lower {
            *self = Best { value, column: Some(column) };
        }
    }
}

/// Takes finished columns of some rows to where they are wanted.
pub(super) struct Finish<'a> {
    pub(super) epilogue: Epilogue<'a>,
    pub(super) rows: Range<usize>,
    /// Panels, and how many columns the matrix has in all.
    pub(super) panels: Range<usize>,
    pub(super) columns: usize,
    /// `[rows, SCRATCH_STRIDE]`
    pub(super) sums: &'a [f32],
    /// The same of the gate, where there is one.
    pub(super) gate: &'a [f32],
}

impl ProductKernel for Finish<'_> {
    #[inline(always)]
    fn run<S: Simd, P: Product>(self, s: S, round: bool) {
        let columns = self.panels.start * PANEL..self.columns.min(self.panels.end * PANEL);
        let rows = self.rows.zip(self.sums.chunks_exact(SCRATCH_STRIDE));
        match self.epilogue {
            Epilogue::Set(out) => {
                for (row, sums) in rows {
                    let at = row * self.columns;
                    // SAFETY: these columns are this thread's.
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
                    for first in (0..padded).step_by(AT_ONCE * S::LANES) {
                        // Zeros beyond the last column, as packing writes them.
                        let vectors = (first..).step_by(S::LANES).map(|i| i.min(columns.len()));
                        let mut activated = [s.splat(0.0); AT_ONCE];
                        for (x, from) in activated.iter_mut().zip(vectors.clone()) {
                            *x = s.load_some(&gate[from..]);
                        }
                        let activated = silu(s, activated);
                        let inside = (first..padded).step_by(S::LANES).zip(vectors);
                        for (x, (i, from)) in activated.into_iter().zip(inside) {
                            let column = columns.start + i;
                            let (block, k) = (column / k_block::<P>(), column % k_block::<P>());
                            let gated = s.mul(x, s.load_some(&sums[from..]));
                            // SAFETY: these columns are this thread's, and a block holds whole
                            // vectors.
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
                        // A NaN compares as neither larger nor smaller: `most` stays.
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
