//! The products in vector registers, and the choice among them by storage and precision.

use std::marker::PhantomData;

use fathom_backend::Precision;

use super::layout::{PANEL, ROW_STRIDE, Storage};
use super::microkernel::{STRIP_VECTORS, register_tiles, strips};
use super::product::{Product, RegisterProduct, Tile, Weights, k_block, rows_of_tiles};
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

/// Weights as f32: how they are read and unpacked.
trait FloatWeights: Send + Sync + 'static {
    /// k per step.
    const K: usize;
    /// Whether unpacking them takes instructions other than loads.
    const PACKED: bool;

    /// The `k`-th weight of a step, of one vector of columns.
    ///
    /// # Safety
    /// `w` is aligned to a vector and readable for the step's words of that vector: `LANES` words of
    /// a panel, or `K` vectors of a strip, `width` words apart.
    unsafe fn load<S: Simd>(s: S, w: *const u32, k: usize, width: usize) -> S::F32;
}

/// f32 in panels.
struct Floats;

impl FloatWeights for Floats {
    const K: usize = 1;
    const PACKED: bool = false;
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, w: *const u32, _: usize, _: usize) -> S::F32 {
        // SAFETY: by the trait's contract `w` is readable for LANES words.
        unsafe { s.load(w.cast()) }
    }
}

/// bfloat16 pairs in panels, widened to f32 in registers, which is exact.
struct Halves;

impl FloatWeights for Halves {
    const K: usize = 2;
    const PACKED: bool = true;
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, w: *const u32, k: usize, _: usize) -> S::F32 {
        // SAFETY: by the trait's contract `w` is readable for LANES words, of a panel.
        unsafe { if k == 0 { s.widen_low(s.load_pairs(w)) } else { s.widen_high_at(w) } }
    }
}

/// A strip of unpacked weights `W`.
struct StripOf<W>(PhantomData<W>);

impl<W: FloatWeights> FloatWeights for StripOf<W> {
    const K: usize = W::K;
    const PACKED: bool = false;
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, w: *const u32, k: usize, width: usize) -> S::F32 {
        // SAFETY: by the trait's contract `w` is readable for K vectors, `width` words apart.
        unsafe { s.load(w.add(k * width).cast()) }
    }
}

/// From this many rows on, weights are unpacked once for all rows instead of by each register tile.
/// With fewer rows, reading the weights takes much of the time, and the strips' loop order, half a
/// panel at a time, is the worse one for that: 8 and 10 rows took 1.14 times as long.
const STRIP_ROWS: usize = 48;

/// f32 × weights `W`, by f32 multiply-adds: exact products of the stored values.
struct Floating<W>(PhantomData<W>);

impl<W: FloatWeights> Product for Floating<W> {
    const A_WORDS: usize = W::K;
    const K: usize = W::K;
    const A_PAIRS: bool = false;

    /// Short if tiles of these rows are narrower than a panel. They then pass over a slice several
    /// times, for which it stays in L1, together with the next slice and the rows.
    fn k_slice<S: Simd>(rows: usize) -> usize {
        let vectors = if rows <= S::TILE_ROWS { S::tile_vectors(rows) } else { STRIP_VECTORS };
        k_block::<Self>() / if vectors * S::LANES < PANEL { 2 } else { 1 }
    }

    unsafe fn tiles<S: Simd>(s: S, rows: usize, vectors: usize, tile: Tile) {
        // SAFETY: the caller's contract is that of `register_tiles`.
        unsafe { register_tiles::<S, FromPanels<W>>(s, rows, vectors, tile) }
    }

    unsafe fn rows<S: Simd>(s: S, rows: usize, vectors: usize, tile: Tile) {
        // SAFETY: the caller's contract is that of each of them.
        unsafe {
            if W::PACKED && rows >= STRIP_ROWS {
                strips::<S, ToStrip<W>, FromStrip<W>>(s, rows, vectors, tile);
            } else {
                rows_of_tiles::<S, Self>(s, rows, vectors, tile);
            }
        }
    }
}

/// [`Floating`] with weights from panels.
struct FromPanels<W>(PhantomData<W>);

