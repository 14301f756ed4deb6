//! bfloat16 products on a matrix unit: AMX's tile registers in place of the register tile.
//!
//! A tile register holds up to 16 rows of 64 bytes. `tdpbf16ps` adds A · B to C, where A is 16 rows
//! of 16 bfloat16 pairs (32 k), B the 16 × 16 pairs of the same k and 16 columns, C 16 × 16 f32.
//! The packed layouts are made of such tiles as they are: A is rows [`ROW_STRIDE`] words apart, B
//! half of a panel's [`PAIRS`] steps, [`PANEL`] words apart. Everything but the products stays
//! vector arithmetic.
//!
//! **Bits.** Within one instruction an element adds up its even and its odd k by themselves, from
//! zero, then both together, then that to C. So the chain of an element is one of groups of 32 k
//! ([`Product::GROUP`]): groups begin at multiples of 32 whatever the blocking, C is stored and
//! reloaded exactly between slices of k, and no row or column sees another. That is row invariance
//! here.
//!
//! **Many rows** take 2 × 2 tiles, 32 rows by one panel: a group of k is 4 tile loads for 4
//! products. A product occupies the unit for 16 cycles and a load from L1 the load ports for 8, so
//! loads take half of the 64 cycles the products take; 4 independent chains hide a latency of 52
//! cycles behind 64. From L2 loads would take all of it: so 256 k of two panels (32 KiB) stay in L1
//! while rows pass over them, the second panel finding the rows' 16 KiB in L1 too, and L2 delivers
//! 2 KiB in 128 cycles. C is stored and reloaded every 8 groups, 512 cycles, for 128 cycles of
//! loads and stores beside the products.
//!
//! **Up to 16 rows** take 1 × 4 tiles, two panels: 4 loads of B, 1 KiB each, and one of A for 4
//! products, 64 cycles at most, in which a core would have to read 4 KiB from memory to keep up: at
//! 6 or 7 bytes a cycle that takes ten times as long. So 1 row takes as long as 16, which is as
//! long as reading the weights; software prefetch brings the slice after this one into L2
//! meanwhile. Where 4 tiles come from memory and serve 32 rows it is still the same: with 3.1
//! TFLOP/s and 17 GB/s a core, products of up to 180 rows wait for memory.
//!
//! A thread's configuration of tile shapes costs some 200 cycles, so it is kept until another shape
//! is needed, and tiles are released at the end of each piece of work.
//!
//! **What has been run.** On [`Model`] every test of products and attention; the instructions
//! themselves under Linux on an emulated Sapphire Rapids, where they have the model's bits
//! (`tests/README.md`). No CPU with AMX has executed them yet: the cycles above are Intel's
//! figures, not measurements, and a self-test comes before their use (`detect.rs`).

use std::marker::PhantomData;
use std::ops::Range;

use crate::gemm::{PANEL, Product, ROW_STRIDE, Tile, k_block};
use crate::simd::{Kernel, Simd};

#[cfg(target_arch = "x86_64")]
mod detect;
#[cfg(target_arch = "x86_64")]
mod instructions;
mod model;

#[cfg(target_arch = "x86_64")]
pub(crate) use detect::{cpuid, unavailable};
#[cfg(target_arch = "x86_64")]
pub(crate) use instructions::{Amx, PRODUCTS_FLOPS, Release, products};
pub(crate) use model::Model;

/// Rows of a tile register.
const TILE_ROWS: usize = 16;
/// Words of a row of a tile register: f32 columns of C, bfloat16 pairs of A.
const TILE_WORDS: usize = 16;
/// Pairs of k a product takes at most.
const PAIRS: usize = TILE_WORDS;
/// k whose slice of two panels stays in L1 while many rows pass over it.
const MANY_ROWS_K: usize = 256;

/// The shapes of a thread's tile registers. 0 to 3 are C, left to right, then top to bottom; 4 and
/// 5 are A, top and bottom; 6 and 7 are B, left and right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Rows of 4, and of 0 and 1; without a bottom of 2, 3 and 5 too.
    top: usize,
    /// Rows of 5, 2 and 3; 0 if these are not a second row of tiles.
    bottom: usize,
    /// Pairs of k: columns of A, rows of B.
    pairs: usize,
}

