//! Plain types shared by backends and their callers.

use std::ops::Range;

use crate::KeyMask;

/// Operand precision of matrix products and of the key/value cache.
///
/// Accumulation, the residual stream, norms, softmax statistics and logits are f32 in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// Activations and accumulation in f32; weights exactly as stored. The reference.
    F32,
    /// Matrix-product operands, keys and values rounded to bfloat16; accumulation in f32.
    Bf16,
}

impl Precision {
    /// The name used in options, run directories and files: `f32` or `bf16`.
    pub fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
        }
    }
}

/// Shape of a key/value cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Decoder layers.
    pub layers: usize,
    /// Key/value heads per layer.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
}

/// Geometry of one attention layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    /// Decoder layer, which is also the layer of the cache.
    pub layer: usize,
    /// Query heads; query head `h` reads key/value head `h / (heads / kv_heads)`.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Factor on q·k before the softmax, usually `1/√head_dim`.
    pub scale: f32,
    /// Sliding window `w`: query position `i` sees keys `i-w+1 ..= i`. `None`: all keys `0 ..= i`.
    pub window: Option<usize>,
}

/// Consecutive rows of a pass that belong to one sequence.
#[derive(Debug)]
pub struct Span<'a, Kv, ColumnSums> {
    /// The rows of the pass.
    pub rows: Range<usize>,
    /// Position of the first row in the sequence. Keys and values are appended at the cache's
    /// length. Queries may have any positions whose keys are cached or appended by this pass.
    pub first_position: usize,
    /// The sequence's KV cache.
    pub kv: &'a mut Kv,
    /// The sequence's attention column sums, if they are to be accumulated.
    pub column_sums: Option<&'a mut ColumnSums>,
    /// Keys hidden from later queries; `None`: no key is.
    pub mask: Option<&'a KeyMask>,
}

/// Rotary angles of the queries and keys of a pass.
#[derive(Clone, Copy, Debug)]
pub struct Rotary<'a> {
    /// Cosines `[rows, half]`.
    pub cos: &'a [f32],
    /// Sines `[rows, half]`.
    pub sin: &'a [f32],
    /// Half of the rotary width: component `i` of a head is paired with component `i + half`.
    pub half: usize,
}

impl Rotary<'_> {
    /// No angles, for passes without rotary embedding.
    pub const NONE: Rotary<'static> = Rotary { cos: &[], sin: &[], half: 0 };
}

/// An edit of one row of activations, or of some of its columns.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowEdit<'a> {
    /// The row.
    pub row: usize,
    /// The edited columns; `None`: all.
    pub columns: Option<&'a [usize]>,
    /// How their values change.
    pub change: RowChange<'a>,
}

/// How a [`RowEdit`] changes the selected values of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RowChange<'a> {
    /// Sets every value to this constant.
    Fill(f32),
    /// Multiplies every value by this factor.
    Scale(f32),
    /// Limits their Euclidean norm to this value: where it is larger, multiplies them by
    /// `limit / norm`.
    Clamp(f32),
    /// Adds these values element by element.
    Add(&'a [f32]),
    /// Replaces the values by these.
    Write(&'a [f32]),
}

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

/// A borrowed weight matrix `[rows, columns]` in host memory, row-major little-endian, not
/// necessarily aligned.
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
    pub fn slice_rows(&self, rows: Range<usize>) -> WeightView<'a> {
        let row_bytes = self.columns * self.dtype.size();
        WeightView {
            bytes: &self.bytes[rows.start * row_bytes..rows.end * row_bytes],
            rows: rows.len(),
            ..*self
        }
    }
}
