//! `e^x`, `2^y` and silu, by one algorithm for all instruction sets.
//!
//! `x = n·ln 2 + r` with integer n and |r| ≤ ln 2 / 2, so `e^x = 2^n · e^r`, and
//! `e^r ≈ 1 + r + r²·q(r)` with q of degree 4, interpolating `(e^r - 1 - r) / r²` at Chebyshev
//! nodes. The polynomial's error is a fifth of f32's unit roundoff; the rest is rounding. Measured
//! over f32's whole range, the result is within 1 ulp of the true value, or 1.25 ulp without fused
//! multiply-add.
//!
//! `2^y` needs neither the multiplication nor the two-part reduction, because `y = n + r` is exact.
//! Softmax uses it, with log₂e folded into the scale: 11 operations per vector of scores instead of
//! 15 for `e^x`.
//!
//! Both process several vectors in lockstep: one vector has a latency of about 50 cycles, and
//! out-of-order execution does not reach far enough to overlap vectors that are computed one after
//! the other.

use super::Simd;

/// Adding and then subtracting it rounds to the nearest integer.
const ROUND: f32 = 12_582_912.0; // 1.5 · 2^23

/// `e^x` of every lane: +∞ above 88.73, NaN for NaN. Below -86.98 it is the true value or 0; below
/// -104 it is always 0.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // i indexes all arrays alike
pub(crate) fn exp<S: Simd, const N: usize>(s: S, mut x: [S::F32; N]) -> [S::F32; N] {
    // ln 2 in two parts; n · LN2_HIGH is exact for every n in range.
    const LN2_HIGH: f32 = 0.693_145_75;
    const LN2_LOW: f32 = 1.428_606_8e-6;
    const E_R: [f32; 7] =
        [1.0, 1.0, 0.5, 0.166_665_76, 0.041_666_552, 0.008_363_233, 0.001_392_625_f32];

    let mut n = x;
    for i in 0..N {
        // The bounds are the first arguments, so that both operations return a NaN in x.
        x[i] = s.max(s.splat(-110.0), s.min(s.splat(89.0), x[i]));
        n[i] = s.fma(x[i], s.splat(std::f32::consts::LOG2_E), s.splat(ROUND));
    }
    let mut r = x;
    for i in 0..N {
        n[i] = s.sub(n[i], s.splat(ROUND));
        r[i] = s.fma(n[i], s.splat(-LN2_HIGH), x[i]);
        r[i] = s.fma(n[i], s.splat(-LN2_LOW), r[i]);
    }
    scaled_polynomial(s, E_R, r, n)
}

/// `2^y` of every lane up to 128 (unspecified above), within 1 ulp, or 1.25 ulp without fused
/// multiply-add. Exactly 1 for 0, and NaN for NaN. Below -125.5 it is the true value or 0; below
/// -150 it is always 0.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // i indexes all arrays alike
pub(crate) fn exp2<S: Simd, const N: usize>(s: S, mut y: [S::F32; N]) -> [S::F32; N] {
    // The largest error relative to 2^r is 1.6e-8, a quarter of f32's unit roundoff.
    const POWER_R: [f32; 7] = [
        1.0,
        std::f32::consts::LN_2,
        0.240_226_48,
        0.055_503_324,
        0.009_618_438,
        0.001_339_886_8,
        0.000_153_533_28,
    ];
    let mut n = y;
    for i in 0..N {
        y[i] = s.max(s.splat(-160.0), y[i]);
        n[i] = s.add(y[i], s.splat(ROUND));
    }
    let mut r = y;
    for i in 0..N {
        n[i] = s.sub(n[i], s.splat(ROUND));
        r[i] = s.sub(y[i], n[i]);
    }
    scaled_polynomial(s, POWER_R, r, n)
}

/// `2^(scale·x + shift)` of `N` vectors of scores x, by [`exp2`]; scale and shift are in base 2.
#[inline(always)]
pub(crate) fn exp2_scaled<S: Simd, const N: usize>(
    s: S,
    scores: &[f32],
    scale: S::F32,
    shift: S::F32,
) -> [S::F32; N] {
    let mut y = [shift; N];
    for (y, x) in y.iter_mut().zip(scores.chunks_exact(S::LANES)) {
        *y = s.fma(s.load_some(x), scale, shift);
    }
    exp2(s, y)
}

/// `2^n · Σ cᵢ·rⁱ`, by Horner's rule.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // i indexes all arrays alike
fn scaled_polynomial<S: Simd, const N: usize>(
    s: S,
    c: [f32; 7],
    r: [S::F32; N],
    n: [S::F32; N],
) -> [S::F32; N] {
    let [rest @ .., highest] = c;
    let mut sum = [s.splat(highest); N];
    for c in rest.into_iter().rev() {
        for i in 0..N {
            sum[i] = s.fma(sum[i], r[i], s.splat(c));
        }
    }
    for i in 0..N {
        sum[i] = s.scale(sum[i], n[i]);
    }
    sum
}

