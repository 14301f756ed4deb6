//! The driver of matrix products, one for 1 row and for 4096.
//!
//! x is packed once ([`Operand`]); matrices that read the same x share one job. Threads take pieces
//! of the panels. Blocking, outermost first:
//! - **rows**, a few hundred at a time: one k block of them (`rows · 1 KiB`) stays in L2;
//! - **groups of panels**: their sums (`rows · 1 KiB`) stay in L2 while k runs, and until the
//!   epilogue has taken them to where they are wanted;
//! - **k blocks** of [`ROW_WORDS`](crate::gemm::ROW_WORDS) words: one panel's slice is at most
//!   32 KiB and stays in L1
//! - while the **register tiles** of all row blocks go over it, asking meanwhile for the next slice
//!   into L1 and for what is read of the rows after it into L2.
//!
//! What limits it: a product of `r` rows reads `2 · k · n` bytes of bfloat16 weights and does
//! `2 · r · k · n` operations, `r` for each byte. Up to `rate / bandwidth` rows (13 where a core
//! reads 39 GB/s and does 0.51 TFLOP/s) it takes as long as reading the weights: with one tile of
//! rows the loops degenerate to one stream through the weights, front to back, prefetched a fixed
//! distance ahead. From there on it takes as long as the multiplications: weights come from memory
//! once per few hundred rows and from L1 for all other tiles, and of the loads only the tile's own
//! remain.

use std::ops::Range;

use super::epilogue::{Epilogue, Finish, GROUP, SCRATCH_STRIDE};
use super::matrix::Linear;
use super::operand::Operand;
use crate::cpu::{Cpu, lock};
use crate::gemm::{
    ForProduct, PANEL, Product, ProductKernel, ROW_STRIDE, Tile, even_parts, k_block,
};
use crate::memory::Aligned;
use crate::simd::Simd;

/// Row blocks that go over a panel's slice while it is in L1.
const ROW_BLOCKS: usize = 16;
/// Up to so many rows, reading the weights takes a good part of the time, or all of it.
const STREAMED_ROWS: usize = 32;
/// How far ahead a single stream of weights is asked for: 8 KiB, 64 steps of k. That is memory's
/// latency when a step takes 8 cycles, as with 8 rows, and a sixth of L1.
const WORDS_AHEAD: usize = 64 * PANEL;
/// Weights of a job that may still lie in a cache since they were last read, in bytes.
const CACHED: usize = 1 << 20;

/// A matrix, or a gate and the matrix it gates, and where the result goes.
pub(super) struct Part<'a> {
    pub(super) gate: Option<&'a Linear>,
    pub(super) w: &'a Linear,
    pub(super) epilogue: Epilogue<'a>,
}

impl<'a> Part<'a> {
    fn matrices(&self) -> impl Iterator<Item = &'a Linear> + use<'a> {
        self.gate.into_iter().chain([self.w])
    }
}

/// Panels of one of the matrices of a part, for which one piece of scratch memory is enough.
#[derive(Clone)]
struct Run<'a> {
    part: &'a Part<'a>,
    w: &'a Linear,
    is_gate: bool,
    panels: Range<usize>,
}

