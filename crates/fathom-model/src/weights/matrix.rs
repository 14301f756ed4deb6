//! A weight matrix read from a checkpoint.

use fathom_backend::{DType, WeightView};

/// A weight matrix: part of a mapped file, or the result of merging an adapter into it.
#[derive(Debug)]
pub struct Matrix<'a>(Storage<'a>);

#[derive(Debug)]
enum Storage<'a> {
    Stored(WeightView<'a>),
    Merged { bytes: Vec<u8>, dtype: DType, rows: usize, columns: usize },
}

impl<'a> Matrix<'a> {
    pub(super) fn stored(view: WeightView<'a>) -> Matrix<'a> {
        Matrix(Storage::Stored(view))
    }

    /// A matrix with the shape and type of `like`.
    pub(super) fn merged(bytes: Vec<u8>, like: WeightView<'_>) -> Matrix<'a> {
        let WeightView { dtype, rows, columns, .. } = like;
        Matrix(Storage::Merged { bytes, dtype, rows, columns })
    }

    /// A view of the matrix.
    pub fn view(&self) -> WeightView<'_> {
        match &self.0 {
            Storage::Stored(view) => *view,
            Storage::Merged { bytes, dtype, rows, columns } => {
                WeightView { bytes, dtype: *dtype, rows: *rows, columns: *columns }
            }
        }
    }
}
