//! Vector operations for kernels, with one implementation per instruction set.
//!
//! A [`Kernel`] is written once, generic over [`Simd`], and compiled once per instruction set. For
//! this to become vector code, everything below [`Kernel::run`] must be `#[inline(always)]`, so
//! that it is inlined into the one function with `#[target_feature]`: [`Simd::vectorize`].

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub(crate) mod exp;
mod portable;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Avx512;
pub(crate) use portable::Portable;

use crate::gemm::product::{RegisterProduct, Tile};

/// A computation that is generic over the instruction set.
pub(crate) trait Kernel {
    type Output;
    /// Must be `#[inline(always)]`.
    fn run<S: Simd>(self, s: S) -> Self::Output;
}

/// The widest vector, in f32 lanes.
pub(crate) const MAX_LANES: usize = 16;

/// The vectors of one instruction set. A value of the type is a proof that the CPU supports the
/// set.
pub(crate) trait Simd: Copy + Send + Sync + 'static {
    /// f32 lanes per vector.
    const LANES: usize;
    /// Whether [`Simd::dot_bf16`] is a single instruction.
    const BF16_DOT: bool;
    /// Maximum number of rows of a register tile (MR).
    const TILE_ROWS: usize;

    type F32: Copy;
    /// `LANES` words of two bfloat16 each, the first in the low half.
    type Pairs: Copy;
    /// `LANES` f64.
    type F64: Copy;
    type Mask: Copy;

    /// Runs `kernel` with this set's instructions enabled.
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output;

    /// Width of the register tile for `rows` rows, in vectors (NR = vectors · LANES). With few rows
    /// it is wider, so that there are enough independent accumulators to hide the latency of FMA.
    fn tile_vectors(rows: usize) -> usize;
    /// Runs `count` adjacent register tiles of `rows` rows and `vectors` vectors, `tile` being the
    /// first. `vectors` is `tile_vectors(rows)` or, where that is more than a panel, a panel's.
    ///
    /// # Safety
    /// The contract of `gemm::microkernel::tile`, for each of them.
    unsafe fn tile<P: RegisterProduct>(self, rows: usize, vectors: usize, count: usize, tile: Tile);

    /// # Safety
    /// `p` is valid for reading `LANES` f32.
    unsafe fn load(self, p: *const f32) -> Self::F32;
    /// # Safety
    /// `p` is valid for writing `LANES` f32.
    unsafe fn store(self, p: *mut f32, x: Self::F32);
    fn splat(self, x: f32) -> Self::F32;
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a · b + c`, rounded once if the set has fused multiply-add.
    fn fma(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;
    /// `if a > b { a } else { b }`: `b` if either is NaN.
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `if a < b { a } else { b }`: `b` if either is NaN.
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// Lanes where `a < b`.
    fn lt(self, a: Self::F32, b: Self::F32) -> Self::Mask;
    /// `if mask { a } else { b }`
    fn select(self, mask: Self::Mask, a: Self::F32, b: Self::F32) -> Self::F32;
    /// Sum of the lanes, in one fixed order.
    fn sum(self, x: Self::F32) -> f32;
    /// Largest lane (as [`Simd::max`] treats NaN).
    fn max_lane(self, x: Self::F32) -> f32;
    /// `x · 2^n` for integer lanes `-200 ≤ n ≤ 128` and x near 1. Results below the smallest normal
    /// number may be flushed to 0; those below 2^-150 always are.
    fn scale(self, x: Self::F32, n: Self::F32) -> Self::F32;

    /// # Safety
    /// `p` is valid for reading `LANES` words.
    unsafe fn load_pairs(self, p: *const u32) -> Self::Pairs;
    /// Prefetches the cache line of `p` into L1; any address is allowed.
    fn prefetch(self, p: *const u32);
    /// Prefetches the cache line of `p` into L2; any address is allowed.
    fn prefetch_l2(self, p: *const u32);
    fn splat_pair(self, x: u32) -> Self::Pairs;
    /// The first bfloat16 of each pair, widened to f32.
    fn widen_low(self, x: Self::Pairs) -> Self::F32;
    /// The second bfloat16 of each pair, widened to f32.
    fn widen_high(self, x: Self::Pairs) -> Self::F32;
    /// [`Simd::widen_high`] of the pairs at `p`.
    ///
    /// # Safety
    /// `p` is valid for reading `LANES` words, and aligned to a vector.
    #[inline(always)]
    unsafe fn widen_high_at(self, p: *const u32) -> Self::F32 {
        // SAFETY: by the caller's contract `p` is valid for reading LANES words.
        self.widen_high(unsafe { self.load_pairs(p) })
    }
    /// `acc + a.low · b.low + a.high · b.high`.
    fn dot_bf16(self, a: Self::Pairs, b: Self::Pairs, acc: Self::F32) -> Self::F32;
    /// Rounds each lane to the nearest bfloat16 (ties to even), still as f32.
    fn round_bf16(self, x: Self::F32) -> Self::F32;
    /// Rounds to bfloat16 and stores `LANES` values.
    ///
    /// # Safety
    /// `p` is valid for writing `LANES` u16.
    unsafe fn store_bf16(self, p: *mut u16, x: Self::F32);

    /// # Safety
    /// `p` is valid for reading `LANES` f64.
    unsafe fn load_f64(self, p: *const f64) -> Self::F64;
    /// # Safety
    /// `p` is valid for writing `LANES` f64.
    unsafe fn store_f64(self, p: *mut f64, x: Self::F64);
    /// `acc + x`, with `x` widened to f64.
    fn add_f64(self, acc: Self::F64, x: Self::F32) -> Self::F64;

    /// Loads the first `LANES` elements of `x`, or all of them padded with zeros.
    #[inline(always)]
    fn load_some(self, x: &[f32]) -> Self::F32 {
        if x.len() >= Self::LANES {
            // SAFETY: the slice holds LANES elements.
            unsafe { self.load(x.as_ptr()) }
        } else {
            let mut padded = [0.0; MAX_LANES];
            padded[..x.len()].copy_from_slice(x);
            // SAFETY: `padded` holds MAX_LANES ≥ LANES elements.
            unsafe { self.load(padded.as_ptr()) }
        }
    }

    /// Stores `LANES` elements at the start of `out`, or as many as fit.
    #[inline(always)]
    fn store_some(self, out: &mut [f32], x: Self::F32) {
        if out.len() >= Self::LANES {
            // SAFETY: the slice holds LANES elements.
            unsafe { self.store(out.as_mut_ptr(), x) }
        } else {
            let mut padded = [0.0; MAX_LANES];
            // SAFETY: `padded` holds MAX_LANES ≥ LANES elements.
            unsafe { self.store(padded.as_mut_ptr(), x) }
            out.copy_from_slice(&padded[..out.len()]);
        }
    }
}

/// Defines `Simd::tile` as a table: the register tiles that exist for this instruction set.
macro_rules! tile_table {
    ($($vectors:literal vectors: $($rows:literal)+;)+) => {
        #[inline(always)]
        unsafe fn tile<P: RegisterProduct>(
            self,
            rows: usize,
            vectors: usize,
            count: usize,
            tile: Tile,
        ) {
            // SAFETY: the caller's contract is that of `Tile::run`.
            unsafe {
                match (rows, vectors) {
                    $($(($rows, $vectors) => tile.run::<Self, P, $rows, $vectors>(self, count),)+)+
                    _ => unreachable!("no register tile of {rows} rows by {vectors} vectors"),
                }
            }
        }
    };
}
use tile_table;
