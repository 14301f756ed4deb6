//! The vector operations kernels are written in, one implementation per instruction set.
//!
//! A kernel is a [`Kernel`]: its formula is written once, generic over [`Simd`], and compiled once
//! per set. For that to become vector code everything below [`Kernel::run`] is `#[inline(always)]`,
//! so that it ends up inside the one function that carries `#[target_feature]` —
//! [`Simd::vectorize`].

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

/// A computation written for any instruction set.
pub(crate) trait Kernel {
    type Output;
    /// Must be `#[inline(always)]`.
    fn run<S: Simd>(self, s: S) -> Self::Output;
}

/// The widest vector, in f32 lanes.
pub(crate) const MAX_LANES: usize = 16;

/// Vectors of one instruction set. A value of the type is the proof that the machine has it.
pub(crate) trait Simd: Copy + Send + Sync + 'static {
    /// f32 lanes of a vector.
    const LANES: usize;
    /// Whether [`Simd::dot_bf16`] is an instruction.
    const BF16_DOT: bool;
    /// Most rows of a register tile.
    const TILE_ROWS: usize;

    type F32: Copy;
    /// `LANES` words holding two bfloat16 each, the earlier one in the low half.
    type Pairs: Copy;
    /// `LANES` f64.
    type F64: Copy;
    type Mask: Copy;

    /// Runs `kernel` with this set's instructions enabled.
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output;

    /// Vectors (of columns) in the register tile used for `rows` rows: few rows take more columns
    /// at once, so that enough independent chains are in flight to hide the latency of fma.
    fn tile_vectors(rows: usize) -> usize;
    /// Runs `count` register tiles of `rows` rows and `vectors` vectors, 2 or `tile_vectors(rows)`,
    /// side by side; `tile` is the first.
    ///
    /// # Safety
    /// As `gemm::microkernel::tile`, for each of them.
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
    /// `a · b + c`, rounded once where the set has fused multiply-add.
    fn fma(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;
    /// `if a > b { a } else { b }`: `b` where either is NaN.
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `if a < b { a } else { b }`: `b` where either is NaN.
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// Lanes where `a < b`.
    fn lt(self, a: Self::F32, b: Self::F32) -> Self::Mask;
    /// `if mask { a } else { b }`
    fn select(self, mask: Self::Mask, a: Self::F32, b: Self::F32) -> Self::F32;
    /// Sum of the lanes, in one fixed order.
    fn sum(self, x: Self::F32) -> f32;
    /// Largest lane (as [`Simd::max`] treats NaN).
    fn max_lane(self, x: Self::F32) -> f32;
    /// `x · 2^n` for lanes of n holding integers `-200 ≤ n ≤ 128` and x about 1. Results below the
    /// smallest normal number may come out as 0, and do from 2^-150 down.
    fn scale(self, x: Self::F32, n: Self::F32) -> Self::F32;

    /// # Safety
    /// `p` is valid for reading `LANES` words.
    unsafe fn load_pairs(self, p: *const u32) -> Self::Pairs;
    /// Asks for the cache line of `p` to be brought into L1; any address will do.
    fn prefetch(self, p: *const u32);
    /// The same, into L2.
    fn prefetch_l2(self, p: *const u32);
    fn splat_pair(self, x: u32) -> Self::Pairs;
    /// The earlier bfloat16 of each pair, widened.
    fn widen_low(self, x: Self::Pairs) -> Self::F32;
    /// The later bfloat16 of each pair, widened.
    fn widen_high(self, x: Self::Pairs) -> Self::F32;
    /// `acc + a.low · b.low + a.high · b.high`.
    fn dot_bf16(self, a: Self::Pairs, b: Self::Pairs, acc: Self::F32) -> Self::F32;
    /// Each lane rounded to the nearest bfloat16 (ties to even), still as f32.
    fn round_bf16(self, x: Self::F32) -> Self::F32;
    /// Rounds to bfloat16 and stores `LANES` of them.
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
    /// `acc + x`, with `x` widened.
    fn add_f64(self, acc: Self::F64, x: Self::F32) -> Self::F64;

    /// The first `LANES` elements of `x`, or all of them followed by zeros.
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

    /// Writes `LANES` elements to the front of `out`, or as many as fit.
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
            // SAFETY: the caller's promise, handed on.
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
