//! Search for non-finite elements of a weight matrix.

use fathom_backend::{DType, WeightView};

use crate::element;
use crate::isa::{Supported, Work};

/// `(row, column)` of the first NaN or infinity of a matrix. Large matrices are searched on all
/// cores.
pub fn first_non_finite(matrix: WeightView<'_>) -> Option<(usize, usize)> {
    first_on(Supported::best(), matrix)
}

fn first_on(isa: Supported, matrix: WeightView<'_>) -> Option<(usize, usize)> {
    const BYTES_PER_THREAD: usize = 4 << 20;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let parts = cores.min(matrix.bytes.len() / BYTES_PER_THREAD).max(1);
    let part = matrix.bytes.len().div_ceil(parts).next_multiple_of(CHUNK);
    let search = |(i, bytes)| Some(i * part + first_byte_on(isa, bytes, matrix.dtype)?);
    let mut parts = matrix.bytes.chunks(part.max(1)).enumerate();
    let first = parts.next();
    let first = std::thread::scope(|scope| {
        let search = &search;
        let others: Vec<_> = parts.map(|part| scope.spawn(move || search(part))).collect();
        let first = first.and_then(search);
        let found = others.into_iter().filter_map(|other| other.join().ok().flatten());
        first.into_iter().chain(found).min()
    })?;
    let index = first / matrix.dtype.size();
    Some((index / matrix.columns, index % matrix.columns))
}

/// Bytes tested together, without a branch per element. Only the first chunk with a hit is then
/// searched element by element. A multiple of every element size.
const CHUNK: usize = 4096;

/// Byte offset of the first NaN or infinity.
fn first_byte_on(isa: Supported, bytes: &[u8], dtype: DType) -> Option<usize> {
    let has_any = |bytes| isa.run(HasNonFinite { bytes, dtype });
    let from = bytes.chunks(CHUNK).position(has_any)? * CHUNK;
    let elements = bytes[from..].chunks_exact(dtype.size());
    let index = elements.map(|x| element(x, dtype)).position(|x| !x.is_finite())?;
    Some(from + index * dtype.size())
}

/// Whether any element has all exponent bits set. Compiled for each instruction set and vectorized
/// by the compiler.
struct HasNonFinite<'a> {
    bytes: &'a [u8],
    dtype: DType,
}

impl Work for HasNonFinite<'_> {
    type Output = bool;
    #[inline(always)]
    fn run<const WIDTH: usize, const FUSED: bool>(self) -> bool {
        let halves = |exponent: u16| {
            let has = |x: &[u8; 2]| u16::from_le_bytes(*x) & exponent == exponent;
            self.bytes.as_chunks().0.iter().fold(false, |any, x| any | has(x))
        };
        match self.dtype {
            DType::Bf16 => halves(0x7f80),
            DType::F16 => halves(0x7c00),
            DType::F32 => {
                let has = |x: &[u8; 4]| u32::from_le_bytes(*x) & 0x7f80_0000 == 0x7f80_0000;
                self.bytes.as_chunks().0.iter().fold(false, |any, x| any | has(x))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_several_is_found_whichever_thread_finds_it() {
        let (rows, columns) = (4096, 4096);
        let mut bytes = vec![0; rows * columns * 2];
        for (row, column) in [(4095, 4095), (3000, 17), (2047, 4095), (2, 1)] {
            let at = (row * columns + column) * 2;
            bytes[at..at + 2].copy_from_slice(&[0x80, 0x7f]);
            let view = WeightView { bytes: &bytes, dtype: DType::Bf16, rows, columns };
            for isa in Supported::all() {
                assert_eq!(first_on(isa, view), Some((row, column)), "{isa:?}");
            }
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
            let view = |bytes: &[u8]| {
                let matrix = WeightView { bytes, dtype, rows, columns };
                let found = first_non_finite(matrix);
                for isa in Supported::all() {
                    assert_eq!(first_on(isa, matrix), found, "{isa:?}");
                }
                found
            };
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
