//! `e^x`, one algorithm for every instruction set.
//!
//! `x = n·ln 2 + r` with integer n and |r| ≤ ln 2 / 2, so `e^x = 2^n · e^r`, and
//! `e^r ≈ 1 + r + r²·q(r)` with q of degree 4, interpolating `(e^r - 1 - r) / r²` at Chebyshev nodes:
//! the polynomial is off by a fifth of f32's rounding unit, the rest is rounding. Measured over all of
//! f32's range the result is within 1 ulp of the true value, 1.25 where there is no fused multiply-add.

use crate::simd::Simd;

/// `e^x` for every lane: +∞ above 88.73, NaN for NaN. Below -86.98 the true value
/// or 0, below -104 always 0.
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::F32) -> S::F32 {
    // ln 2 in two parts: n · LN2_HIGH is exact for every n that occurs.
    const LN2_HIGH: f32 = 0.693_145_75;
    const LN2_LOW: f32 = 1.428_606_8e-6;
    // Adding and subtracting it rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0; // 1.5 · 2^23
    const Q: [f32; 5] = [0.5, 0.166_665_76, 0.041_666_552, 0.008_363_233, 0.001_392_625_f32];

    // The bounds come first, so that a NaN in x passes both.
    let x = s.max(s.splat(-110.0), s.min(s.splat(89.0), x));
    let n = s.sub(s.fma(x, s.splat(std::f32::consts::LOG2_E), s.splat(ROUND)), s.splat(ROUND));
    let r = s.fma(n, s.splat(-LN2_HIGH), x);
    let r = s.fma(n, s.splat(-LN2_LOW), r);
    let mut q = s.splat(Q[4]);
    q = s.fma(q, r, s.splat(Q[3]));
    q = s.fma(q, r, s.splat(Q[2]));
    q = s.fma(q, r, s.splat(Q[1]));
    q = s.fma(q, r, s.splat(Q[0]));
    q = s.fma(q, r, s.splat(1.0));
    let e_r = s.fma(q, r, s.splat(1.0));
    s.scale(e_r, n)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::isa::Supported;
    use crate::simd::Kernel;

    /// Largest error in units in the last place, where results are normal numbers.
    fn max_ulp(isa: Isa) -> f64 {
        if isa == Isa::Portable { 1.25 } else { 1.0 }
    }
    const NORMAL: f32 = -86.98;

    struct ExpAll<'a>(&'a mut [f32]);

    impl Kernel for ExpAll<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            for x in self.0.chunks_mut(S::LANES) {
                let y = exp(s, s.load_some(x));
                s.store_some(x, y);
            }
        }
    }

    fn each_isa(test: impl Fn(Isa, &dyn Fn(&[f32]) -> Vec<f32>)) {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_supported()) {
            test(isa, &|x| {
                let mut y = x.to_vec();
                Supported::new(isa).unwrap().run(ExpAll(&mut y));
                y
            });
        }
    }

    #[test]
    fn within_the_stated_error_of_f64() {
        let x: Vec<f32> =
            (0..2_000_000).map(|i| -87.0 + i as f32 * (175.7 / 2_000_000.0)).collect();
        each_isa(|isa, exp| {
            for (&x, y) in x.iter().zip(exp(&x)).filter(|(x, _)| **x > NORMAL) {
                let truth = f64::from(x).exp();
                let as_f32 = truth as f32;
                let ulp = f64::from(f32::from_bits(as_f32.to_bits() + 1)) - f64::from(as_f32);
                let error = (f64::from(y) - truth).abs() / ulp;
                assert!(error <= max_ulp(isa), "{isa}: exp({x}) = {y}, {error} ulp off");
            }
        });
    }

    #[test]
    fn ends_of_the_range() {
        each_isa(|isa, exp| {
            let inf = f32::INFINITY;
            let y = exp(&[0.0, -0.0, -inf, -1e30, -104.1, inf, 1e30, 88.8, f32::NAN, -90.0]);
            assert_eq!(y[..8], [1.0, 1.0, 0.0, 0.0, 0.0, inf, inf, inf], "{isa}");
            assert!(y[8].is_nan(), "{isa}");
            assert!((0.0..1e-38).contains(&y[9]), "{isa}");
        });
    }
}