impl Shape {
    /// Rows and words of a row of tile register `tile`.
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

/// The instructions on tile registers, which are numbered 0 to 7 and belong to the thread.
///
/// Every function needs [`TileUnit::configure`] before it. Rows are `stride` words apart in memory.
pub(crate) trait TileUnit: Default + Send + Sync + 'static {
    /// `ldtilecfg`: sets the shapes. What the registers held is lost.
    fn configure(&mut self, shape: Shape);
    /// `tilezero`
    fn zero<const T: usize>(&mut self);
    /// `tileloadd`
    ///
    /// # Safety
    /// `from` is valid for reading the rows and words of register `T`.
    unsafe fn load<const T: usize>(&mut self, from: *const u32, stride: usize);
    /// `tdpbf16ps`: `C += A · B`
    fn multiply<const C: usize, const A: usize, const B: usize>(&mut self);
    /// `tilestored`
    ///
    /// # Safety
    /// `to` is valid for writing the rows and words of register `T`.
    unsafe fn store<const T: usize>(&mut self, to: *mut f32, stride: usize);
}

/// bfloat16 pairs by bfloat16 pairs, in the tile registers of `U`.
pub(crate) struct TilePairs<U>(PhantomData<U>);

impl<U: TileUnit> Product for TilePairs<U> {
    const A_WORDS: usize = 1;
    const K: usize = 2;
    const A_PAIRS: bool = true;
    const GROUP: usize = PAIRS * Self::K;
    const TILE_PANELS: usize = 2; // four chains of up to 16 rows

    fn tile_rows<S: Simd>() -> usize {
        2 * TILE_ROWS
    }

    /// Whole tiles first: shapes change at the last one only.
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

    #[inline(never)] // one copy, not one per place that multiplies
    unsafe fn tiles<S: Simd>(s: S, rows: usize, vectors: usize, tile: Tile) {
        let panels = vectors * S::LANES / PANEL;
        debug_assert!((1..=2 * TILE_ROWS).contains(&rows) && panels * PANEL == vectors * S::LANES);
        let mut unit = U::default();
        let (groups, rest) = (tile.steps / PAIRS, tile.steps % PAIRS);
        let top = rows.min(TILE_ROWS);
        let mut run = |pairs, groups, tile: &Tile| {
            unit.configure(Shape { top, bottom: rows - top, pairs });
            // SAFETY: the caller's promise, for `groups · pairs` of the steps.
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

/// `groups` groups of k, for every panel.
///
/// # Safety
/// As [`crate::gemm::microkernel::tile`], for `rows` rows, `panels` panels and the steps of
/// `groups` groups.
unsafe fn all_panels<S: Simd, U: TileUnit>(
    s: S,
    unit: &mut U,
    rows: usize,
    panels: usize,
    groups: usize,
    tile: &Tile,
) {
    let at = |panel: usize| tile.beside::<S>(panel * PANEL / S::LANES);
    let mut panel = 0;
    while panel < panels {
        // SAFETY: the caller's promise, for panels from `panel` on.
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
/// As [`all_panels`], for one panel and more than 16 rows.
#[inline(always)]
unsafe fn two_by_two<S: Simd, U: TileUnit>(s: S, unit: &mut U, groups: usize, t: &Tile) {
    // SAFETY: addresses are within what the caller promised.
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

/// Up to 16 rows of `N / 2` panels.
///
/// # Safety
/// As [`all_panels`], for `N / 2` panels, 1 or 2, and at most 16 rows.
#[inline(always)]
unsafe fn one_by<const N: usize, S: Simd, U: TileUnit>(
    s: S,
    unit: &mut U,
    groups: usize,
    t: &Tile,
) {
    // SAFETY: addresses are within what the caller promised.
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

/// What is to be prefetched during a group: 16 steps of so many words are so many cache lines. The
/// next slices of two panels are more than L1 holds beside those at work.
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
                // SAFETY: `TilePairs::tiles`, the only place that makes one, has C and the bias
                // from its caller; `columns` are whole panels, and so whole vectors.
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
