//! bfloat16 micro-kernels on AMX's tile registers, in place of the vector micro-kernel.
//!
//! A tile register holds up to 16 rows of 64 bytes. `tdpbf16ps` computes C += A · B, where A is 16
//! rows of 16 bfloat16 pairs (32 k), B is 16 pairs of k × 16 columns, and C is 16 × 16 f32. The
//! packed layouts consist of such tiles: A has rows [`ROW_STRIDE`] words apart; B is half the width
//! of a panel over [`PAIRS`] steps, with rows [`PANEL`] words apart. Everything except the products
//! stays vector arithmetic.
//!
//! **Bits.** Within one instruction, an element sums its even k and its odd k separately, starting
//! from zero, then adds the two sums, then adds the result to C. The accumulation over k is
//! therefore a chain of groups of 32 k ([`Product::K_GROUP`]). Groups begin at multiples of 32 for
//! any blocking, storing and reloading C between slices of k is exact, and rows and columns are
//! independent. Hence row invariance.
//!
//! **Many rows** use 2 × 2 tiles: 32 rows by one panel, with 4 tile loads for 4 products per group
//! of k. A product occupies the unit for 16 cycles and a load from L1 occupies the load ports for
//! 8, so loads take half of the products' 64 cycles; 4 independent accumulators hide the latency of
//! 52 cycles. From L2, loads would take all 64 cycles. So a slice of 256 k of two panels (32 KiB)
//! stays in L1 while the rows pass over it; the second panel finds the 16 KiB of rows in L1 too,
//! and L2 delivers 2 KiB in 128 cycles. C is stored and reloaded every 8 groups (512 cycles), at
//! 128 cycles of loads and stores that overlap the products.
//!
//! **Up to 16 rows** use 1 × 4 tiles, two panels: 4 loads of B (1 KiB each) and one of A for 4
//! products in 64 cycles. To keep up, a core would have to read 4 KiB from memory in that time; at
//! 6 or 7 bytes a cycle this takes ten times as long. So 1 row takes as long as 16 rows, namely the
//! time to read the weights. Software prefetch brings the next slice into L2 meanwhile. The same
//! holds for 32 rows when the weights come from memory: at 3.1 TFLOP/s and 17 GB/s per core,
//! products of up to 180 rows are memory-bound.
//!
//! Configuring the tile shapes costs about 200 cycles, so a thread keeps its configuration until it
//! needs another one. Tiles are released at the end of each task.
//!
//! **Verification.** Every test of products and attention runs on [`TileModel`]. The instructions
//! themselves were run under Linux on an emulated Sapphire Rapids, where they return the model's
//! bits (`tests/README.md`). They have not yet run on a real AMX CPU: the cycle counts above are
//! Intel's figures, not measurements, and a self-test precedes their use (`detect.rs`).

use std::marker::PhantomData;
use std::ops::Range;

use crate::gemm::{PANEL, Product, ROW_STRIDE, Tile, k_block};
use crate::simd::{Kernel, Simd};

#[cfg(target_arch = "x86_64")]
mod detect;
#[cfg(target_arch = "x86_64")]
mod instructions;
mod tile_model;

#[cfg(target_arch = "x86_64")]
pub(crate) use detect::{cpuid, unavailable};
#[cfg(target_arch = "x86_64")]
pub(crate) use instructions::{Amx, PEAK_PRODUCTS_FLOPS, TileRelease, peak_products};
pub(crate) use tile_model::TileModel;

/// Rows of a tile register.
const TILE_ROWS: usize = 16;
/// Words per row of a tile register: f32 columns of C, bfloat16 pairs of A.
const TILE_WORDS: usize = 16;
/// Maximum number of k pairs per tile product.
const PAIRS: usize = TILE_WORDS;
/// Length of a slice of k whose two panels stay in L1 while many rows pass over it.
const MANY_ROWS_K: usize = 256;

/// The shapes of a thread's tile registers. Registers 0 to 3 are C, left to right, then top to
/// bottom; 4 and 5 are A, top and bottom; 6 and 7 are B, left and right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TileShapes {
    /// Rows of registers 4, 0 and 1; if `bottom` is 0, of 5, 2 and 3 too.
    top: usize,
    /// Rows of registers 5, 2 and 3; 0 if they are not a second row of tiles.
    bottom: usize,
    /// Pairs of k: words per row of A, rows of B.
    pairs: usize,
}

impl TileShapes {
    /// Rows of tile register `tile`, and words per row.
    fn of(self, tile: usize) -> (usize, usize) {
        let bottom = if self.bottom > 0 { self.bottom } else { self.top };
        match tile {
            0 | 1 => (self.top, TILE_WORDS),
            2 | 3 => (bottom, TILE_WORDS),
            4 => (self.top, self.pairs),
            5 => (bottom, self.pairs),
            _ => (self.pairs, TILE_WORDS),
        }
    }
}

