//! AVX2 with fused multiply-add: 8 lanes, 16 registers.
//!
//! The register tile is 6 × 16 (MR × NR), half a panel: 6 rows × 2 vectors use 12 accumulators, 2
//! vectors of weights, 1 broadcast and 1 constant. That is every register, so the high halves of
//! bfloat16 pairs are loaded again ([`Simd::widen_high_at`]). Kept in registers, the pairs were
//! spilled in every step: full tiles took 1.3 times as long, or 2.6 times where a slot of the stack
//! crossed a cache line. The 12 independent accumulators cover the 8 needed by two FMA units of
//! latency 4.
//!
//! A step of two k takes 24 FMAs, 12 broadcasts, 4 loads of pairs, 2 shifts and 2 blends. Two FMA
//! units need 12 cycles for it, and two load ports 8. Shifts and blends find a free port on Zen,
//! whose FMAs use two of four vector ports, but shifts are a thirteenth cycle on Intel's cores up
//! to Skylake, which shift on the ports of FMA. Weights unpacked once for many rows, by the first
//! tile of rows into L1 for the others, were slower on Zen 5: by a tenth at 48 rows, by 1 to 5 % at
//! 64 to 512.
//!
//! With 1 to 3 rows the tile is a whole panel wide, so that weights pass by once, in memory order.

use std::arch::x86_64::*;

use super::{Kernel, Simd, tile_table};
use crate::gemm::product::{RegisterProduct, Tile};

/// A proof that this CPU has `avx2` and `fma`.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// # Safety
    /// This CPU has `avx2` and `fma`.
    pub(crate) unsafe fn new() -> Avx2 {
        Avx2(())
    }

    #[inline(always)]
    fn round_bits(self, x: __m256) -> __m256i {
        // SAFETY: a value of `Avx2` proves that the CPU has AVX2.
        unsafe {
            let bits = _mm256_castps_si256(x);
            let lsb = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            let bias = _mm256_add_epi32(lsb, _mm256_set1_epi32(0x7fff));
            let rounded = _mm256_add_epi32(bits, bias);
            // A NaN keeps its sign and becomes quiet.
            let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000));
            let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(x, x));
            let kept = _mm256_blendv_epi8(rounded, quiet, nan);
            _mm256_and_si256(kept, _mm256_set1_epi32(0xffff_0000_u32 as i32))
        }
    }
}