impl<W: FloatWeights> RegisterProduct for FromPanels<W> {
    const A_WORDS: usize = W::K;

    #[inline(always)]
    unsafe fn step<S: Simd, const ROWS: usize, const VECTORS: usize>(
        s: S,
        acc: &mut [[S::F32; VECTORS]; ROWS],
        a: *const u32,
        w: &[*const u32; VECTORS],
        _: *mut f32,
    ) {
        // SAFETY: the caller's contract.
        unsafe { multiply_add::<S, W, ROWS, VECTORS>(s, acc, a, w, None) }
    }
}

/// [`Floating`] with weights from panels, which it writes to a strip.
struct ToStrip<W>(PhantomData<W>);

impl<W: FloatWeights> RegisterProduct for ToStrip<W> {
    const A_WORDS: usize = W::K;
    const WEIGHTS: Weights = Weights::PanelsToStrip;

    #[inline(always)]
    unsafe fn step<S: Simd, const ROWS: usize, const VECTORS: usize>(
        s: S,
        acc: &mut [[S::F32; VECTORS]; ROWS],
        a: *const u32,
        w: &[*const u32; VECTORS],
        strip: *mut f32,
    ) {
        // SAFETY: the caller's contract.
        unsafe { multiply_add::<S, W, ROWS, VECTORS>(s, acc, a, w, Some(strip)) }
    }
}

/// [`Floating`] with weights from a strip.
struct FromStrip<W>(PhantomData<W>);

impl<W: FloatWeights> RegisterProduct for FromStrip<W> {
    const A_WORDS: usize = W::K;
    const WEIGHTS: Weights = Weights::Strip;

    #[inline(always)]
    unsafe fn step<S: Simd, const ROWS: usize, const VECTORS: usize>(
        s: S,
        acc: &mut [[S::F32; VECTORS]; ROWS],
        a: *const u32,
        w: &[*const u32; VECTORS],
        _: *mut f32,
    ) {
        // SAFETY: the caller's contract.
        unsafe { multiply_add::<S, StripOf<W>, ROWS, VECTORS>(s, acc, a, w, None) }
    }
}

/// A step of [`Floating`], which writes the unpacked weights to `strip`, if there is one.
///
/// # Safety
/// The contract of [`RegisterProduct::step`].
#[inline(always)]
#[allow(clippy::needless_range_loop)] // r and v index accumulators, rows and pointers alike
unsafe fn multiply_add<S: Simd, W: FloatWeights, const ROWS: usize, const VECTORS: usize>(
    s: S,
    acc: &mut [[S::F32; VECTORS]; ROWS],
    a: *const u32,
    w: &[*const u32; VECTORS],
    strip: Option<*mut f32>,
) {
    let width = VECTORS * S::LANES;
    let a = a.cast::<f32>();
    for k in 0..W::K {
        // SAFETY: `a` is readable for ROWS rows of K words, `w` for a step, and `strip` is writable
        // for K times VECTORS vectors.
        unsafe {
            outer_product!(
                ROWS VECTORS, acc[r][v],
                s.splat(*a.add(r * ROW_STRIDE + k)),
                {
                    let w = W::load(s, w[v], k, width);
                    if let Some(strip) = strip {
                        s.store(strip.add(k * width + v * S::LANES), w);
                    }
                    w
                },
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
    const A_WORDS: usize = 1;

    #[inline(always)]
    #[allow(clippy::needless_range_loop)]
    unsafe fn step<S: Simd, const ROWS: usize, const VECTORS: usize>(
        s: S,
        acc: &mut [[S::F32; VECTORS]; ROWS],
        a: *const u32,
        w: &[*const u32; VECTORS],
        _: *mut f32,
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
            (Storage::F32, _) => self.kernel.run::<S, Floating<Floats>>(s, false),
            (Storage::Bf16, Precision::F32) => self.kernel.run::<S, Floating<Halves>>(s, false),
            (Storage::Bf16, Precision::Bf16) if S::BF16_DOT => {
                self.kernel.run::<S, Pairs>(s, false)
            }
            (Storage::Bf16, Precision::Bf16) => self.kernel.run::<S, Floating<Halves>>(s, true),
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
