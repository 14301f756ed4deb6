//! Tests of the tile kernels on the software model against plain sums, and of the CPU's tile
//! registers, where it has them, against the model.

use half::bf16;
use proptest::prelude::*;

use super::*;
use crate::gemm::ROW_WORDS;
use crate::simd::Portable;

/// Operands of one kernel call: `rows` rows of A, `panels` panels of W, and the C to accumulate
/// onto.
#[derive(Clone, Debug)]
struct Call {
    rows: usize,
    steps: usize,
    panels: usize,
    resume: bool,
    bias: bool,
    seed: u32,
}

/// Unused words between panels and unused floats between rows of C.
const GAP: usize = 3;

impl Call {
    /// A value with at most 8 significant bits: exact in bfloat16.
    fn number(&self, i: usize) -> f32 {
        let mixed = (i as u32 ^ self.seed).wrapping_mul(0x9e37_79b9);
        ((mixed >> 24) as f32 - 127.0) * 2.0_f32.powi((mixed >> 8 & 7) as i32 - 9)
    }

    fn words(&self, n: usize, salt: usize) -> Vec<u32> {
        let half = |i| u32::from(bf16::from_f32(self.number(i + salt)).to_bits());
        (0..n).map(|i| half(2 * i) | half(2 * i + 1) << 16).collect()
    }

    fn a(&self) -> Vec<u32> {
        self.words((self.rows - 1) * ROW_STRIDE + self.steps, 1 << 20)
    }

    fn panel_stride(&self) -> usize {
        self.steps * PANEL + GAP
    }

    fn w(&self) -> Vec<u32> {
        self.words(self.panels * self.panel_stride(), 1 << 21)
    }

    fn c_stride(&self) -> usize {
        self.panels * PANEL + GAP
    }

    fn c(&self) -> Vec<f32> {
        (0..self.rows * self.c_stride()).map(|i| self.number(i + (1 << 22))).collect()
    }

    fn bias(&self) -> Vec<f32> {
        (0..self.panels * PANEL).map(|i| self.number(i + (1 << 23))).collect()
    }

    /// C as the kernel computes it.
    fn computed<U: TileUnit>(&self) -> Vec<f32> {
        let (a, w, mut c, bias) = (self.a(), self.w(), self.c(), self.bias());
        let tile = Tile {
            a: a.as_ptr(),
            w: w.as_ptr(),
            panel_stride: self.panel_stride(),
            steps: self.steps,
            c: c.as_mut_ptr(),
            c_stride: self.c_stride(),
            resume: self.resume,
            bias: if self.bias { bias.as_ptr() } else { std::ptr::null() },
            prefetch: (w.as_ptr(), PANEL),
            prefetch_a: (a.as_ptr(), 0),
        };
        let vectors = self.panels * PANEL / Portable::LANES;
        // SAFETY: `a`, `w`, `c` and `bias` are sized for `rows`, `steps` and `panels`.
        unsafe { TilePairs::<U>::tiles(Portable, self.rows, vectors, tile) };
        c
    }

    /// The expected C: plain sums in f64 where the kernel writes, the initial values elsewhere.
    fn wanted(&self) -> Vec<f64> {
        let (a, w, c, bias) = (self.a(), self.w(), self.c(), self.bias());
        let halves = |word: u32| {
            [word << 16, word & 0xffff_0000].map(|bits| f64::from(f32::from_bits(bits)))
        };
        let mut out: Vec<f64> = c.iter().map(|&x| f64::from(x)).collect();
        for row in 0..self.rows {
            for column in 0..self.panels * PANEL {
                let c = &mut out[row * self.c_stride() + column];
                *c *= f64::from(u8::from(self.resume));
                for step in 0..self.steps {
                    let at = column / PANEL * self.panel_stride() + step * PANEL + column % PANEL;
                    let (a, w) = (halves(a[row * ROW_STRIDE + step]), halves(w[at]));
                    *c += a[0] * w[0] + a[1] * w[1];
                }
                *c += f64::from(bias[column]) * f64::from(u8::from(self.bias));
            }
        }
        out
    }
}

