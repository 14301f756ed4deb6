//! The register tile: the one inner loop behind every matrix product, attention included.
//!
//! `C[r][j] += Σ_k A[r][k] · W[k][j]` for a few rows `r` and a few vectors of columns `j`, all of
//! `C` in registers. Each element is **one chain over k in order** — never split into partial sums
//! — so its bits cannot depend on the tile it was computed in: on how many rows or columns were
//! computed beside it, on where the k loop was interrupted (storing and reloading an f32
//! accumulator is exact), or on which thread ran it. Row invariance is this paragraph.
//!
//! `W` lies in *panels* of [`PANEL`] columns, k-major: a step of the k loop reads `PANEL` words in
//! a row, each word one f32 weight or a pair of bfloat16 weights (k, k+1). `A` lies in rows
//! [`ROW_STRIDE`] words apart. That stride is a constant so that a tile addresses all its rows from
//! one pointer; it is 17 cache lines so that the rows of a tile fall into different cache sets.

use std::marker::PhantomData;

use super::layout::{CACHE_LINE, PANEL};
use super::product::{RegisterProduct, Tile};
use crate::simd::{Kernel, Simd};

impl Tile {
    /// Runs `count` tiles of `ROWS` rows and `VECTORS` vectors, side by side.
    ///
    /// # Safety
    /// As [`tile`], for each of them.
    #[inline(always)]
    pub(crate) unsafe fn run<
        S: Simd,
        P: RegisterProduct,
        const ROWS: usize,
        const VECTORS: usize,
    >(
        self,
        s: S,
        count: usize,
    ) {
        s.vectorize(TileKernel::<P, ROWS, VECTORS> { first: self, count, product: PhantomData });
    }

    /// Words of W to the vector of columns that is `vectors` further: within the panel, or in a
    /// later one if this one is the first of its panel.
    #[inline(always)]
    fn offset<S: Simd>(&self, vectors: usize) -> usize {
        let per_panel = PANEL / S::LANES;
        vectors / per_panel * self.panel_stride + vectors % per_panel * S::LANES
    }

    /// The tile `vectors` vectors of columns further.
    #[inline(always)]
    pub(crate) fn beside<S: Simd>(&self, vectors: usize) -> Tile {
        let offset = self.offset::<S>(vectors);
        let column = vectors * S::LANES;
        Tile {
            w: self.w.wrapping_add(offset),
            prefetch: (self.prefetch.0.wrapping_add(offset), self.prefetch.1),
            c: self.c.wrapping_add(column),
            bias: if self.bias.is_null() { self.bias } else { self.bias.wrapping_add(column) },
            ..*self
        }
    }
}

struct TileKernel<P, const ROWS: usize, const VECTORS: usize> {
    first: Tile,
    count: usize,
    product: PhantomData<P>,
}

impl<P: RegisterProduct, const ROWS: usize, const VECTORS: usize> Kernel
    for TileKernel<P, ROWS, VECTORS>
{
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for i in 0..self.count {
            // SAFETY: `Tile::run`, the only place that makes one, has the same contract.
            unsafe { tile::<S, P, ROWS, VECTORS>(s, &self.first.beside::<S>(i * VECTORS)) }
        }
    }
}

/// The register tile.
///
/// # Safety
/// `a` reaches `ROWS` rows of `steps · P::A_WORDS` words; `w` (a multiple of `VECTORS` vectors into
/// its panel, or at its start) reaches `VECTORS` vectors of `steps` steps; `c` is valid for `ROWS`
/// rows of `VECTORS` vectors and nobody else's meanwhile; `bias` is null or holds `VECTORS`
/// vectors.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // r and v index accumulators, pointers and operands alike
unsafe fn tile<S: Simd, P: RegisterProduct, const ROWS: usize, const VECTORS: usize>(
    s: S,
    t: &Tile,
) {
    // SAFETY: every address is within what the caller promised.
    unsafe {
        let mut acc = [[s.splat(0.0); VECTORS]; ROWS];
        if t.resume {
            for r in 0..ROWS {
                for v in 0..VECTORS {
                    acc[r][v] = s.load(t.c.add(r * t.c_stride + v * S::LANES));
                }
            }
        }
        let mut w = [t.w; VECTORS];
        for v in 0..VECTORS {
            w[v] = t.w.add(t.offset::<S>(v));
        }
        let (mut a, mut next, mut next_a) = (t.a, t.prefetch.0, t.prefetch_a.0);
        for _ in 0..t.steps {
            P::step(s, &mut acc, a, &w);
            for v in (0..VECTORS).step_by((CACHE_LINE / S::LANES).max(1)) {
                s.prefetch(next.wrapping_add(t.offset::<S>(v)));
            }
            next = next.wrapping_add(t.prefetch.1);
            // Of many rows, which their L2 does not keep, tiles are full or nearly so; a tile of
            // few has no time for it. Decided here, not at run time: a branch in this loop costs
            // accumulators.
            if ROWS * 4 > S::TILE_ROWS * 3 {
                s.prefetch_l2(next_a);
                next_a = next_a.wrapping_add(t.prefetch_a.1);
            }
            a = a.add(P::A_WORDS);
            for v in 0..VECTORS {
                w[v] = w[v].add(PANEL);
            }
        }
        for r in 0..ROWS {
            for v in 0..VECTORS {
                if !t.bias.is_null() {
                    acc[r][v] = s.add(acc[r][v], s.load(t.bias.add(v * S::LANES)));
                }
                s.store(t.c.add(r * t.c_stride + v * S::LANES), acc[r][v]);
            }
        }
    }
}

/// Runs `rows ≤ S::TILE_ROWS` rows over `vectors` vectors of columns (an even number), `tile`
/// naming the first: wide tiles while they fit, then narrow ones.
///
/// # Safety
/// As [`tile`], for all `vectors`.
#[inline(never)] // one table of tiles per product, not one per place that multiplies
pub(super) unsafe fn register_tiles<S: Simd, P: RegisterProduct>(
    s: S,
    rows: usize,
    vectors: usize,
    tile: Tile,
) {
    let wide = S::tile_vectors(rows);
    let (count, rest) = (vectors / wide, vectors % wide);
    // SAFETY: the caller's promise; every width divides a panel or is a number of whole panels, and
    // narrow tiles follow wide ones, so each starts at a multiple of its width within its panel.
    unsafe {
        if count > 0 {
            s.tile::<P>(rows, wide, count, tile);
        }
        if rest > 0 {
            s.tile::<P>(rows, 2, rest / 2, tile.beside::<S>(count * wide));
        }
    }
}
