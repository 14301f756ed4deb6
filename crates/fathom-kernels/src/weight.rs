//! Weight matrices as they lie in a checkpoint.

/// Storage type of a weight matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
    /// IEEE single precision.
    F32,
}

impl DType {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            DType::Bf16 | DType::F16 => 2,
            DType::F32 => 4,
        }
    }
}

/// A borrowed weight matrix `[rows, columns]`, row-major little-endian, not necessarily aligned.
#[derive(Clone, Copy, Debug)]
pub struct WeightView<'a> {
    /// `rows · columns · dtype.size()` bytes.
    pub bytes: &'a [u8],
    /// Element type.
    pub dtype: DType,
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub columns: usize,
}

impl<'a> WeightView<'a> {
    /// Rows `rows` of this matrix, as a matrix.
    pub fn slice_rows(&self, rows: std::ops::Range<usize>) -> WeightView<'a> {
        let row_bytes = self.columns * self.dtype.size();
        WeightView {
            bytes: &self.bytes[rows.start * row_bytes..rows.end * row_bytes],
            rows: rows.len(),
            ..*self
        }
    }
}
