//! Memory layouts of packed weights and activations.

use std::ops::Range;

use fathom_backend::{DType, Precision};

/// Columns per panel of packed weights.
pub(crate) const PANEL: usize = 32;
/// Words of data per packed row, which is the longest k (KC) that a micro-kernel call accumulates
/// in registers.
pub(crate) const ROW_WORDS: usize = 256;
/// Distance between packed rows, in words.
pub(crate) const ROW_STRIDE: usize = ROW_WORDS + 16;
/// Words of a cache line.
pub(crate) const CACHE_LINE: usize = 16;

/// The content of a 32-bit word of a packed matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Storage {
    /// One f32.
    F32,
    /// Two consecutive k in bfloat16.
    Bf16,
}

impl Storage {
    /// Storage of weights of `dtype`: exact, unless the precision is bfloat16.
    pub(crate) fn of_weights(dtype: DType, precision: Precision) -> Storage {
        match (precision, dtype) {
            (Precision::F32, DType::F16 | DType::F32) => Storage::F32,
            (Precision::F32, DType::Bf16) | (Precision::Bf16, _) => Storage::Bf16,
        }
    }

    /// Storage of keys and values.
    pub(crate) fn of_cache(precision: Precision) -> Storage {
        match precision {
            Precision::F32 => Storage::F32,
            Precision::Bf16 => Storage::Bf16,
        }
    }

    /// Number of k per word.
    pub(crate) fn k_per_word(self) -> usize {
        match self {
            Storage::F32 => 1,
            Storage::Bf16 => 2,
        }
    }

    /// Steps of the k loop: the number of words per column.
    pub(crate) fn steps(self, k: usize) -> usize {
        k.div_ceil(self.k_per_word())
    }
}

/// Divides a range into the fewest parts of at most `longest`, as evenly as possible.
pub(crate) fn even_parts(
    range: Range<usize>,
    longest: usize,
) -> impl Iterator<Item = Range<usize>> {
    let (start, len) = (range.start, range.len());
    let parts = len.div_ceil(longest);
    (0..parts).map(move |i| start + len * i / parts..start + len * (i + 1) / parts)
}
