//! `out = x · Wᵀ + bias`: one driver for 1 row and for 4096.
//!
//! x is packed once ([`pack_row`]), then threads take pieces of the panels. Blocking, outermost
//! first:
//! - **rows**, a few hundred at a time: one k block of them (`rows · 1 KiB`) stays in L2;
//! - **groups of panels**: their part of `out` stays in L2 while k runs;
//! - **k blocks** of [`ROW_WORDS`](crate::microkernel::ROW_WORDS) words: one panel's slice is at most
//!   32 KiB and stays in L1
//! - while the **register tiles** of all row blocks go over it.
//!
//! So weights come from memory once per few hundred rows. For few rows the group is just the panels one
//! tile takes, and the loops degenerate to streaming the weights once, front to back.

use std::ops::Range;

use crate::WeightView;
use crate::aligned::Aligned;
use crate::cpu::Cpu;
use crate::microkernel::{PANEL, ROW_STRIDE, ROW_WORDS, Tile, even_parts, tiles};
use crate::pack::{self, Panels, Storage, k_block, pack_row};
use crate::pool::lock;
use crate::product::{ForProduct, Product, ProductKernel};
use crate::rows::{Rows, SharedMut};
use crate::simd::Simd;

/// A packed weight matrix `[out, in]` with an optional bias `[out]`.
pub struct Linear {
    weights: Panels,
    /// Padded with zeros to whole panels.
    bias: Option<Aligned<f32>>,
}

impl Linear {
    /// Output features.
    pub fn out_features(&self) -> usize {
        self.weights.columns
    }

    /// Input features.
    pub fn in_features(&self) -> usize {
        self.weights.k
    }

    /// Bytes held, all of which a product reads.
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.weights.words)
            + self.bias.as_ref().map_or(0, |bias| size_of_val(&**bias))
    }
}

/// Row blocks that go over a panel's slice while it is in L1.
const ROW_BLOCKS: usize = 16;
/// Panels whose part of `out` stays in L2 while k runs.
const GROUP: usize = 8;
/// The most rows of any instruction set's register tile.
const MAX_TILE_ROWS: usize = 14;

pub(crate) fn pack(cpu: &Cpu, weight: &WeightView<'_>, bias: Option<&[f32]>) -> Linear {
    let bytes = weight.rows * weight.columns * weight.dtype.size();
    assert_eq!(weight.bytes.len(), bytes, "weight bytes for {}x{}", weight.rows, weight.columns);
    let storage = Storage::of_weights(weight.dtype, cpu.precision);
    let mut weights = Panels::zeroed(weight.rows, weight.columns, storage);
    let stride = weights.stride();
    let panels = weights.panels();
    let words = SharedMut::new(&mut weights.words);
    cpu.split(panels, |panels| {
        // SAFETY: threads have disjoint ranges of panels, `stride` words each.
        let part = unsafe { words.slice(panels.start * stride..panels.end * stride) };
        pack::pack_weights(weight, storage, panels, part);
    });
    let bias = bias.map(|bias| {
        assert_eq!(bias.len(), weight.rows, "bias length");
        Aligned::copied_from(bias, panels * PANEL)
    });
    Linear { weights, bias }
}

pub(crate) fn embed(cpu: &Cpu, table: &Linear, ids: &[u32], out: &mut Rows) {
    let hidden = table.in_features();
    assert_eq!((out.rows(), out.columns()), (ids.len(), hidden), "embed output");
    let shared = out.shared();
    cpu.split_rows(ids.len(), ids.len() * hidden, |rows| {
        for row in rows {
            // SAFETY: threads have disjoint rows.
            let out = unsafe { shared.slice(row * hidden..(row + 1) * hidden) };
            table.weights.read_column(ids[row] as usize, out);
        }
    });
}

pub(crate) fn linear(cpu: &Cpu, w: &Linear, x: &Rows, out: &mut Rows) {
    let (rows, k, columns) = (x.rows(), w.in_features(), w.out_features());
    assert_eq!(x.columns(), k, "linear input");
    assert_eq!((out.rows(), out.columns()), (rows, columns), "linear output");
    if rows == 0 {
        return;
    }
    let run = |kernel: Job<'_>| {
        let (storage, precision) = (w.weights.storage, cpu.precision);
        cpu.isa.run(ForProduct { storage, precision, kernel });
    };

    let mut packed = lock(&cpu.packed);
    packed.reserve(k.div_ceil(ROW_WORDS) * rows * ROW_STRIDE);
    let packed = SharedMut::new(&mut packed);
    cpu.split_rows(rows, rows * k, |range| {
        run(Job::Pack { x, rows: range, packed });
    });

    let out = out.shared();
    let multiply = |panels: Range<usize>| {
        run(Job::Multiply { w, rows, panels, packed: packed.pointer(), out });
    };
    // Few rows: one piece a thread, each a single stream. Many: more, for whichever thread is free.
    let (panels, threads) = (w.weights.panels(), cpu.threads());
    let pieces = if rows <= MAX_TILE_ROWS { 1 } else { panels.div_ceil(threads * GROUP) } * threads;
    cpu.tasks(pieces, rows * k * columns, |_, piece| {
        multiply(panels * piece / pieces..panels * (piece + 1) / pieces);
    });
}

