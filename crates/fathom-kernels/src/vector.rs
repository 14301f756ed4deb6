//! Arithmetic on vectors in host memory, for analyses: fast, and summed in one fixed order, so that the
//! same machine gives the same bits however the rows are batched.

use crate::isa::Supported;
use crate::pack::element;
use crate::simd::{Kernel, Simd};
use crate::{DType, WeightView};

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

/// `(row, column)` of the first NaN or infinity of a matrix.
pub fn first_non_finite(matrix: WeightView<'_>) -> Option<(usize, usize)> {
    let size = matrix.dtype.size();
    // A chunk at a time, without a branch per element: the search stops for good at the first hit.
    const CHUNK: usize = 4096;
    let chunk = matrix.bytes.chunks(CHUNK).position(|chunk| has_non_finite(chunk, matrix.dtype))?;
    let from = chunk * CHUNK;
    let elements = matrix.bytes[from..].chunks_exact(size);
    let index = elements.map(|x| element(x, matrix.dtype)).position(|x| !x.is_finite())?;
    let index = from / size + index;
    Some((index / matrix.columns, index % matrix.columns))
}

/// Whether any element has all exponent bits set.
fn has_non_finite(bytes: &[u8], dtype: DType) -> bool {
    let halves = |exponent: u16| {
        let has = |x: &[u8; 2]| u16::from_le_bytes(*x) & exponent == exponent;
        bytes.as_chunks().0.iter().fold(false, |any, x| any | has(x))
    };
    match dtype {
        DType::Bf16 => halves(0x7f80),
        DType::F16 => halves(0x7c00),
        DType::F32 => {
            let has = |x: &[u8; 4]| u32::from_le_bytes(*x) & 0x7f80_0000 == 0x7f80_0000;
            bytes.as_chunks().0.iter().fold(false, |any, x| any | has(x))
        }
    }
}

struct Dot<'a> {
    a: &'a [f32],
    b: &'a [f32],
}

impl Kernel for Dot<'_> {
    type Output = f32;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        // Four chains hide the latency of fma.
        let mut sums = [s.splat(0.0); 4];
        let blocks = self.a.chunks(4 * S::LANES).zip(self.b.chunks(4 * S::LANES));
        for (a, b) in blocks {
            let vectors = a.chunks(S::LANES).zip(b.chunks(S::LANES));
            for (sum, (a, b)) in sums.iter_mut().zip(vectors) {
                *sum = s.fma(s.load_some(a), s.load_some(b), *sum);
            }
        }
        s.sum(s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3])))
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

    #[test]
    fn the_first_non_finite_element_is_found_in_every_type() {
        let (rows, columns) = (50, 101);
        for (dtype, nan, one) in [
            (DType::Bf16, vec![0xc1, 0x7f], vec![0x80, 0x3f]),
            (DType::F16, vec![0x00, 0xfc], vec![0x00, 0x3c]),
            (DType::F32, vec![0, 0, 0x80, 0xff], vec![0, 0, 0x80, 0x3f]),
        ] {
            let clean = one.repeat(rows * columns);
            let view = |bytes: &[u8]| first_non_finite(WeightView { bytes, dtype, rows, columns });
            assert_eq!(view(&clean), None);
            for (row, column) in [(0, 0), (0, 100), (21, 3), (49, 100)] {
                let mut bytes = clean.clone();
                let last = bytes.len() - dtype.size();
                bytes[last..].copy_from_slice(&nan);
                let at = (row * columns + column) * dtype.size();
                bytes[at..at + dtype.size()].copy_from_slice(&nan);
                assert_eq!(view(&bytes), Some((row, column)), "{dtype:?}");
            }
        }
    }
}