// SAFETY of every block below: a value of `Avx2` proves that the CPU has AVX2 and FMA. Pointers are
// valid for LANES elements by the contracts of the trait's functions; prefetch accepts any address.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Simd for Avx2 {
    const LANES: usize = 8;
    const BF16_DOT: bool = false;
    const TILE_ROWS: usize = 6;

    type F32 = __m256;
    type Pairs = __m256i;
    type F64 = [__m256d; 2];
    type Mask = __m256;

    #[inline(always)]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        #[inline(never)]
        #[target_feature(enable = "avx2,fma")]
        fn with_features<K: Kernel>(kernel: K, s: Avx2) -> K::Output {
            kernel.run(s)
        }
        unsafe { with_features(kernel, self) }
    }

    #[inline(always)]
    fn tile_vectors(rows: usize) -> usize {
        match rows {
            1 => 8,
            2 | 3 => 4,
            _ => 2,
        }
    }

    tile_table! {
        8 vectors: 1;
        4 vectors: 1 2 3;
        2 vectors: 4 5 6;
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> Self::F32 {
        unsafe { _mm256_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, x: Self::F32) {
        unsafe { _mm256_storeu_ps(p, x) }
    }
    #[inline(always)]
    fn splat(self, x: f32) -> Self::F32 {
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        unsafe { _mm256_div_ps(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32 {
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        unsafe { _mm256_max_ps(a, b) }
    }
    #[inline(always)]
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        unsafe { _mm256_min_ps(a, b) }
    }
    #[inline(always)]
    fn lt(self, a: Self::F32, b: Self::F32) -> Self::Mask {
        unsafe { _mm256_cmp_ps::<_CMP_LT_OQ>(a, b) }
    }
    #[inline(always)]
    fn select(self, mask: Self::Mask, a: Self::F32, b: Self::F32) -> Self::F32 {
        unsafe { _mm256_blendv_ps(b, a, mask) }
    }
    #[inline(always)]
    fn sum(self, x: Self::F32) -> f32 {
        unsafe {
            let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps::<1>(x, x)))
        }
    }
    #[inline(always)]
    fn max_lane(self, x: Self::F32) -> f32 {
        unsafe {
            let x = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_max_ss(x, _mm_shuffle_ps::<1>(x, x)))
        }
    }
    #[inline(always)]
    fn scale(self, x: Self::F32, n: Self::F32) -> Self::F32 {
        // 2x · 2^(n-1), because 2^128 is not an f32; n - 1 = -127 yields the bits of 0.
        unsafe {
            let biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(126));
            let biased = _mm256_max_epi32(biased, _mm256_setzero_si256());
            let pow2 = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased));
            _mm256_mul_ps(_mm256_add_ps(x, x), pow2)
        }
    }

    #[inline(always)]
    unsafe fn load_pairs(self, p: *const u32) -> Self::Pairs {
        unsafe { _mm256_loadu_si256(p.cast()) }
    }
    #[inline(always)]
    fn prefetch(self, p: *const u32) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
    #[inline(always)]
    fn prefetch_l2(self, p: *const u32) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }
    #[inline(always)]
    fn splat_pair(self, x: u32) -> Self::Pairs {
        unsafe { _mm256_set1_epi32(x as i32) }
    }
    #[inline(always)]
    fn widen_low(self, x: Self::Pairs) -> Self::F32 {
        unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(x)) }
    }
    #[inline(always)]
    fn widen_high(self, x: Self::Pairs) -> Self::F32 {
        unsafe {
            let mask = _mm256_set1_epi32(0xffff_0000_u32 as i32);
            _mm256_castsi256_ps(_mm256_and_si256(x, mask))
        }
    }
    /// Volatile, so that the compiler does not merge the load with that of the low halves: the
    /// pairs would then have to stay in registers, of which the 6 × 16 tile has none to spare, and
    /// would be spilled in every step of the inner loop.
    #[inline(always)]
    unsafe fn widen_high_at(self, p: *const u32) -> Self::F32 {
        self.widen_high(unsafe { p.cast::<__m256i>().read_volatile() })
    }
    #[inline(always)]
    fn dot_bf16(self, a: Self::Pairs, b: Self::Pairs, acc: Self::F32) -> Self::F32 {
        let acc = self.fma(self.widen_low(a), self.widen_low(b), acc);
        self.fma(self.widen_high(a), self.widen_high(b), acc)
    }
    #[inline(always)]
    fn round_bf16(self, x: Self::F32) -> Self::F32 {
        unsafe { _mm256_castsi256_ps(self.round_bits(x)) }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut u16, x: Self::F32) {
        unsafe {
            let halves = _mm256_srli_epi32::<16>(self.round_bits(x));
            let (low, high) =
                (_mm256_castsi256_si128(halves), _mm256_extracti128_si256::<1>(halves));
            _mm_storeu_si128(p.cast(), _mm_packus_epi32(low, high));
        }
    }

    #[inline(always)]
    unsafe fn load_f64(self, p: *const f64) -> Self::F64 {
        unsafe { [_mm256_loadu_pd(p), _mm256_loadu_pd(p.add(4))] }
    }
    #[inline(always)]
    unsafe fn store_f64(self, p: *mut f64, x: Self::F64) {
        unsafe {
            _mm256_storeu_pd(p, x[0]);
            _mm256_storeu_pd(p.add(4), x[1]);
        }
    }
    #[inline(always)]
    fn add_f64(self, acc: Self::F64, x: Self::F32) -> Self::F64 {
        unsafe {
            let low = _mm256_cvtps_pd(_mm256_castps256_ps128(x));
            let high = _mm256_cvtps_pd(_mm256_extractf128_ps::<1>(x));
            [_mm256_add_pd(acc[0], low), _mm256_add_pd(acc[1], high)]
        }
    }
}
