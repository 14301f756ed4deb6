//! The products in vector registers, and the choice among them by storage and precision.

use fathom_backend::Precision;

use super::layout::{PANEL, ROW_STRIDE, Storage};
use super::microkernel::register_tiles;
use super::product::{Product, RegisterProduct, Tile, k_block};
use crate::simd::{Kernel, Simd};

/// Both loop orders of `acc[r][v] = fma(a[r], w[v], acc[r][v])`: the shorter operand is held in
/// registers across the inner loop. Each `a[r]` and each `w[v]` is evaluated once. Not a function,
/// because closures would not inherit the target features.
macro_rules! outer_product {
    (
        $rows:ident $vectors:ident, $acc:ident[$r:ident][$v:ident],
        $a:expr, $w:expr, $zero:expr, $s:ident.$fma:ident
    ) => {
        if $rows >= $vectors {
            let mut w = [$zero; $vectors];
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
            let mut a = [$zero; $rows];
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

/// Length of a slice of k, in f32 products. Short if the register tiles of these rows are narrower
/// than a panel: they pass over a slice several times, for which it has to stay in L1 together with
/// the next slice and the rows.
fn float_k_slice<S: Simd, P: Product>(rows: usize) -> usize {
    let width = S::tile_vectors(rows.min(S::TILE_ROWS)) * S::LANES;
    k_block::<P>() / if width < PANEL { 2 } else { 1 }
}

/// f32 × f32.
struct F32;

impl Product for F32 {
    const A_WORDS: usize = 1;
    const K: usize = 1;
    const A_PAIRS: bool = false;

    fn k_slice<S: Simd>(rows: usize) -> usize {
        float_k_slice::<S, Self>(rows)
    }

    unsafe fn tiles<S: Simd>(s: S, rows: usize, vectors: usize, tile: Tile) {
        // SAFETY: the caller's contract is that of `register_tiles`.
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
        // SAFETY: `a` is readable for ROWS rows of A_WORDS words, each `w[v]` for LANES words.
        unsafe {
            let row = a.cast::<f32>();
            outer_product!(
                ROWS VECTORS, acc[r][v],
                s.splat(*row.add(r * ROW_STRIDE)),
                s.load(w[v].cast()),
                s.splat(0.0),
                s.fma
            );
        }
    }
}

/// f32 × bfloat16 pairs, widened to f32 in registers: exact products of the stored values.
struct Widened;

impl Product for Widened {
    const A_WORDS: usize = 2;
    const K: usize = 2;
    const A_PAIRS: bool = false;

    fn k_slice<S: Simd>(rows: usize) -> usize {
        float_k_slice::<S, Self>(rows)
    }

    unsafe fn tiles<S: Simd>(s: S, rows: usize, vectors: usize, tile: Tile) {
        // SAFETY: the caller's contract is that of `register_tiles`.
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
        // SAFETY: `a` is readable for ROWS rows of A_WORDS words, each `w[v]` for LANES words.
        unsafe {
            let row = a.cast::<f32>();
            outer_product!(
                ROWS VECTORS, acc[r][v],
                s.splat(*row.add(r * ROW_STRIDE)),
                s.widen_low(s.load_pairs(w[v])),
                s.splat(0.0),
                s.fma
            );
            outer_product!(
                ROWS VECTORS, acc[r][v],
                s.splat(*row.add(r * ROW_STRIDE + 1)),
                s.widen_high_at(w[v]),
                s.splat(0.0),
                s.fma
            );
        }
    }
}

/// bfloat16 pairs × bfloat16 pairs.
struct Pairs;

impl Product for Pairs {
    const A_WORDS: usize = 1;
    const K: usize = 2;
    const A_PAIRS: bool = true;

    unsafe fn tiles<S: Simd>(s: S, rows: usize, vectors: usize, tile: Tile) {
        // SAFETY: the caller's contract is that of `register_tiles`.
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
        // SAFETY: `a` is readable for ROWS rows of one word, each `w[v]` for LANES words.
        unsafe {
            outer_product!(
                ROWS VECTORS, acc[r][v],
                s.splat_pair(*a.add(r * ROW_STRIDE)),
                s.load_pairs(w[v]),
                s.splat_pair(0),
                s.dot_bf16
            );
        }
    }
}

/// A kernel that is generic over the product.
pub(crate) trait ProductKernel {
    /// Must be `#[inline(always)]`. `round`: activations are rounded to bfloat16 although `P` reads
    /// f32.
    fn run<S: Simd, P: Product>(self, s: S, round: bool);
}

/// Runs a [`ProductKernel`] with the product for a storage and a precision.
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

/// A description of the product that [`ForProduct`] chooses.
pub(crate) fn product_name(storage: Storage, precision: Precision, bf16_dot: bool) -> &'static str {
    match (storage, precision) {
        (Storage::F32, _) => "f32 fma",
        (Storage::Bf16, Precision::F32) => "bf16 widened in registers, f32 fma",
        (Storage::Bf16, Precision::Bf16) if bf16_dot => "bf16 pairs, vdpbf16ps",
        (Storage::Bf16, Precision::Bf16) => "operands rounded to bf16, f32 fma",
    }
}
