//! The driver of all matrix products, from 1 row to thousands.
//!
//! x is packed once ([`Operand`]), and matrices that read the same x share one job. Threads take
//! ranges of panels. The loops, outermost first, with BLIS's names of the block sizes:
//! - **Rows**, a few hundred at a time (MC): their k block (`rows · 1 KiB`) stays in L2.
//! - **Groups of panels** (NC): their sums (`rows · 1 KiB`) stay in L2 while k advances, and until
//!   the epilogue has moved them to their destination.
//! - **k blocks** (KC) of [`ROW_WORDS`](crate::gemm::ROW_WORDS) words: one panel's slice is at most
//!   32 KiB and stays in L1.
//! - **Register tiles** (MR × NR) of all rows pass over the slice. They prefetch the next slice of
//!   weights into L1 and the next block of x into L2.
//!
//! **Performance limits.** A product of `r` rows reads `2 · k · n` bytes of bfloat16 weights and
//! performs `2 · r · k · n` operations: `r` operations per byte. Up to `rate / bandwidth` rows (13
//! on a core that reads 39 GB/s and computes 0.51 TFLOP/s), the product is memory-bound. With one
//! tile of rows the loops reduce to one sequential stream through the weights, prefetched a fixed
//! distance ahead. With more rows it is compute-bound: weights come from memory once per few
//! hundred rows and from L1 for all other tiles.

use std::ops::Range;

use super::epilogue::{ApplyEpilogue, Epilogue, GROUP_PANELS, SCRATCH_STRIDE};
use super::matrix::Linear;
use super::operand::Operand;
use crate::cpu::{Cpu, lock};
use crate::gemm::{
    ForProduct, PANEL, Product, ProductKernel, ROW_STRIDE, Tile, even_parts, k_block,
};
use crate::memory::Aligned;
use crate::simd::Simd;

/// Register tiles of rows that pass over a panel's slice while it is in L1.
const ROW_BLOCKS: usize = 16;
/// Up to this many rows, reading the weights takes much or all of the time.
const STREAMED_ROWS: usize = 32;
/// Prefetch distance of a single stream of weights: 8 KiB, or 64 steps of k. It covers the memory
/// latency when a step takes 8 cycles, as with 8 rows, and is a sixth of L1.
const WORDS_AHEAD: usize = 64 * PANEL;
/// Size in bytes up to which a job's weights may still be cached since they were last read.
const CACHED: usize = 1 << 20;

/// One matrix product, or a gate and up pair of products, and its epilogue.
pub(super) struct Gemm<'a> {
    pub(super) gate: Option<&'a Linear>,
    pub(super) w: &'a Linear,
    pub(super) epilogue: Epilogue<'a>,
}

impl<'a> Gemm<'a> {
    fn matrices(&self) -> impl Iterator<Item = &'a Linear> + use<'a> {
        self.gate.into_iter().chain([self.w])
    }
}

/// A group of panels of one of the matrices of a [`Gemm`], at most [`GROUP_PANELS`].
#[derive(Clone)]
struct PanelGroup<'a> {
    gemm: &'a Gemm<'a>,
    w: &'a Linear,
    is_gate: bool,
    panels: Range<usize>,
}

