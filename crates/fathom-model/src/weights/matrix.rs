//! A weight matrix as a checkpoint gives it.

use fathom_backend::{DType, WeightView};

/// A weight matrix: part of a mapped file, or made as an adapter is merged into it.
#[derive(Debug)]
pub struct Matrix<'a>(Kind<'a>);

#[derive(Debug)]
enum Kind<'a> {
    Stored(WeightView<'a>),
    Merged { bytes: Vec<u8>, dtype: DType, rows: usize, columns: usize },
}

impl<'a> Matrix<'a> {
    pub(super) fn stored(view: WeightView<'a>) -> Matrix<'a> {
        Matrix(Kind::Stored(view))
    }

    /// Bytes of a matrix of the shape and type of `like`.
    pub(super) fn merged(bytes: Vec<u8>, like: WeightView<'_>) -> Matrix<'a> {
        let WeightView { dtype, rows, columns, .. } = like;
        Matrix(Kind::Merged { bytes, dtype, rows, columns })
    }

    /// The matrix, to read.
    pub fn view(&self) -> WeightView<'_> {
        match &self.0 {
            Kind::Stored(view) => *view,
            Kind::Merged { bytes, dtype, rows, columns } => {
                WeightView { bytes, dtype: *dtype, rows: *rows, columns: *columns }
            }
        }
    }
}
