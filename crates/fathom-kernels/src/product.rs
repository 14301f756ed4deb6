//! The ways two operands meet in a matrix product, and which one a storage and a precision call for.

use std::ops::Range;

use crate::Precision;
use crate::microkernel::{PANEL, ROW_STRIDE, Tile, even_parts, register_tiles};
use crate::pack::{Storage, k_block};
use crate::simd::{Kernel, Simd};

/// How a word of A meets a word of W.
pub(crate) trait Product: Sized + Send + Sync + 'static {
    /// Words of A consumed by a step.
    const A_WORDS: usize;
    /// k consumed by a step.
    const K: usize;
    /// Whether A is rounded to bfloat16 pairs.
    const A_PAIRS: bool;
    /// k added up among themselves before they meet the chain so far. How k falls into groups is in the
    /// bits: groups lie at multiples of it, and one that a row has in part is computed as a whole, with
    /// zeros.
    const GROUP: usize = Self::K;
    /// Panels of weights that one call of [`Product::tiles`] should take: one is one stream from memory.
    const TILE_PANELS: usize = 1;

    /// Most rows of a register tile.
    fn tile_rows<S: Simd>() -> usize {
        S::TILE_ROWS
    }

    /// Cuts rows into register tiles.
    fn row_tiles<S: Simd>(rows: Range<usize>) -> impl Iterator<Item = Range<usize>> {
        even_parts(rows, S::TILE_ROWS)
    }

    /// The same for `rows` rows and weights that lie in a cache: enough chains to hide latency.
    fn cached_panels<S: Simd>(rows: usize) -> usize {
        (S::tile_vectors(rows) * S::LANES / PANEL).max(1)
    }

    /// Longest k over which the slices of the panels of a call, and of the rows that pass over them, fit
    /// into L1.
    fn k_slice<S: Simd>(_rows: usize) -> usize {
        k_block::<Self>()
    }

    /// Runs `rows ≤ tile_rows` rows over `vectors` vectors of columns, whole panels, `tile` naming the
    /// first.
    ///
    /// # Safety
    /// As [`crate::microkernel::tile`], for all `vectors`.
    unsafe fn tiles<S: Simd>(s: S, rows: usize, vectors: usize, tile: Tile);
}

/// A product in vector registers.
pub(crate) trait RegisterProduct: Product {
    /// One step of k: `acc[r][v] += A[r] · W[v]`.
    ///
    /// # Safety
    /// `a` reaches `ROWS` rows of `A_WORDS` words, each of `w` a vector of words.
    unsafe fn step<S: Simd, const ROWS: usize, const VECTORS: usize>(
        s: S,
        acc: &mut [[S::F32; VECTORS]; ROWS],
        a: *const u32,
        w: &[*const u32; VECTORS],
    );
}

/// Both loop orders of `acc[r][v] = fma(a[r], w[v], acc[r][v])`: the operand held in registers across the
/// inner loop is the shorter one.
macro_rules! outer_product {
    ($rows:ident $vectors:ident, $acc:ident[$r:ident][$v:ident], $a:expr, $w:expr, $s:ident.$fma:ident) => {
        if $rows >= $vectors {
            let $v = 0;
            let mut w = [$w; $vectors];
            for $v in 0..$vectors {
                w[$v] = $w;
            }
            for $r in 0..$rows {
                let a = $a;
                for $v in 0..$vectors {
                    $acc[$r][$v] = $s.$fma(a, w[$v], $acc[$r][$v]);
                }
            }
        } else {
            let $r = 0;
            let mut a = [$a; $rows];
            for $r in 0..$rows {
                a[$r] = $a;
            }
            for $v in 0..$vectors {
                let w = $w;
                for $r in 0..$rows {
                    $acc[$r][$v] = $s.$fma(a[$r], w, $acc[$r][$v]);
                }
            }
        }
    };
}

/// f32 by f32.
pub(crate) struct F32;

impl Product for F32 {
    const A_WORDS: usize = 1;
    const K: usize = 1;
    const A_PAIRS: bool = false;

    unsafe fn tiles<S: Simd>(s: S, rows: usize, vectors: usize, tile: Tile) {
        // SAFETY: the caller's promise.
        unsafe { register_tiles::<S, Self>(s, rows, vectors, tile) }
    }
}

