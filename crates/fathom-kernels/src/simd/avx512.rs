//! AVX-512: 16 lanes, 32 registers; with `BF16`, also `vdpbf16ps`.
//!
//! The register tile is 14 × 32 (MR × NR): 14 rows × 2 vectors (one panel) use 28 accumulators, 2
//! vectors of weights and 1 broadcast. Per step of k that is 28 FMAs for 16 loads, so the FMA units
//! are the limit, not the load ports. With few rows and cached operands the tile spans 4 panels
//! (1–3 rows) or 2 (4–6 rows), which gives at least 8 independent accumulators. With weights from
//! memory that does not matter, because memory is slower.

use std::arch::x86_64::*;

use super::{Kernel, Simd, tile_table};
use crate::gemm::product::{RegisterProduct, Tile};

/// A proof that this CPU has `avx512f`, `bw`, `dq` and `vl`, and with `BF16` also `avx512bf16`.
#[derive(Clone, Copy)]
pub(crate) struct Avx512<const BF16: bool>(());

impl<const BF16: bool> Avx512<BF16> {
    /// # Safety
    /// This CPU has the features listed at the type.
    pub(crate) unsafe fn new() -> Self {
        Avx512(())
    }

    #[inline(always)]
    fn round_bits(self, x: __m512) -> __m512i {
        // SAFETY: a value of `Avx512` proves that the CPU has AVX-512F.
        unsafe {
            let bits = _mm512_castps_si512(x);
            let lsb = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let bias = _mm512_add_epi32(lsb, _mm512_set1_epi32(0x7fff));
            let rounded = _mm512_add_epi32(bits, bias);
            // A NaN keeps its sign and becomes quiet.
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
            let quiet = _mm512_set1_epi32(0x0040_0000);
            let kept = _mm512_mask_or_epi32(rounded, nan, bits, quiet);
            _mm512_and_si512(kept, _mm512_set1_epi32(0xffff_0000_u32 as i32))
        }
    }
}

// SAFETY of every block below: a value of `Avx512` proves that the CPU has the features that its
// type lists. Pointers are valid for LANES elements by the contracts of the trait's functions;
// prefetch accepts any address. The transmutes are between 512- or 256-bit vector types, for which
// all bit patterns are valid.
#[allow(clippy::undocumented_unsafe_blocks)]
impl<const BF16: bool> Simd for Avx512<BF16> {
    const LANES: usize = 16;
    const BF16_DOT: bool = BF16;
    const TILE_ROWS: usize = 14;

    type F32 = __m512;
    type Pairs = __m512i;
    type F64 = [__m512d; 2];
    type Mask = __mmask16;

    #[inline(always)]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        #[inline(never)]
        #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
        fn without_bf16<K: Kernel, S: Simd>(kernel: K, s: S) -> K::Output {
            kernel.run(s)
        }
        #[inline(never)]
        #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
        fn with_bf16<K: Kernel, S: Simd>(kernel: K, s: S) -> K::Output {
            kernel.run(s)
        }
        unsafe { if BF16 { with_bf16(kernel, self) } else { without_bf16(kernel, self) } }
    }

    #[inline(always)]
    fn tile_vectors(rows: usize) -> usize {
        match rows {
            1..=3 => 8,
            4..=6 => 4,
            _ => 2,
        }
    }

    tile_table! {
        8 vectors: 1 2 3;
        4 vectors: 4 5 6;
        2 vectors: 1 2 3 4 5 6 7 8 9 10 11 12 13 14;
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> Self::F32 {
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, x: Self::F32) {
        unsafe { _mm512_storeu_ps(p, x) }
    }
    #[inline(always)]
    fn splat(self, x: f32) -> Self::F32 {
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    fn lt(self, a: Self::F32, b: Self::F32) -> Self::Mask {
        unsafe { _mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b) }
    }
    #[inline(always)]
    fn select(self, mask: Self::Mask, a: Self::F32, b: Self::F32) -> Self::F32 {
        unsafe { _mm512_mask_blend_ps(mask, b, a) }
    }
    #[inline(always)]
    fn sum(self, x: Self::F32) -> f32 {
        unsafe {
            let x = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x));
            let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps::<1>(x, x)))
        }
    }
    #[inline(always)]
    fn max_lane(self, x: Self::F32) -> f32 {
        unsafe {
            let x = _mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x));
            let x = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_max_ss(x, _mm_shuffle_ps::<1>(x, x)))
        }
    }
    #[inline(always)]
    fn scale(self, x: Self::F32, n: Self::F32) -> Self::F32 {
        unsafe { _mm512_scalef_ps(x, n) }
    }

    #[inline(always)]
    unsafe fn load_pairs(self, p: *const u32) -> Self::Pairs {
        unsafe { _mm512_loadu_si512(p.cast()) }
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
        unsafe { _mm512_set1_epi32(x as i32) }
    }
    #[inline(always)]
    fn widen_low(self, x: Self::Pairs) -> Self::F32 {
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(x)) }
    }
    #[inline(always)]
    fn widen_high(self, x: Self::Pairs) -> Self::F32 {
        unsafe {
            let mask = _mm512_set1_epi32(0xffff_0000_u32 as i32);
            _mm512_castsi512_ps(_mm512_and_si512(x, mask))
        }
    }
    #[inline(always)]
    fn dot_bf16(self, a: Self::Pairs, b: Self::Pairs, acc: Self::F32) -> Self::F32 {
        if BF16 {
            unsafe {
                let a = std::mem::transmute::<__m512i, __m512bh>(a);
                let b = std::mem::transmute::<__m512i, __m512bh>(b);
                _mm512_dpbf16_ps(acc, a, b)
            }
        } else {
            let acc = self.fma(self.widen_low(a), self.widen_low(b), acc);
            self.fma(self.widen_high(a), self.widen_high(b), acc)
        }
    }
    #[inline(always)]
    fn round_bf16(self, x: Self::F32) -> Self::F32 {
        unsafe { _mm512_castsi512_ps(self.round_bits(x)) }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut u16, x: Self::F32) {
        unsafe {
            if BF16 {
                // Unlike the other branch, this flushes subnormals to 0.
                let halves = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(x));
                _mm256_storeu_si256(p.cast(), halves);
            } else {
                let halves = _mm512_srli_epi32::<16>(self.round_bits(x));
                _mm256_storeu_si256(p.cast(), _mm512_cvtepi32_epi16(halves));
            }
        }
    }

    #[inline(always)]
    unsafe fn load_f64(self, p: *const f64) -> Self::F64 {
        unsafe { [_mm512_loadu_pd(p), _mm512_loadu_pd(p.add(8))] }
    }
    #[inline(always)]
    unsafe fn store_f64(self, p: *mut f64, x: Self::F64) {
        unsafe {
            _mm512_storeu_pd(p, x[0]);
            _mm512_storeu_pd(p.add(8), x[1]);
        }
    }
    #[inline(always)]
    fn add_f64(self, acc: Self::F64, x: Self::F32) -> Self::F64 {
        unsafe {
            let low = _mm512_cvtps_pd(_mm512_castps512_ps256(x));
            let high = _mm512_cvtps_pd(_mm512_extractf32x8_ps::<1>(x));
            [_mm512_add_pd(acc[0], low), _mm512_add_pd(acc[1], high)]
        }
    }
}
