//! Dot products and norms of f32 vectors.

use crate::isa::{Supported, Work};

/// `Σ aᵢ·bᵢ`, in f32.
///
/// # Panics
/// If the lengths differ.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "lengths of a dot product");
    Supported::best().run(Dot { a, b })
}

/// `Σ aᵢ²`, in f32.
pub fn squared_norm(a: &[f32]) -> f32 {
    dot(a, a)
}

/// The Euclidean norm `√Σ aᵢ²`, in f32.
pub fn norm(a: &[f32]) -> f32 {
    squared_norm(a).sqrt()
}

struct Dot<'a> {
    a: &'a [f32],
    b: &'a [f32],
}

impl Work for Dot<'_> {
    type Output = f32;

    /// Element `i` is added to sum `i % WIDTH`. The sums are then reduced as four vectors, (0 + 1)
    /// + (2 + 3), and the lanes of the result by repeated halving.
    #[inline(always)]
    fn run<const WIDTH: usize, const FUSED: bool>(self) -> f32 {
        let mut sums = [0.0; WIDTH];
        let (a, a_rest) = self.a.as_chunks::<WIDTH>();
        let (b, b_rest) = self.b.as_chunks::<WIDTH>();
        for (a, b) in a.iter().zip(b) {
            add_products::<WIDTH, FUSED>(&mut sums, a, b);
        }
        let lanes = WIDTH / 4;
        if !a_rest.is_empty() {
            // The last partial vector is padded with zeros; adding their product turns a sum of -0
            // into +0. Vectors beyond it are padded with -0, which leaves every sum unchanged.
            let (mut a, mut b) = ([-0.0; WIDTH], [0.0; WIDTH]);
            a[..a_rest.len().next_multiple_of(lanes)].fill(0.0);
            a[..a_rest.len()].copy_from_slice(a_rest);
            b[..b_rest.len()].copy_from_slice(b_rest);
            add_products::<WIDTH, FUSED>(&mut sums, &a, &b);
        }
        for i in 0..lanes {
            sums[i] = (sums[i] + sums[i + lanes]) + (sums[i + 2 * lanes] + sums[i + 3 * lanes]);
        }
        let mut half = lanes / 2;
        while half > 0 {
            for i in 0..half {
                sums[i] += sums[i + half];
            }
            half /= 2;
        }
        sums[0]
    }
}

/// `sum += a · b` for each sum: one flat loop, which the compiler vectorizes.
#[inline(always)]
fn add_products<const WIDTH: usize, const FUSED: bool>(
    sums: &mut [f32; WIDTH],
    a: &[f32; WIDTH],
    b: &[f32; WIDTH],
) {
    for ((sum, &a), &b) in sums.iter_mut().zip(a).zip(b) {
        *sum = if FUSED { a.mul_add(b, *sum) } else { a * b + *sum };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dot_of_every_length() {
        for n in 0..200 {
            let a: Vec<f32> = (0..n).map(|i| i as f32 - 7.0).collect();
            let b: Vec<f32> = (0..n).map(|i| (i % 5) as f32).collect();
            // Small integers: exact in f32 in any order.
            let want: f32 = a.iter().zip(&b).map(|(a, b)| a * b).sum();
            assert_eq!(dot(&a, &b), want, "{n}");
        }
    }

    /// The same summation order, one element at a time.
    fn in_order(a: &[f32], b: &[f32], width: usize, fused: bool) -> f32 {
        let mut sums = vec![0.0_f32; width];
        let lanes = width / 4;
        for i in 0..a.len().next_multiple_of(lanes) {
            let at = |x: &[f32]| x.get(i).copied().unwrap_or(0.0);
            let sum = &mut sums[i % width];
            *sum = if fused { at(a).mul_add(at(b), *sum) } else { at(a) * at(b) + *sum };
        }
        let vector = |v: usize, lane: usize| sums[v * lanes + lane];
        let of_vectors =
            |lane| (vector(0, lane) + vector(1, lane)) + (vector(2, lane) + vector(3, lane));
        let mut row: Vec<f32> = (0..lanes).map(of_vectors).collect();
        while row.len() > 1 {
            let (low, high) = row.split_at(row.len() / 2);
            row = low.iter().zip(high).map(|(low, high)| low + high).collect();
        }
        row[0]
    }

    /// Numbers of many magnitudes, some so small that their products underflow to +0 or -0.
    fn numbers(seed: usize, count: usize) -> Vec<f32> {
        let mut state = seed as u32 | 1;
        let number = |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let exponent = [0, 3, -4, -70][(state >> 4) as usize % 4];
            ((state >> 8) as f32 / 8_388_608.0 - 1.0) * 2.0_f32.powi(exponent)
        };
        (0..count).map(number).collect()
    }

    #[test]
    fn every_instruction_set_sums_in_the_order_of_its_width() {
        let mut orders_differ = 0;
        for n in 0..600 {
            let (a, b) = (numbers(2 * n, n), numbers(7 * n + 1, n));
            for isa in Supported::all() {
                let (width, fused) = isa.shape();
                let want = in_order(&a, &b, width, fused);
                let got = isa.run(Dot { a: &a, b: &b });
                assert_eq!(got.to_bits(), want.to_bits(), "{n} elements, {isa:?}");
                let in_another = in_order(&a, &b, 2 * width, fused);
                orders_differ += u32::from(want != in_another);
            }
        }
        // Otherwise the numbers would be too simple to distinguish one order from another.
        assert!(orders_differ > 500, "{orders_differ}");
    }

    #[test]
    fn a_sum_of_minus_zero_is_kept_only_in_unused_vectors() {
        // Their product underflows: fused with +0 it rounds to -0.
        let (tiny, minus) = (1e-30, -1e-30);
        for isa in Supported::all() {
            let (width, fused) = isa.shape();
            for n in 1..=2 * width {
                let (a, b) = (vec![tiny; n], vec![minus; n]);
                let want = in_order(&a, &b, width, fused);
                assert_eq!(isa.run(Dot { a: &a, b: &b }).to_bits(), want.to_bits(), "{n} {isa:?}");
            }
        }
    }
}