impl RegisterProduct for F32 {
    #[inline(always)]
    #[allow(clippy::needless_range_loop)]
    unsafe fn step<S: Simd, const ROWS: usize, const VECTORS: usize>(
        s: S,
        acc: &mut [[S::F32; VECTORS]; ROWS],
        a: *const u32,
        w: &[*const u32; VECTORS],
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let row = a.cast::<f32>();
            outer_product!(
                ROWS VECTORS, acc[r][v],
                s.splat(*row.add(r * ROW_STRIDE)),
                s.load(w[v].cast()),
                s.fma
            );
        }
    }
}

/// f32 by bfloat16 pairs, widened in registers: exact products of what is stored.
pub(crate) struct Widened;

impl Product for Widened {
    const A_WORDS: usize = 2;
    const K: usize = 2;
    const A_PAIRS: bool = false;

    unsafe fn tiles<S: Simd>(s: S, rows: usize, vectors: usize, tile: Tile) {
        // SAFETY: the caller's promise.
        unsafe { register_tiles::<S, Self>(s, rows, vectors, tile) }
    }
}

impl RegisterProduct for Widened {
    #[inline(always)]
    #[allow(clippy::needless_range_loop)]
    unsafe fn step<S: Simd, const ROWS: usize, const VECTORS: usize>(
        s: S,
        acc: &mut [[S::F32; VECTORS]; ROWS],
        a: *const u32,
        w: &[*const u32; VECTORS],
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let row = a.cast::<f32>();
            outer_product!(
                ROWS VECTORS, acc[r][v],
                s.splat(*row.add(r * ROW_STRIDE)),
                s.widen_low(s.load_pairs(w[v])),
                s.fma
            );
            outer_product!(
                ROWS VECTORS, acc[r][v],
                s.splat(*row.add(r * ROW_STRIDE + 1)),
                s.widen_high(s.load_pairs(w[v])),
                s.fma
            );
        }
    }
}

/// bfloat16 pairs by bfloat16 pairs.
pub(crate) struct Pairs;

impl Product for Pairs {
    const A_WORDS: usize = 1;
    const K: usize = 2;
    const A_PAIRS: bool = true;

    unsafe fn tiles<S: Simd>(s: S, rows: usize, vectors: usize, tile: Tile) {
        // SAFETY: the caller's promise.
        unsafe { register_tiles::<S, Self>(s, rows, vectors, tile) }
    }
}

impl RegisterProduct for Pairs {
    #[inline(always)]
    #[allow(clippy::needless_range_loop)]
    unsafe fn step<S: Simd, const ROWS: usize, const VECTORS: usize>(
        s: S,
        acc: &mut [[S::F32; VECTORS]; ROWS],
        a: *const u32,
        w: &[*const u32; VECTORS],
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            outer_product!(
                ROWS VECTORS, acc[r][v],
                s.splat_pair(*a.add(r * ROW_STRIDE)),
                s.load_pairs(w[v]),
                s.dot_bf16
            );
        }
    }
}

/// A computation written for any way A meets W.
pub(crate) trait ProductKernel {
    /// Must be `#[inline(always)]`. `round`: operands are rounded to bfloat16 although `P` takes f32.
    fn run<S: Simd, P: Product>(self, s: S, round: bool);
}

/// Runs a [`ProductKernel`] with the product that a storage and a precision call for.
pub(crate) struct ForProduct<K> {
    pub(crate) storage: Storage,
    pub(crate) precision: Precision,
    pub(crate) kernel: K,
}

impl<K: ProductKernel> Kernel for ForProduct<K> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match (self.storage, self.precision) {
            (Storage::F32, _) => self.kernel.run::<S, F32>(s, false),
            (Storage::Bf16, Precision::F32) => self.kernel.run::<S, Widened>(s, false),
            (Storage::Bf16, Precision::Bf16) if S::BF16_DOT => {
                self.kernel.run::<S, Pairs>(s, false)
            }
            (Storage::Bf16, Precision::Bf16) => self.kernel.run::<S, Widened>(s, true),
        }
    }
}

/// Whether both operands are bfloat16 pairs.
pub(crate) fn is_pairs(storage: Storage, precision: Precision) -> bool {
    (storage, precision) == (Storage::Bf16, Precision::Bf16)
}

/// The product [`ForProduct`] chooses, in words.
pub(crate) fn product_name(storage: Storage, precision: Precision, bf16_dot: bool) -> &'static str {
    match (storage, precision) {
        (Storage::F32, _) => "f32 fma",
        (Storage::Bf16, Precision::F32) => "bf16 widened in registers, f32 fma",
        (Storage::Bf16, Precision::Bf16) if bf16_dot => "bf16 pairs, vdpbf16ps",
        (Storage::Bf16, Precision::Bf16) => "operands rounded to bf16, f32 fma",
    }
}
