//! How weights and activations lie in memory, as the register tile reads them.

use std::ops::Range;

use fathom_backend::{DType, Precision};

/// Columns of a panel of packed weights.
pub(crate) const PANEL: usize = 32;
/// Words of a packed row that hold data: the longest k a tile runs without storing its
/// accumulators.
pub(crate) const ROW_WORDS: usize = 256;
/// Words between packed rows.
pub(crate) const ROW_STRIDE: usize = ROW_WORDS + 16;
/// Words of a cache line.
pub(crate) const CACHE_LINE: usize = 16;

/// What a word of a packed matrix holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Storage {
    /// One f32.
    F32,
    /// Two consecutive k in bfloat16.
    Bf16,
}

impl Storage {
    /// How weights of `dtype` are kept: exactly, unless the precision is bfloat16.
    pub(crate) fn of_weights(dtype: DType, precision: Precision) -> Storage {
        match (precision, dtype) {
            (Precision::F32, DType::F16 | DType::F32) => Storage::F32,
            (Precision::F32, DType::Bf16) | (Precision::Bf16, _) => Storage::Bf16,
        }
    }

    /// How keys and values are kept.
    pub(crate) fn of_cache(precision: Precision) -> Storage {
        match precision {
            Precision::F32 => Storage::F32,
            Precision::Bf16 => Storage::Bf16,
        }
    }

    /// k held by a word.
    pub(crate) fn k_per_word(self) -> usize {
        match self {
            Storage::F32 => 1,
            Storage::Bf16 => 2,
        }
    }

    /// Steps of the k loop: words of one column.
    pub(crate) fn steps(self, k: usize) -> usize {
        k.div_ceil(self.k_per_word())
    }
}

/// Cuts a range into the fewest parts of at most `longest`, as even as can be.
pub(crate) fn even_parts(
    range: Range<usize>,
    longest: usize,
) -> impl Iterator<Item = Range<usize>> {
    let (start, len) = (range.start, range.len());
    let parts = len.div_ceil(longest);
    (0..parts).map(move |i| start + len * i / parts..start + len * (i + 1) / parts)
}
