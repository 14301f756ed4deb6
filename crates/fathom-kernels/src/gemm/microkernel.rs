//! The micro-kernel: the one inner loop of every matrix product, attention included. It follows
//! BLIS (Van Zee & van de Geijn 2015, doi:10.1145/2764454).
//!
//! `C[r][j] += Σ_k A[r][k] · W[k][j]` for an MR × NR register tile: MR rows `r` and NR columns `j`,
//! a few vectors, with all of C in registers. Each element has **one accumulator that runs over k
//! in order**, never several partial sums. Its bits therefore do not depend on the shape of the
//! tile, on the rows and columns computed with it, on where the k loop is interrupted (storing and
//! reloading an f32 accumulator is exact), or on the thread. This is the reason for row invariance.
//!
//! `W` is packed in *panels* of [`PANEL`] columns, k-major: a step of the k loop reads `PANEL`
//! consecutive words, each one f32 weight or a pair of bfloat16 weights (k, k+1). `A` is packed in
//! rows [`ROW_STRIDE`] words apart. The stride is a constant so that a tile addresses all its rows
//! from one pointer, and it is 17 cache lines so that the rows of a tile map to different cache
//! sets.

use std::marker::PhantomData;

use super::layout::{CACHE_LINE, PANEL};
use super::product::{RegisterProduct, Tile};
use crate::simd::{Kernel, Simd};

impl Tile {
    /// Runs `count` adjacent tiles of `ROWS` rows and `VECTORS` vectors.
    ///
    /// # Safety
    /// The contract of [`tile`], for each of them.
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

    /// Offset in words of W to the vector of columns that is `vectors` further. It may be in a
    /// later panel only if this tile starts at the beginning of its panel.
    #[inline(always)]
    fn offset<S: Simd>(&self, vectors: usize) -> usize {
        let per_panel = PANEL / S::LANES;
        vectors / per_panel * self.panel_stride + vectors % per_panel * S::LANES
    }

    /// The tile that starts `vectors` vectors of columns further, in whole panels.
    #[inline(always)]
    pub(crate) fn shifted<S: Simd>(&self, vectors: usize) -> Tile {
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

    /// The `i`-th of the adjacent tiles of `vectors` vectors that begin here. If several of them
    /// share a panel, they also share its prefetches, one after the other.
    #[inline(always)]
    fn nth<S: Simd>(&self, i: usize, vectors: usize) -> Tile {
        let of_panel = (PANEL / (vectors * S::LANES)).max(1);
        if of_panel == 1 {
            return self.shifted::<S>(i * vectors);
        }
        let (panel, part) = (i / of_panel, i % of_panel);
        let tile = self.shifted::<S>(panel * of_panel * vectors);
        let share = |(first, per_step): (*const u32, usize)| {
            let per_step = per_step.div_ceil(of_panel);
            (first.wrapping_add(part * self.steps * per_step), per_step)
        };
        let (prefetch, prefetch_a) = (share(tile.prefetch), share(tile.prefetch_a));
        Tile { prefetch, prefetch_a, ..tile.shifted::<S>(part * vectors) }
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
            // SAFETY: only `Tile::run` constructs this kernel, and its contract is that of `tile`
            // for each of the `count` tiles.
            unsafe { tile::<S, P, ROWS, VECTORS>(s, &self.first.nth::<S>(i, VECTORS)) }
        }
    }
}

/// The micro-kernel for `ROWS` rows (MR) by `VECTORS` vectors of columns (NR = `VECTORS · LANES`).
///
/// # Safety
/// `a` is readable for `ROWS` rows of `steps · P::A_WORDS` words,
/// [`ROW_STRIDE`](super::layout::ROW_STRIDE) words apart; `w` (at a multiple of `VECTORS` vectors
/// within its panel, which is aligned to cache lines) for `VECTORS` vectors of `steps` steps;
/// `bias` is null or readable for `VECTORS` vectors; `c` is writable for `ROWS` rows of `VECTORS`
/// vectors, which no other thread accesses during the call, and if `resume` is set they are
/// initialized.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // r and v index accumulators, pointers and operands alike
unsafe fn tile<S: Simd, P: RegisterProduct, const ROWS: usize, const VECTORS: usize>(
    s: S,
    t: &Tile,
) {
    // SAFETY: every access is within the rows, steps and vectors of the caller's contract. Prefetch
    // addresses need not be valid.
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
            // Prefetch A only in tiles that are full or nearly so, as with many rows, whose A
            // exceeds L2. A tile of few rows has no spare cycles for it. The condition is a
            // constant, because a branch in this loop would spill accumulators.
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

/// Runs `rows ≤ S::TILE_ROWS` rows over `vectors` vectors of columns, in whole panels, from `tile`
/// on: with wide tiles as far as they fit, then panel by panel.
///
/// # Safety
/// The contract of [`tile`], for all `vectors`.
#[inline(never)] // one table of tiles per product instead of one per call site
pub(super) unsafe fn register_tiles<S: Simd, P: RegisterProduct>(
    s: S,
    rows: usize,
    vectors: usize,
    tile: Tile,
) {
    let (wide, panel) = (S::tile_vectors(rows), PANEL / S::LANES);
    let (count, rest) = (vectors / wide, vectors % wide / panel);
    // SAFETY: the caller's contract covers all `vectors`. Every tile width divides a panel or is a
    // multiple of it, and panels follow wide tiles, so each tile starts at a multiple of its width
    // within its panel.
    unsafe {
        if count > 0 {
            s.tile::<P>(rows, wide, count, tile);
        }
        if rest > 0 {
            s.tile::<P>(rows, panel, rest, tile.shifted::<S>(count * wide));
        }
    }
}