/// Computes all `gemms` of the operand `x`.
pub(super) fn multiply(cpu: &Cpu, x: &Operand, gemms: &[Gemm<'_>]) {
    let (rows, k) = (x.rows(), x.columns());
    for w in gemms.iter().flat_map(Gemm::matrices) {
        assert_eq!(w.in_features(), k, "linear input");
    }
    let Some(first) = gemms.first().filter(|_| rows > 0) else { return };
    let bytes: usize = gemms.iter().flat_map(Gemm::matrices).map(Linear::bytes).sum();
    let mut blocking = Blocking { rows, bytes, row_block: 0, panels_per_call: 0 };
    run(cpu, first.w, &mut blocking);

    let panels = gemms.iter().map(|gemm| gemm.w.weights.panels()).sum();
    let columns: usize = gemms.iter().flat_map(Gemm::matrices).map(Linear::out_features).sum();
    let pieces = Pieces::new(panels, cpu.threads(), rows <= STREAMED_ROWS);
    cpu.tasks(pieces.count(), rows * k * columns, |thread, piece| {
        let panels = pieces.piece(piece);
        let mut scratch = lock(&cpu.scratch.sums[thread]);
        for rows in even_parts(0..rows, blocking.row_block) {
            multiply_piece(
                cpu,
                x,
                gemms,
                rows,
                panels.clone(),
                blocking.panels_per_call,
                &mut scratch,
            );
        }
    });
}

fn run(cpu: &Cpu, w: &Linear, kernel: impl ProductKernel) {
    let (storage, precision) = (w.weights.storage, cpu.precision);
    cpu.isa.run_product(ForProduct { storage, precision, kernel });
}

/// The block sizes of a job. Running it as a kernel computes the outputs for the product in use.
struct Blocking {
    /// Input: rows of the job.
    rows: usize,
    /// Input: bytes of the job's weights.
    bytes: usize,
    /// Output: the most rows processed together (MC).
    row_block: usize,
    /// Output: panels per micro-kernel call.
    panels_per_call: usize,
}

impl ProductKernel for &mut Blocking {
    #[inline(always)]
    fn run<S: Simd, P: Product>(self, _: S, _: bool) {
        let few = self.rows <= P::tile_rows::<S>();
        self.row_block = ROW_BLOCKS * P::tile_rows::<S>();
        let cached = few && self.bytes <= CACHED;
        self.panels_per_call =
            if cached { P::cached_panels::<S>(self.rows) } else { P::TILE_PANELS };
    }
}

/// The division of a job's panels into tasks.
///
/// Few rows: one long piece per thread, each one stream through memory. The last eighth of the
/// panels is divided into short pieces for whichever thread is free, so that a late or delayed
/// thread does not delay the whole job. Many rows: pieces of about one group, the same number per
/// thread.
struct Pieces {
    panels: usize,
    threads: usize,
    /// Panels of a long piece; each thread has one.
    long: usize,
    /// Number of short pieces, divided evenly.
    short: usize,
}

impl Pieces {
    fn new(panels: usize, threads: usize, streamed: bool) -> Pieces {
        let long = if streamed { panels * 7 / 8 / threads } else { 0 };
        let rest = panels - long * threads;
        let each = if streamed { 8 } else { rest.div_ceil(threads * GROUP_PANELS) };
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

/// Computes rows `rows` of panels `panels`, numbered across all gemms.
fn multiply_piece(
    cpu: &Cpu,
    x: &Operand,
    gemms: &[Gemm<'_>],
    rows: Range<usize>,
    panels: Range<usize>,
    panels_per_call: usize,
    scratch: &mut Aligned<f32>,
) {
    let size = rows.len() * SCRATCH_STRIDE;
    scratch.reserve(2 * size);
    let (sums, gate) = scratch.split_at_mut(size);
    let mut first = 0;
    let gemm_panels = gemms.iter().map(|gemm| {
        let own = first..first + gemm.w.weights.panels();
        first = own.end;
        let start = panels.start.clamp(own.start, own.end) - own.start;
        (gemm, start..panels.end.clamp(own.start, own.end) - own.start)
    });
    let mut groups = gemm_panels
        .flat_map(|(gemm, panels)| {
            let end = panels.end;
            panels.step_by(GROUP_PANELS).flat_map(move |first| {
                let panels = first..end.min(first + GROUP_PANELS);
                let of = move |w, is_gate| PanelGroup { gemm, w, is_gate, panels: panels.clone() };
                gemm.gate.map(|gate| of.clone()(gate, true)).into_iter().chain([of(gemm.w, false)])
            })
        })
        .peekable();
    while let Some(PanelGroup { gemm, w, is_gate, panels }) = groups.next() {
        let next = groups.peek().map(|next| next.w.weights.panel(next.panels.start));
        let accumulate = Accumulate {
            w,
            x,
            rows: rows.clone(),
            panels: panels.clone(),
            panels_per_call,
            sums: if is_gate { &mut *gate } else { &mut *sums },
            next,
        };
        run(cpu, w, accumulate);
        if !is_gate {
            let (epilogue, columns, rows) = (gemm.epilogue, w.out_features(), rows.clone());
            run(cpu, w, ApplyEpilogue { epilogue, rows, panels, columns, sums, gate });
        }
    }
}

/// A range of memory that several micro-kernel calls prefetch, each its share.
struct Prefetch {
    first: *const u32,
    /// Words per call.
    share: usize,
    per_step: usize,
}

impl Prefetch {
    /// `words` words from `first` on, shared by `calls` calls of `steps` steps each.
    fn new(first: *const u32, words: usize, calls: usize, steps: usize) -> Prefetch {
        let share = words.div_ceil(calls);
        Prefetch { first, share, per_step: share.div_ceil(steps.max(1)) }
    }

    /// The start of call `i`'s share, and its advance per step in words.
    fn share(&self, i: usize) -> (*const u32, usize) {
        (self.first.wrapping_add(i * self.share), self.per_step)
    }
}

/// Accumulates a group of panels over all k, for some rows.
struct Accumulate<'a> {
    w: &'a Linear,
    x: &'a Operand,
    rows: Range<usize>,
    panels: Range<usize>,
    /// Panels per micro-kernel call.
    panels_per_call: usize,
    /// `[rows, SCRATCH_STRIDE]`
    sums: &'a mut [f32],
    /// The weights that are read after this group.
    next: Option<*const u32>,
}

impl ProductKernel for Accumulate<'_> {
    #[inline(always)]
    fn run<S: Simd, P: Product>(self, s: S, _: bool) {
        let Accumulate { w, x, rows, panels, panels_per_call, sums, next } = self;
        let weights = &w.weights;
        let (k, stride) = (weights.k, weights.stride());
        let slice = |panel: usize, step: usize| {
            weights.words.as_ptr().wrapping_add(panel * stride + step * PANEL)
        };
        let k_slice = P::k_slice::<S>(rows.len());
        let tiles_of_rows = rows.len().div_ceil(P::tile_rows::<S>());
        // A single tile of rows traverses panel after panel in memory order. Several tiles share a
        // slice of k.
        let together = if tiles_of_rows == 1 { panels_per_call } else { panels.len().max(1) };
        let one_stream = tiles_of_rows == 1 && panels_per_call == 1;
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
            // The part of x read after this slice: the next block of k of these rows, or their
            // first block for the next group, or the first block of the next rows.
            let (next_block, next_row) = if k_end < k {
                (k_end / k_block::<P>(), rows.start)
            } else {
                (0, if next.is_some() { rows.start } else { rows.end % x.rows() })
            };
            let next_a = x.words().wrapping_add((next_block * x.rows() + next_row) * ROW_STRIDE);
            let calls = together.len().div_ceil(panels_per_call) * tiles_of_rows;
            let prefetch_x = Prefetch::new(next_a, rows.len() * ROW_STRIDE, calls, steps);
            for (call, panel) in together.clone().step_by(panels_per_call).enumerate() {
                let count = panels_per_call.min(together.end - panel);
                // The weights read after this call: the next panel's slice, the next slice of k,
                // the next panels, or the next group.
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
                let prefetch_w = Prefetch::new(next, steps * PANEL, tiles_of_rows, steps);
                let column = (panel - panels.start) * PANEL;
                for (i, tile_rows) in P::row_tiles::<S>(rows.clone()).enumerate() {
                    let c = &mut sums[(tile_rows.start - rows.start) * SCRATCH_STRIDE + column..];
                    // SAFETY: `rows` and k are within the packed operand and `panels` within the
                    // packed weights. `c`, borrowed mutably, reaches all rows, SCRATCH_STRIDE
                    // floats apart, and each of these rows up to the end of its group of panels.
                    // The bias is padded to whole panels.
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
                                prefetch_w.share(i)
                            },
                            prefetch_a: prefetch_x.share(call * tiles_of_rows + i),
                        };
                        P::tiles(s, tile_rows.len(), count * PANEL / S::LANES, tile);
                    }
                }
            }
        }
    }
}