/// Everything of `parts`.
pub(super) fn multiply(cpu: &Cpu, x: &Operand, parts: &[Part<'_>]) {
    let (rows, k) = (x.rows(), x.columns());
    for w in parts.iter().flat_map(Part::matrices) {
        assert_eq!(w.in_features(), k, "linear input");
    }
    let Some(first) = parts.first().filter(|_| rows > 0) else { return };
    let bytes: usize = parts.iter().flat_map(Part::matrices).map(Linear::bytes).sum();
    let mut blocking = Blocking { rows, bytes, row_block: 0, at_once: 0 };
    run(cpu, first.w, &mut blocking);

    let panels = parts.iter().map(|part| part.w.weights.panels()).sum();
    let columns: usize = parts.iter().flat_map(Part::matrices).map(Linear::out_features).sum();
    let pieces = Pieces::new(panels, cpu.threads(), rows <= STREAMED_ROWS);
    cpu.tasks(pieces.count(), rows * k * columns, |thread, piece| {
        let panels = pieces.piece(piece);
        let mut scratch = lock(&cpu.scratch.sums[thread]);
        for rows in even_parts(0..rows, blocking.row_block) {
            multiply_piece(cpu, x, parts, rows, panels.clone(), blocking.at_once, &mut scratch);
        }
    });
}

fn run(cpu: &Cpu, w: &Linear, kernel: impl ProductKernel) {
    let (storage, precision) = (w.weights.storage, cpu.precision);
    cpu.isa.run_product(ForProduct { storage, precision, kernel });
}

/// How many rows and panels to block.
struct Blocking {
    /// Rows of the job, and bytes of its weights.
    rows: usize,
    bytes: usize,
    row_block: usize,
    /// Panels of a tile.
    at_once: usize,
}

impl ProductKernel for &mut Blocking {
    #[inline(always)]
    fn run<S: Simd, P: Product>(self, _: S, _: bool) {
        let few = self.rows <= P::tile_rows::<S>();
        self.row_block = ROW_BLOCKS * P::tile_rows::<S>();
        let cached = few && self.bytes <= CACHED;
        self.at_once = if cached { P::cached_panels::<S>(self.rows) } else { P::TILE_PANELS };
    }
}

/// How the panels of a job are cut into pieces.
///
/// Few rows: a long piece for each thread, one stream each, and the last eighth in short ones for
/// whichever thread is free, so that one that came late or is held up does not decide when the job
/// ends. Many rows: about groups, as many for each thread.
struct Pieces {
    panels: usize,
    threads: usize,
    /// Panels of a long piece, of which each thread has one.
    long: usize,
    /// Short pieces, as even as can be.
    short: usize,
}

impl Pieces {
    fn new(panels: usize, threads: usize, streamed: bool) -> Pieces {
        let long = if streamed { panels * 7 / 8 / threads } else { 0 };
        let rest = panels - long * threads;
        let each = if streamed { 8 } else { rest.div_ceil(threads * GROUP) };
        Pieces { panels, threads, long, short: rest.min(each * threads) }
    }

    fn count(&self) -> usize {
        self.threads + self.short
    }

    fn piece(&self, i: usize) -> Range<usize> {
        match i.checked_sub(self.threads) {
            None => i * self.long..(i + 1) * self.long,
            Some(i) => {
                let first = self.threads * self.long;
                let rest = self.panels - first;
                first + rest * i / self.short..first + rest * (i + 1) / self.short
            }
        }
    }
}

/// Rows `rows` of panels `panels`, counted over all parts.
fn multiply_piece(
    cpu: &Cpu,
    x: &Operand,
    parts: &[Part<'_>],
    rows: Range<usize>,
    panels: Range<usize>,
    at_once: usize,
    scratch: &mut Aligned<f32>,
) {
    let size = rows.len() * SCRATCH_STRIDE;
    scratch.reserve(2 * size);
    let (sums, gate) = scratch.split_at_mut(size);
    let mut first = 0;
    let in_parts = parts.iter().map(|part| {
        let own = first..first + part.w.weights.panels();
        first = own.end;
        let start = panels.start.clamp(own.start, own.end) - own.start;
        (part, start..panels.end.clamp(own.start, own.end) - own.start)
    });
    let mut runs = in_parts
        .flat_map(|(part, panels)| {
            let end = panels.end;
            panels.step_by(GROUP).flat_map(move |first| {
                let panels = first..end.min(first + GROUP);
                let of = move |w, is_gate| Run { part, w, is_gate, panels: panels.clone() };
                part.gate.map(|gate| of.clone()(gate, true)).into_iter().chain([of(part.w, false)])
            })
        })
        .peekable();
    while let Some(Run { part, w, is_gate, panels }) = runs.next() {
        let next = runs.peek().map(|next| next.w.weights.panel(next.panels.start));
        let (rows, to) = (rows.clone(), if is_gate { &mut *gate } else { &mut *sums });
        let (rows_again, panels_again) = (rows.clone(), panels.clone());
        let accumulate =
            Accumulate { w, x, rows: rows_again, panels: panels_again, at_once, sums: to, next };
        run(cpu, w, accumulate);
        if !is_gate {
            let (epilogue, columns) = (part.epilogue, w.out_features());
            run(cpu, w, Finish { epilogue, rows, panels, columns, sums, gate });
        }
    }
}

/// What the calls of a register tile prefetch for those that come after them, each its share.
struct Ahead {
    first: *const u32,
    /// Words of a call.
    share: usize,
    per_step: usize,
}

impl Ahead {
    /// `words` from `first` on, shared by `calls` calls of `steps` steps.
    fn new(first: *const u32, words: usize, calls: usize, steps: usize) -> Ahead {
        let share = words.div_ceil(calls);
        Ahead { first, share, per_step: share.div_ceil(steps.max(1)) }
    }

    /// Where call `i` begins, and how far it moves on each step.
    fn share(&self, i: usize) -> (*const u32, usize) {
        (self.first.wrapping_add(i * self.share), self.per_step)
    }
}

/// Sums over all k of a group of panels, for some rows.
struct Accumulate<'a> {
    w: &'a Linear,
    x: &'a Operand,
    rows: Range<usize>,
    panels: Range<usize>,
    /// Panels of a tile.
    at_once: usize,
    /// `[rows, SCRATCH_STRIDE]`
    sums: &'a mut [f32],
    /// What will be multiplied after this.
    next: Option<*const u32>,
}

impl ProductKernel for Accumulate<'_> {
    #[inline(always)]
    fn run<S: Simd, P: Product>(self, s: S, _: bool) {
        let Accumulate { w, x, rows, panels, at_once, sums, next } = self;
        let weights = &w.weights;
        let (k, stride) = (weights.k, weights.stride());
        let slice = |panel: usize, step: usize| {
            weights.words.as_ptr().wrapping_add(panel * stride + step * PANEL)
        };
        let k_slice = P::k_slice::<S>(rows.len());
        let tiles_of_rows = rows.len().div_ceil(P::tile_rows::<S>());
        // One tile of rows takes panel after panel, as they lie in memory; several share a slice of
        // k.
        let together = if tiles_of_rows == 1 { at_once } else { panels.len().max(1) };
        let one_stream = tiles_of_rows == 1 && at_once == 1;
        let slices = panels.clone().step_by(together).flat_map(|first| {
            let together = first..panels.end.min(first + together);
            (0..k.max(1)).step_by(k_slice).map(move |k_start| (together.clone(), k_start))
        });
        for (together, k_start) in slices {
            let k_end = k.min(k_start + k_slice);
            let (block, first_word) =
                (k_start / k_block::<P>(), k_start % k_block::<P>() / P::K * P::A_WORDS);
            let first_step = k_start / P::K;
            let steps = (k_end - k_start).div_ceil(P::K);
            // What is read of x after this slice: these rows' next block of k, or their first one
            // again, or that of the rows that come next.
            let (next_block, next_row) = if k_end < k {
                (k_end / k_block::<P>(), rows.start)
            } else {
                (0, if next.is_some() { rows.start } else { rows.end % x.rows() })
            };
            let next_a = x.words().wrapping_add((next_block * x.rows() + next_row) * ROW_STRIDE);
            let calls = together.len().div_ceil(at_once) * tiles_of_rows;
            let ahead_in_a = Ahead::new(next_a, rows.len() * ROW_STRIDE, calls, steps);
            for (call, panel) in together.clone().step_by(at_once).enumerate() {
                let count = at_once.min(together.end - panel);
                // The next slice of weights: of panels at hand, their next slice of k, the next
                // panels, what comes after.
                let next = if panel + count < together.end {
                    slice(panel + count, first_step)
                } else if k_end < k {
                    slice(together.start, k_end / P::K)
                } else if together.end < panels.end {
                    slice(together.end, 0)
                } else {
                    next.unwrap_or_else(|| slice(panel, first_step))
                };
                let bias = match &w.bias {
                    Some(bias) if k_end == k => bias[panel * PANEL..].as_ptr(),
                    _ => std::ptr::null(),
                };
                let ahead = Ahead::new(next, steps * PANEL, tiles_of_rows, steps);
                let column = (panel - panels.start) * PANEL;
                for (i, tile_rows) in P::row_tiles::<S>(rows.clone()).enumerate() {
                    let c = &mut sums[(tile_rows.start - rows.start) * SCRATCH_STRIDE + column..];
                    // SAFETY: rows and k are within what was packed, panels within the weights; a
                    // group is at most `SCRATCH_STRIDE` columns wide.
                    unsafe {
                        let a = x.words().add((block * x.rows() + tile_rows.start) * ROW_STRIDE);
                        let tile = Tile {
                            a: a.add(first_word),
                            w: slice(panel, first_step),
                            panel_stride: stride,
                            steps,
                            c: c.as_mut_ptr(),
                            c_stride: SCRATCH_STRIDE,
                            resume: k_start > 0,
                            bias,
                            prefetch: if one_stream {
                                (slice(panel, first_step).wrapping_add(WORDS_AHEAD), PANEL)
                            } else {
                                ahead.share(i)
                            },
                            prefetch_a: ahead_in_a.share(call * tiles_of_rows + i),
                        };
                        P::tiles(s, tile_rows.len(), count * PANEL / S::LANES, tile);
                    }
                }
            }
        }
    }
}