/// What a thread does for a product. Packed x is `[k blocks][rows][ROW_STRIDE]`.
enum Job<'a> {
    /// Packs some rows of x.
    Pack { x: &'a Rows, rows: Range<usize>, packed: SharedMut<u32> },
    /// Computes some panels of out, for all rows.
    Multiply {
        w: &'a Linear,
        rows: usize,
        panels: Range<usize>,
        packed: *const u32,
        out: SharedMut,
    },
}

impl ProductKernel for Job<'_> {
    #[inline(always)]
    fn run<S: Simd, P: Product>(self, s: S, round: bool) {
        match self {
            Job::Pack { x, rows, packed } => {
                for row in rows {
                    for (block, values) in x.row(row).chunks(k_block::<P>()).enumerate() {
                        let at = (block * x.rows() + row) * ROW_STRIDE;
                        // SAFETY: threads have disjoint rows; `linear` reserved all blocks.
                        let out = unsafe { &mut *packed.pointer().add(at).cast() };
                        pack_row::<S, P>(s, round, values, out);
                    }
                }
            }
            Job::Multiply { panels, .. } if panels.is_empty() => {}
            Job::Multiply { w, rows, panels, packed, out } => {
                for rows_now in even_parts(0..rows, ROW_BLOCKS * S::TILE_ROWS) {
                    // SAFETY: x is packed, and threads have disjoint panels: columns of out.
                    unsafe { multiply::<S, P>(s, w, rows, rows_now, panels.clone(), packed, out) };
                }
            }
        }
    }
}

/// Rows `rows` of columns `panels` of out.
///
/// # Safety
/// `packed` holds all `all_rows` rows of x; nobody else touches those columns of `out`.
#[inline(always)]
unsafe fn multiply<S: Simd, P: Product>(
    s: S,
    w: &Linear,
    all_rows: usize,
    rows: Range<usize>,
    panels: Range<usize>,
    packed: *const u32,
    out: SharedMut,
) {
    let weights = &w.weights;
    let (k, columns, stride) = (weights.k, weights.columns, weights.stride());
    // Columns of a last, partial panel are computed here and copied: a tile always writes whole panels.
    let mut partial = [0.0_f32; ROW_BLOCKS * MAX_TILE_ROWS * PANEL];
    let per_tile = (S::tile_vectors(rows.len().min(S::TILE_ROWS)) * S::LANES / PANEL).max(1);
    let group = if rows.len() <= S::TILE_ROWS { per_tile } else { GROUP };
    let groups = panels.clone().step_by(group).map(|first| first..panels.end.min(first + group));
    for group in groups {
        for (block, k_start) in (0..k.max(1)).step_by(k_block::<P>()).enumerate() {
            let k_end = k.min(k_start + k_block::<P>());
            let first_step = k_start / P::K;
            let last_block = k_end == k;
            let mut panel = group.start;
            while panel < group.end {
                let whole = (columns / PANEL).min(group.end).saturating_sub(panel).min(per_tile);
                let is_partial = whole == 0;
                let count = whole.max(1);
                // Where the next slice of weights is: the group's next panels, or its next k block, or
                // the next group.
                let (next_panel, next_step) = if panel + count < group.end {
                    (panel + count, first_step)
                } else if !last_block {
                    (group.start, k_end / P::K)
                } else {
                    (group.end.min(panels.end - 1), 0)
                };
                let next = &weights.words[next_panel * stride + next_step * PANEL..];
                let steps = (k_end - k_start).div_ceil(P::K);
                let tiles_of_rows = rows.len().div_ceil(S::TILE_ROWS);
                for (i, tile_rows) in even_parts(rows.clone(), S::TILE_ROWS).enumerate() {
                    let (c, c_stride) = if is_partial {
                        (partial[(tile_rows.start - rows.start) * PANEL..].as_mut_ptr(), PANEL)
                    } else {
                        let at = tile_rows.start * columns + panel * PANEL;
                        // SAFETY: within `out`.
                        (unsafe { out.pointer().add(at) }, columns)
                    };
                    let bias = match &w.bias {
                        Some(bias) if last_block => bias[panel * PANEL..].as_ptr(),
                        _ => std::ptr::null(),
                    };
                    // SAFETY: rows and k are within what was packed, panels within the weights; C is
                    // whole panels of `out`, or `partial`.
                    unsafe {
                        let a = packed.add((block * all_rows + tile_rows.start) * ROW_STRIDE);
                        let first = weights.words.as_ptr().add(panel * stride + first_step * PANEL);
                        let tile = Tile {
                            a,
                            w: first,
                            panel_stride: stride,
                            steps,
                            c,
                            c_stride,
                            resume: block > 0,
                            bias,
                            // The tiles over this slice share the prefetching of the next one.
                            prefetch: (
                                next.as_ptr().wrapping_add(i * steps * PANEL / tiles_of_rows),
                                PANEL / tiles_of_rows,
                            ),
                        };
                        tiles::<S, P>(s, tile_rows.len(), count * PANEL / S::LANES, tile);
                    }
                }
                panel += count;
            }
        }
    }
    if panels.end * PANEL > columns {
        let first = columns / PANEL * PANEL;
        for (row, partial) in rows.zip(partial.chunks_exact(PANEL)) {
            // SAFETY: the last columns belong to this thread's last panel.
            let out = unsafe { out.slice(row * columns + first..(row + 1) * columns) };
            out.copy_from_slice(&partial[..columns - first]);
        }
    }
}