fn calls() -> impl Strategy<Value = Call> {
    (1_usize..=32, 0..=ROW_WORDS, 1_usize..=5, any::<bool>(), any::<bool>(), any::<u32>()).prop_map(
        |(rows, steps, panels, resume, bias, seed)| Call {
            rows,
            steps,
            panels,
            resume,
            bias,
            seed,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn every_shape_is_the_plain_sum(call in calls()) {
        for (i, (got, want)) in call.computed::<TileModel>().iter().zip(call.wanted()).enumerate() {
            // Products of 8-bit significands and their sums nearly fit f32's 24 bits.
            let off = (f64::from(*got) - want).abs();
            prop_assert!(off <= 1e-5 * want.abs().max(1e3), "element {i}: {got}, not {want}");
        }
    }

    #[test]
    fn a_row_is_the_same_alone_and_k_may_be_cut_between_groups(
        call in calls(), cut in 0_usize..=16,
    ) {
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        let whole = call.computed::<TileModel>();
        let first = Call { rows: 1, ..call.clone() }.computed::<TileModel>();
        let columns = call.panels * PANEL;
        prop_assert_eq!(bits(&whole[..columns]), bits(&first[..columns]));

        let (a, w, mut c, bias) = (call.a(), call.w(), call.c(), call.bias());
        let cut = (cut * PAIRS).min(call.steps);
        for (from, to, last) in [(0, cut, false), (cut, call.steps, true)] {
            let tile = Tile {
                a: a[from..].as_ptr(),
                w: w[from * PANEL..].as_ptr(),
                panel_stride: call.panel_stride(),
                steps: to - from,
                c: c.as_mut_ptr(),
                c_stride: call.c_stride(),
                resume: call.resume || last,
                bias: if call.bias && last { bias.as_ptr() } else { std::ptr::null() },
                prefetch: (w.as_ptr(), 0),
                prefetch_a: (a.as_ptr(), 0),
            };
            let vectors = columns / Portable::LANES;
            // SAFETY: `a`, `w`, `c` and `bias` are sized for `rows`, `steps` and `panels`.
            unsafe { TilePairs::<TileModel>::tiles(Portable, call.rows, vectors, tile) };
        }
        prop_assert_eq!(bits(&c), bits(&whole));
    }
}

/// One element of C + A · B, with k given as (even, odd) pairs.
fn element(c: f32, a: &[[f32; 2]], b: &[[f32; 2]]) -> f32 {
    let word = |x: &[f32; 2]| x[0].to_bits() >> 16 | x[1].to_bits() & 0xffff_0000;
    let mut unit = TileModel::default();
    unit.configure(TileShapes { top: 1, bottom: 0, pairs: a.len() });
    let (a, b): (Vec<_>, Vec<_>) = (a.iter().map(word).collect(), b.iter().map(word).collect());
    let b: Vec<u32> = b.iter().flat_map(|&word| [word; TILE_WORDS]).collect();
    let mut row = [c; TILE_WORDS];
    // SAFETY: `row`, `a` and `b` hold the rows and words of the configured shapes.
    unsafe {
        unit.load::<0>(row.as_ptr().cast(), TILE_WORDS);
        unit.load::<4>(a.as_ptr(), a.len());
        unit.load::<6>(b.as_ptr(), TILE_WORDS);
        unit.multiply::<0, 4, 6>();
        unit.store::<0>(row.as_mut_ptr(), TILE_WORDS);
    }
    row[0]
}

#[test]
fn even_and_odd_k_are_summed_by_themselves_and_then_added_to_c() {
    const BIG: f32 = 16_777_216.0; // 2^24: adding 1 rounds away
    let one = [1.0, 1.0];
    // Even k: big, then 1, then -big, so the 1 is rounded away. The odd k's 1 would be lost as well
    // if both shared one accumulator; they do not.
    let a = [[BIG, 0.0], [1.0, 1.0], [-BIG, 0.0]];
    assert_eq!(element(0.0, &a, &[one; 3]), 1.0);
    // C is added last: 1 + 1 = 2 is not lost on a big C, whose spacing is 2; adding 1 twice would
    // be.
    assert_eq!(element(BIG, &[[1.0, 1.0]], &[one]), BIG + 2.0);
    // Fused: 1.5 · 1.5 = 2.25 is exact, and so is the sum.
    assert_eq!(element(0.0, &[[1.5, 0.0]], &[[1.5, 0.0]]), 2.25);
}

#[test]
fn subnormal_numbers_are_zeros_and_ties_go_to_even() {
    let tiny = f32::from_bits(0x0001_0000); // a subnormal bfloat16
    assert_eq!(element(0.0, &[[tiny, 0.0]], &[[1e30, 0.0]]), 0.0);
    assert_eq!(element(tiny, &[[0.0, 0.0]], &[[0.0, 0.0]]).to_bits(), 0);
    let small = 2.0_f32.powi(-70);
    assert_eq!(element(0.0, &[[small, 0.0]], &[[small, 0.0]]).to_bits(), 0);
    assert_eq!(element(0.0, &[[-small, 0.0]], &[[small, 0.0]]), 0.0);
    const SPACING_2: f32 = 16_777_216.0;
    assert_eq!(element(SPACING_2, &[[1.0, 0.0]], &[[1.0, 0.0]]), SPACING_2);
    assert_eq!(element(SPACING_2 + 2.0, &[[1.0, 0.0]], &[[1.0, 0.0]]), SPACING_2 + 4.0);
}

#[test]
fn infinities_and_nans_come_through() {
    let inf = f32::INFINITY;
    assert_eq!(element(0.0, &[[inf, 1.0]], &[[1.0, 1.0]]), inf);
    assert!(element(0.0, &[[inf, 0.0]], &[[0.0, 0.0]]).is_nan());
    assert!(element(f32::NAN, &[[0.0, 0.0]], &[[0.0, 0.0]]).is_nan());
}

#[test]
#[cfg(target_arch = "x86_64")]
fn the_cpus_tiles_return_the_models_bits() {
    if unavailable().is_some() {
        return; // nothing to compare with
    }
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(200));
    let result = runner.run(&calls(), |call| {
        let bits = |x: Vec<f32>| x.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        prop_assert_eq!(bits(call.computed::<Amx>()), bits(call.computed::<TileModel>()));
        Ok(())
    });
    drop(TileRelease);
    assert!(result.is_ok(), "{result:?}");
}
