//! The arithmetic of a merge, one tensor at a time.

use std::ops::Range;

use fathom_backend::{DType, WeightView};
use fathom_vector::{LowRank, add_low_rank};
use half::{bf16, f16};

use super::Adapter;
use super::plan::{LowRankChange, TensorMerge};

impl Adapter {
    /// How the tensor `name` is merged; `None` if the adapter does not change it.
    pub(crate) fn merge(&self, name: &str) -> Option<&TensorMerge> {
        self.plan.merges.get(name)
    }

    /// Rows `rows` of a merged matrix, in the checkpoint's dtype; `base` are the same rows of the
    /// checkpoint's matrix.
    pub(crate) fn merged_rows(
        &self,
        merge: &TensorMerge,
        base: WeightView<'_>,
        rows: Range<usize>,
    ) -> Vec<u8> {
        let replaced = merge.replaced.map(|index| {
            let start = rows.start * base.columns;
            let values = self.floats_of(index, start..start + base.rows * base.columns);
            narrow(&values, base.dtype)
        });
        let base = WeightView { bytes: replaced.as_deref().unwrap_or(base.bytes), ..base };
        let factors: Vec<_> = merge
            .changes
            .iter()
            .map(|change| (change, self.factors(change, &rows, base.columns)))
            .collect();
        let changes: Vec<LowRank<'_>> = factors
            .iter()
            .map(|(change, (b, a))| {
                let LowRankChange { rank, scale, embedding, .. } = **change;
                LowRank { b, a, rank, scale, rounded: embedding }
            })
            .collect();
        add_low_rank(base, &changes)
    }

    /// A merged vector, rounded to the checkpoint's dtype.
    pub(crate) fn merged_vector(
        &self,
        merge: &TensorMerge,
        mut values: Vec<f32>,
        dtype: DType,
    ) -> Vec<f32> {
        if let Some(index) = merge.replaced {
            values = self.floats(index);
        }
        values.iter_mut().for_each(|value| *value = rounded(*value, dtype));
        if let Some((index, scale)) = merge.added {
            for (value, added) in values.iter_mut().zip(self.floats(index)) {
                *value = rounded(*value + added * scale, dtype);
            }
        }
        values
    }

    /// The factors B `[rows, rank]` and A `[rank, columns]` for some rows of a change.
    fn factors(
        &self,
        change: &LowRankChange,
        rows: &Range<usize>,
        columns: usize,
    ) -> (Vec<f32>, Vec<f32>) {
        let LowRankChange { a, b, rank, embedding, .. } = *change;
        if !embedding {
            return (self.floats_of(b, rows.start * rank..rows.end * rank), self.floats(a));
        }
        // An embedding is stored as the transpose of a linear layer: A [rank, vocab], B [hidden,
        // rank].
        let (a, b) = (self.floats(a), self.floats(b));
        let vocab = a.len() / rank;
        let of_token = |token: usize| (0..rank).map(move |k| (k, token));
        let a_t = rows.clone().flat_map(of_token).map(|(k, token)| a[k * vocab + token]).collect();
        let of_rank = |k: usize| (0..columns).map(move |column| (k, column));
        let b_t = (0..rank).flat_map(of_rank).map(|(k, column)| b[column * rank + k]).collect();
        (a_t, b_t)
    }

    /// Tensor `index` of the adapter's file, as f32.
    fn floats(&self, index: usize) -> Vec<f32> {
        let elements = self.weights.tensors[index].shape.iter().product();
        self.floats_of(index, 0..elements)
    }

    /// Some elements of tensor `index` of the adapter's file, as f32.
    fn floats_of(&self, index: usize, elements: Range<usize>) -> Vec<f32> {
        let tensor = &self.weights.tensors[index];
        // Dtypes are checked when the adapter is opened.
        let Some(dtype) = tensor.weight_dtype() else { return Vec::new() };
        let bytes = &self.weights.map[tensor.range.clone()];
        widen(&bytes[elements.start * dtype.size()..elements.end * dtype.size()], dtype)
    }
}

/// Stored elements as f32.
pub(crate) fn widen(bytes: &[u8], dtype: DType) -> Vec<f32> {
    let halves = bytes.as_chunks().0.iter();
    match dtype {
        DType::Bf16 => halves.map(|&element| bf16::from_le_bytes(element).to_f32()).collect(),
        DType::F16 => halves.map(|&element| f16::from_le_bytes(element).to_f32()).collect(),
        DType::F32 => {
            bytes.as_chunks().0.iter().map(|&element| f32::from_le_bytes(element)).collect()
        }
    }
}

/// `values` rounded to `dtype`, as bytes.
fn narrow(values: &[f32], dtype: DType) -> Vec<u8> {
    let values = values.iter();
    match dtype {
        DType::Bf16 => values.flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
        DType::F16 => values.flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
        DType::F32 => values.flat_map(|&x| x.to_le_bytes()).collect(),
    }
}

fn rounded(value: f32, dtype: DType) -> f32 {
    match dtype {
        DType::Bf16 => bf16::from_f32(value).to_f32(),
        DType::F16 => f16::from_f32(value).to_f32(),
        DType::F32 => value,
    }
}
