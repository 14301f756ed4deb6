//! `e^x`, one algorithm for every instruction set.
//!
//! `x = n·ln 2 + r` with integer n and |r| ≤ ln 2 / 2, so `e^x = 2^n · e^r`, and
//! `e^r ≈ 1 + r + r²·q(r)` with q of degree 4, interpolating `(e^r - 1 - r) / r²` at Chebyshev nodes:
//! the polynomial itself is exact to a hundredth of an ulp, what remains is rounding. Measured over all
//! of f32's range the result is within [`MAX_ULP`] of the true value.

use crate::simd::Simd;

/// Largest error of [`exp`], in units in the last place, where the result is above [`FLUSHED`]'s.
#[cfg(test)]
const MAX_ULP: f64 = 2.0;
/// At and below this, [`exp`] is 0; true values there are below 1.7e-38.
#[cfg(test)]
const FLUSHED: f32 = -86.98;

/// `e^x` for every lane: +∞ above 88.73, 0 below -87 (no subnormals), NaN for NaN.
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::F32) -> S::F32 {
    // ln 2 in two parts: n · LN2_HIGH is exact for every n that occurs.
    const LN2_HIGH: f32 = 0.693_145_75;
    const LN2_LOW: f32 = 1.428_606_8e-6;
    // Adding and subtracting it rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0; // 1.5 · 2^23
    const Q: [f32; 5] = [0.5, 0.166_665_76, 0.041_666_552, 0.008_363_233, 0.001_392_625_f32];

    // The bounds come first, so that a NaN in x passes both.
    let x = s.max(s.splat(-87.5), s.min(s.splat(89.0), x));
    let n = s.sub(s.fma(x, s.splat(std::f32::consts::LOG2_E), s.splat(ROUND)), s.splat(ROUND));
    let r = s.fma(n, s.splat(-LN2_HIGH), x);
    let r = s.fma(n, s.splat(-LN2_LOW), r);
    let mut q = s.splat(Q[4]);
    q = s.fma(q, r, s.splat(Q[3]));
    q = s.fma(q, r, s.splat(Q[2]));
    q = s.fma(q, r, s.splat(Q[1]));
    q = s.fma(q, r, s.splat(Q[0]));
    let e_r = s.add(s.fma(s.mul(r, r), q, r), s.splat(1.0));
    // 2^n in two factors: n = 128 is no f32 exponent, and n = -126 flushes to 0.
    let half = s.pow2(s.sub(n, s.splat(1.0)));
    s.mul(s.mul(e_r, half), s.splat(2.0))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::isa::Supported;
    use crate::simd::Kernel;

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
            for (&x, y) in x.iter().zip(exp(&x)).filter(|(x, _)| **x > FLUSHED) {
                let truth = f64::from(x).exp();
                let as_f32 = truth as f32;
                let ulp = f64::from(f32::from_bits(as_f32.to_bits() + 1)) - f64::from(as_f32);
                let error = (f64::from(y) - truth).abs() / ulp;
                assert!(error <= MAX_ULP, "{isa}: exp({x}) = {y}, {error} ulp off");
            }
        });
    }

    #[test]
    fn ends_of_the_range() {
        each_isa(|isa, exp| {
            let inf = f32::INFINITY;
            let y = exp(&[0.0, -0.0, -inf, -1e30, inf, 1e30, 88.8, f32::NAN, -87.1]);
            assert_eq!(y[..7], [1.0, 1.0, 0.0, 0.0, inf, inf, inf], "{isa}");
            assert!(y[7].is_nan(), "{isa}");
            assert_eq!(y[8], 0.0, "{isa}");
        });
    }
}