/// The instructions on tile registers 0 to 7, which belong to the thread.
///
/// [`TileUnit::configure`] must be called before any other function. Strides are in words between
/// rows in memory.
pub(crate) trait TileUnit: Default + Send + Sync + 'static {
    /// `ldtilecfg`: sets the shapes and clears the registers.
    fn configure(&mut self, shape: TileShapes);
    /// `tilezero`
    fn zero<const T: usize>(&mut self);
    /// `tileloadd`
    ///
    /// # Safety
    /// `from` is valid for reading the rows and words of register `T`, rows `stride` words apart.
    unsafe fn load<const T: usize>(&mut self, from: *const u32, stride: usize);
    /// `tdpbf16ps`: `C += A · B`
    fn multiply<const C: usize, const A: usize, const B: usize>(&mut self);
    /// `tilestored`
    ///
    /// # Safety
    /// `to` is valid for writing the rows and words of register `T`, rows `stride` floats apart.
    unsafe fn store<const T: usize>(&mut self, to: *mut f32, stride: usize);
}

/// Products of bfloat16 pairs in the tile registers of `U`.
pub(crate) struct TilePairs<U>(PhantomData<U>);

impl<U: TileUnit> Product for TilePairs<U> {
    const A_WORDS: usize = 1;
    const K: usize = 2;
    const A_PAIRS: bool = true;
    const K_GROUP: usize = PAIRS * Self::K;
    const TILE_PANELS: usize = 2; // four accumulator tiles of up to 16 rows

    fn tile_rows<S: Simd>() -> usize {
        2 * TILE_ROWS
    }

    /// Full tiles first, so that the tile configuration changes only for the last one.
    fn row_tiles<S: Simd>(rows: Range<usize>) -> impl Iterator<Item = Range<usize>> {
        let end = rows.end;
        rows.step_by(2 * TILE_ROWS).map(move |first| first..end.min(first + 2 * TILE_ROWS))
    }

    fn cached_panels<S: Simd>(_rows: usize) -> usize {
        Self::TILE_PANELS
    }

    fn k_slice<S: Simd>(rows: usize) -> usize {
        if rows <= 2 * TILE_ROWS { k_block::<Self>() } else { MANY_ROWS_K }
    }

    #[inline(never)] // one copy instead of one per call site
    unsafe fn tiles<S: Simd>(s: S, rows: usize, vectors: usize, tile: Tile) {
        let panels = vectors * S::LANES / PANEL;
        debug_assert!((1..=2 * TILE_ROWS).contains(&rows) && panels * PANEL == vectors * S::LANES);
        let mut unit = U::default();
        let (groups, rest) = (tile.steps / PAIRS, tile.steps % PAIRS);
        let top = rows.min(TILE_ROWS);
        let mut run = |pairs, groups, tile: &Tile| {
            unit.configure(TileShapes { top, bottom: rows - top, pairs });
            // SAFETY: the caller's contract covers all `tile.steps` steps; this call uses
            // `groups · pairs` of them.
            unsafe { all_panels(s, &mut unit, rows, panels, groups, tile) }
        };
        if groups > 0 || rest == 0 {
            run(PAIRS, groups, &tile);
        }
        if rest > 0 {
            let done = groups * PAIRS;
            let (a, w) = (tile.a.wrapping_add(done), tile.w.wrapping_add(done * PANEL));
            let (next, per_step) = tile.prefetch;
            let prefetch = (next.wrapping_add(done * per_step), per_step);
            run(rest, 1, &Tile { a, w, resume: tile.resume || done > 0, prefetch, ..tile });
        }
        if !tile.bias.is_null() {
            let (columns, c, stride, bias) = (panels * PANEL, tile.c, tile.c_stride, tile.bias);
            s.vectorize(AddBias { rows, columns, c, stride, bias });
        }
    }
}

/// Accumulates `groups` groups of k for every panel.
///
/// # Safety
/// The contract of [`crate::gemm::microkernel::tile`], for `rows` rows, `panels` panels and the
/// steps of `groups` groups.
unsafe fn all_panels<S: Simd, U: TileUnit>(
    s: S,
    unit: &mut U,
    rows: usize,
    panels: usize,
    groups: usize,
    tile: &Tile,
) {
    let at = |panel: usize| tile.shifted::<S>(panel * PANEL / S::LANES);
    let mut panel = 0;
    while panel < panels {
        // SAFETY: the caller's contract covers all `panels`; each call uses panels from `panel` on,
        // at most to the last one.
        unsafe {
            if rows > TILE_ROWS {
                two_by_two(s, unit, groups, &at(panel));
                panel += 1;
            } else if panel + 2 <= panels {
                one_by::<4, S, U>(s, unit, groups, &at(panel));
                panel += 2;
            } else {
                one_by::<2, S, U>(s, unit, groups, &at(panel));
                panel += 1;
            }
        }
    }
}