/// `x / (1 + e^-x)` of `N` vectors.
#[inline(always)]
pub(crate) fn silu<S: Simd, const N: usize>(s: S, mut x: [S::F32; N]) -> [S::F32; N] {
    let mut minus_x = x;
    for minus_x in &mut minus_x {
        *minus_x = s.sub(s.splat(0.0), *minus_x);
    }
    for (x, e) in x.iter_mut().zip(exp(s, minus_x)) {
        *x = s.div(*x, s.add(s.splat(1.0), e));
    }
    x
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::Kernel;
    use super::*;
    use crate::cpu::{Isa, Supported};

    /// Error bound in ulp, where results are normal numbers.
    fn max_ulp(isa: Isa) -> f64 {
        if isa == Isa::Portable { 1.25 } else { 1.0 }
    }
    const NORMAL: f64 = -86.98;

    /// Applies the function to `N` vectors at a time.
    struct Each<'a, const N: usize> {
        base_2: bool,
        values: &'a mut [f32],
    }

    impl<const N: usize> Kernel for Each<'_, N> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            for x in self.values.chunks_mut(N * S::LANES) {
                let mut v = [s.splat(0.0); N];
                for (v, x) in v.iter_mut().zip(x.chunks(S::LANES)) {
                    *v = s.load_some(x);
                }
                let v = if self.base_2 { exp2(s, v) } else { exp(s, v) };
                for (v, x) in v.into_iter().zip(x.chunks_mut(S::LANES)) {
                    s.store_some(x, v);
                }
            }
        }
    }

    fn each_isa(base_2: bool, test: impl Fn(Isa, &dyn Fn(&[f32]) -> Vec<f32>)) {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_supported()) {
            test(isa, &|x| {
                let mut y = x.to_vec();
                Supported::new(isa).unwrap().run(Each::<1> { base_2, values: &mut y });
                y
            });
        }
    }

    fn assert_within_stated_error(base_2: bool, from: f64, to: f64, truth: impl Fn(f64) -> f64) {
        let n = 2_000_000;
        let x: Vec<f32> =
            (0..n).map(|i| (from + f64::from(i) * (to - from) / f64::from(n)) as f32).collect();
        each_isa(base_2, |isa, exp| {
            for (&x, y) in x.iter().zip(exp(&x)) {
                let truth = truth(f64::from(x));
                let as_f32 = truth as f32;
                let ulp = f64::from(f32::from_bits(as_f32.to_bits() + 1)) - f64::from(as_f32);
                let error = (f64::from(y) - truth).abs() / ulp;
                assert!(error <= max_ulp(isa), "{isa}: f({x}) = {y}, {error} ulp off");
            }
        });
    }

    #[test]
    fn within_the_stated_error_of_f64() {
        assert_within_stated_error(false, NORMAL, 88.7, f64::exp);
        assert_within_stated_error(true, -125.49, 127.9, f64::exp2);
    }

    #[test]
    fn several_vectors_have_the_bits_of_each_alone() {
        let edges = [0.0, -0.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -1e30, 88.8, -126.0];
        let between = (0..1016).map(|i| (i as f32 - 900.0) / 7.3);
        let x: Vec<f32> = edges.into_iter().chain(between).collect();
        for base_2 in [false, true] {
            each_isa(base_2, |isa, alone| {
                let mut together = x.clone();
                Supported::new(isa).unwrap().run(Each::<4> { base_2, values: &mut together });
                let bits = |y: &[f32]| y.iter().map(|y| y.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&together), bits(&alone(&x)), "{isa}");
            });
        }
    }

    #[test]
    fn ends_of_the_range() {
        let inf = f32::INFINITY;
        each_isa(false, |isa, exp| {
            let y = exp(&[0.0, -0.0, -inf, -1e30, -104.1, inf, 1e30, 88.8, f32::NAN, -90.0]);
            assert_eq!(y[..8], [1.0, 1.0, 0.0, 0.0, 0.0, inf, inf, inf], "{isa}");
            assert!(y[8].is_nan(), "{isa}");
            assert!((0.0..1e-38).contains(&y[9]), "{isa}");
        });
        each_isa(true, |isa, exp2| {
            let y = exp2(&[0.0, -0.0, -inf, -1e30, -150.1, 128.0, 1.0, -3.0, f32::NAN, -130.0]);
            assert_eq!(y[..8], [1.0, 1.0, 0.0, 0.0, 0.0, inf, 2.0, 0.125], "{isa}");
            assert!(y[8].is_nan(), "{isa}");
            assert!((0.0..1e-38).contains(&y[9]), "{isa}");
        });
    }
}
