//! Portable Rust: four lanes, which the compiler maps to the target's vectors.

use super::{Kernel, Simd, tile_table};
use crate::gemm::product::{RegisterProduct, Tile};

/// No vector instructions beyond what the compiler emits by itself.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

const LANES: usize = 4;

#[inline(always)]
fn map(a: [f32; LANES], f: impl Fn(f32) -> f32) -> [f32; LANES] {
    [f(a[0]), f(a[1]), f(a[2]), f(a[3])]
}

#[inline(always)]
fn zip(a: [f32; LANES], b: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> [f32; LANES] {
    [f(a[0], b[0]), f(a[1], b[1]), f(a[2], b[2]), f(a[3], b[3])]
}

#[inline(always)]
fn round_bf16(x: f32) -> f32 {
    half::bf16::from_f32(x).to_f32()
}

impl Simd for Portable {
    const LANES: usize = LANES;
    const BF16_DOT: bool = false;
    const TILE_ROWS: usize = 4;

    type F32 = [f32; LANES];
    type Pairs = [u32; LANES];
    type F64 = [f64; LANES];
    type Mask = [bool; LANES];

    #[inline(always)]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        #[inline(never)]
        fn compiled<K: Kernel>(kernel: K) -> K::Output {
            kernel.run(Portable)
        }
        compiled(kernel)
    }

    #[inline(always)]
    fn tile_vectors(_rows: usize) -> usize {
        2
    }

    tile_table! {
        2 vectors: 1 2 3 4;
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> Self::F32 {
        // SAFETY: by the trait's contract `p` is valid for reading LANES f32.
        unsafe { p.cast::<[f32; LANES]>().read() }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, x: Self::F32) {
        // SAFETY: by the trait's contract `p` is valid for writing LANES f32.
        unsafe { p.cast::<[f32; LANES]>().write(x) }
    }
    #[inline(always)]
    fn splat(self, x: f32) -> Self::F32 {
        [x; LANES]
    }
    #[inline(always)]
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn fma(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32 {
        // Not `mul_add`: without an FMA instruction it is a slow library call.
        self.add(self.mul(a, b), c)
    }
    #[inline(always)]
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn lt(self, a: Self::F32, b: Self::F32) -> Self::Mask {
        [a[0] < b[0], a[1] < b[1], a[2] < b[2], a[3] < b[3]]
    }
    #[inline(always)]
    fn select(self, mask: Self::Mask, a: Self::F32, b: Self::F32) -> Self::F32 {
        let pick = |i: usize| if mask[i] { a[i] } else { b[i] };
        [pick(0), pick(1), pick(2), pick(3)]
    }
    #[inline(always)]
    fn sum(self, x: Self::F32) -> f32 {
        (x[0] + x[2]) + (x[1] + x[3])
    }
    #[inline(always)]
    fn max_lane(self, x: Self::F32) -> f32 {
        x.into_iter().fold(f32::NEG_INFINITY, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn scale(self, x: Self::F32, n: Self::F32) -> Self::F32 {
        // 2x · 2^(n-1), because 2^128 is not an f32; n - 1 = -127 yields the bits of 0.
        let pow2 =
            |n: f32| f32::from_bits((((n as i32).clamp(-127, 128) + 126).max(0) as u32) << 23);
        zip(x, n, |x, n| x * 2.0 * pow2(n))
    }

    #[inline(always)]
    unsafe fn load_pairs(self, p: *const u32) -> Self::Pairs {
        // SAFETY: by the trait's contract `p` is valid for reading LANES words.
        unsafe { p.cast::<[u32; LANES]>().read() }
    }
    #[inline(always)]
    fn prefetch(self, _: *const u32) {}
    #[inline(always)]
    fn prefetch_l2(self, _: *const u32) {}
    #[inline(always)]
    fn splat_pair(self, x: u32) -> Self::Pairs {
        [x; LANES]
    }
    #[inline(always)]
    fn widen_low(self, x: Self::Pairs) -> Self::F32 {
        x.map(|x| f32::from_bits(x << 16))
    }
    #[inline(always)]
    fn widen_high(self, x: Self::Pairs) -> Self::F32 {
        x.map(|x| f32::from_bits(x & 0xffff_0000))
    }
    #[inline(always)]
    fn dot_bf16(self, a: Self::Pairs, b: Self::Pairs, acc: Self::F32) -> Self::F32 {
        let acc = self.fma(self.widen_low(a), self.widen_low(b), acc);
        self.fma(self.widen_high(a), self.widen_high(b), acc)
    }
    #[inline(always)]
    fn round_bf16(self, x: Self::F32) -> Self::F32 {
        map(x, round_bf16)
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut u16, x: Self::F32) {
        // SAFETY: by the trait's contract `p` is valid for writing LANES u16.
        unsafe { p.cast::<[u16; LANES]>().write(x.map(|x| half::bf16::from_f32(x).to_bits())) }
    }

    #[inline(always)]
    unsafe fn load_f64(self, p: *const f64) -> Self::F64 {
        // SAFETY: by the trait's contract `p` is valid for reading LANES f64.
        unsafe { p.cast::<[f64; LANES]>().read() }
    }
    #[inline(always)]
    unsafe fn store_f64(self, p: *mut f64, x: Self::F64) {
        // SAFETY: by the trait's contract `p` is valid for writing LANES f64.
        unsafe { p.cast::<[f64; LANES]>().write(x) }
    }
    #[inline(always)]
    fn add_f64(self, acc: Self::F64, x: Self::F32) -> Self::F64 {
        let mut sum = acc;
        for (sum, x) in sum.iter_mut().zip(x) {
            *sum += f64::from(x);
        }
        sum
    }
}