/// Up to 32 rows of one panel.
///
/// # Safety
/// The contract of [`all_panels`], for one panel and 17 to 32 rows.
#[inline(always)]
unsafe fn two_by_two<S: Simd, U: TileUnit>(s: S, unit: &mut U, groups: usize, t: &Tile) {
    // SAFETY: all accesses are within the rows, steps and panel of the caller's contract.
    unsafe {
        let below = t.c.add(TILE_ROWS * t.c_stride);
        if t.resume {
            unit.load::<0>(t.c.cast(), t.c_stride);
            unit.load::<1>(t.c.add(TILE_WORDS).cast(), t.c_stride);
            unit.load::<2>(below.cast(), t.c_stride);
            unit.load::<3>(below.add(TILE_WORDS).cast(), t.c_stride);
        } else {
            unit.zero::<0>();
            unit.zero::<1>();
            unit.zero::<2>();
            unit.zero::<3>();
        }
        for group in 0..groups {
            let a = t.a.add(group * PAIRS);
            let w = t.w.add(group * PAIRS * PANEL);
            unit.load::<6>(w, PANEL);
            unit.load::<4>(a, ROW_STRIDE);
            unit.multiply::<0, 4, 6>();
            unit.load::<7>(w.add(TILE_WORDS), PANEL);
            unit.multiply::<1, 4, 7>();
            unit.load::<5>(a.add(TILE_ROWS * ROW_STRIDE), ROW_STRIDE);
            unit.multiply::<2, 5, 6>();
            unit.multiply::<3, 5, 7>();
            prefetch(s, t, group);
        }
        unit.store::<0>(t.c, t.c_stride);
        unit.store::<1>(t.c.add(TILE_WORDS), t.c_stride);
        unit.store::<2>(below, t.c_stride);
        unit.store::<3>(below.add(TILE_WORDS), t.c_stride);
    }
}

/// Up to 16 rows of `N / 2` panels (`N` accumulator tiles).
///
/// # Safety
/// The contract of [`all_panels`], for `N / 2` panels (1 or 2) and at most 16 rows.
#[inline(always)]
unsafe fn one_by<const N: usize, S: Simd, U: TileUnit>(
    s: S,
    unit: &mut U,
    groups: usize,
    t: &Tile,
) {
    // SAFETY: all accesses are within the rows, steps and panels of the caller's contract.
    unsafe {
        if t.resume {
            unit.load::<0>(t.c.cast(), t.c_stride);
            unit.load::<1>(t.c.add(TILE_WORDS).cast(), t.c_stride);
            if N == 4 {
                unit.load::<2>(t.c.add(PANEL).cast(), t.c_stride);
                unit.load::<3>(t.c.add(PANEL + TILE_WORDS).cast(), t.c_stride);
            }
        } else {
            unit.zero::<0>();
            unit.zero::<1>();
            if N == 4 {
                unit.zero::<2>();
                unit.zero::<3>();
            }
        }
        for group in 0..groups {
            let w = t.w.add(group * PAIRS * PANEL);
            unit.load::<4>(t.a.add(group * PAIRS), ROW_STRIDE);
            unit.load::<6>(w, PANEL);
            unit.multiply::<0, 4, 6>();
            unit.load::<7>(w.add(TILE_WORDS), PANEL);
            unit.multiply::<1, 4, 7>();
            prefetch(s, t, group);
            if N == 4 {
                let w = w.add(t.panel_stride);
                unit.load::<6>(w, PANEL);
                unit.multiply::<2, 4, 6>();
                unit.load::<7>(w.add(TILE_WORDS), PANEL);
                unit.multiply::<3, 4, 7>();
                let next = t.prefetch.0.wrapping_add(t.panel_stride);
                prefetch(s, &Tile { prefetch: (next, t.prefetch.1), ..*t }, group);
            }
        }
        unit.store::<0>(t.c, t.c_stride);
        unit.store::<1>(t.c.add(TILE_WORDS), t.c_stride);
        if N == 4 {
            unit.store::<2>(t.c.add(PANEL), t.c_stride);
            unit.store::<3>(t.c.add(PANEL + TILE_WORDS), t.c_stride);
        }
    }
}

/// Prefetches one group's share of the next slice into L2: 16 steps of `per_step` words are
/// `per_step` cache lines. L1 has no room for the next slices of two panels.
#[inline(always)]
fn prefetch<S: Simd>(s: S, t: &Tile, group: usize) {
    let (next, per_step) = t.prefetch;
    for line in group * per_step..(group + 1) * per_step {
        s.prefetch_l2(next.wrapping_add(line * TILE_WORDS));
    }
}

/// Adds the bias to rows of C that tiles have stored.
struct AddBias {
    rows: usize,
    columns: usize,
    c: *mut f32,
    stride: usize,
    bias: *const f32,
}

impl Kernel for AddBias {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for row in 0..self.rows {
            for column in (0..self.columns).step_by(S::LANES) {
                // SAFETY: only `TilePairs::tiles` constructs this kernel, and its caller guarantees
                // C and the bias for `rows` rows and `columns` columns. `columns` is a multiple of
                // PANEL, hence of LANES.
                unsafe {
                    let c = self.c.add(row * self.stride + column);
                    s.store(c, s.add(s.load(c), s.load(self.bias.add(column))));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
