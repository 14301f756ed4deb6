//! Gram matrices and their spectra.

use fathom_vector::dot;
use nalgebra::{DMatrix, SymmetricEigen};

/// `[n, n]` of the dot products of rows.
pub(super) fn gram(rows: &[&[f32]]) -> DMatrix<f64> {
    let n = rows.len();
    let mut gram = DMatrix::zeros(n, n);
    for i in 0..n {
        for j in 0..=i {
            let product = f64::from(dot(rows[i], rows[j]));
            (gram[(i, j)], gram[(j, i)]) = (product, product);
        }
    }
    gram
}

/// X Xᵀ or Xᵀ X of rows X, whichever is smaller: their nonzero eigenvalues are the same.
pub(super) fn smaller_gram(rows: &[&[f32]]) -> DMatrix<f64> {
    let width = rows.first().map_or(0, |row| row.len());
    if rows.len() <= width {
        return gram(rows);
    }
    let column = |c: usize| rows.iter().map(|row| row[c]).collect::<Vec<f32>>();
    let columns: Vec<Vec<f32>> = (0..width).map(column).collect();
    gram(&columns.iter().map(Vec::as_slice).collect::<Vec<_>>())
}

/// Eigenvalues of a symmetric matrix, descending.
pub(super) fn eigenvalues(matrix: DMatrix<f64>) -> Vec<f64> {
    let mut values: Vec<f64> = matrix.symmetric_eigenvalues().iter().copied().collect();
    values.sort_by(|a, b| b.total_cmp(a));
    values
}

/// Eigenvalues of a symmetric matrix, descending, with their eigenvectors of norm 1.
pub(super) fn eigenpairs(matrix: DMatrix<f64>) -> Vec<(f64, Vec<f64>)> {
    let SymmetricEigen { eigenvalues, eigenvectors } = matrix.symmetric_eigen();
    let vectors = eigenvectors.column_iter().map(|column| column.iter().copied().collect());
    let mut pairs: Vec<(f64, Vec<f64>)> = eigenvalues.iter().copied().zip(vectors).collect();
    pairs.sort_by(|a, b| b.0.total_cmp(&a.0));
    pairs
}

/// `[n, n]` of the squared Euclidean distances of rows.
pub(super) fn squared_distances(rows: &[&[f32]]) -> DMatrix<f64> {
    let n = rows.len();
    let mut distances = DMatrix::zeros(n, n);
    for i in 0..n {
        for j in 0..i {
            let distance = squared_distance(rows[i], rows[j]);
            (distances[(i, j)], distances[(j, i)]) = (distance, distance);
        }
    }
    distances
}

/// In f64, from the differences: |a|² + |b|² - 2 a·b would cancel for rows that are far from the
/// origin and close to each other.
fn squared_distance(a: &[f32], b: &[f32]) -> f64 {
    const LANES: usize = 8;
    let square = |a: f32, b: f32| (f64::from(a) - f64::from(b)).powi(2);
    let mut sums = [0.0; LANES];
    let (a_blocks, a_rest) = a.as_chunks::<LANES>();
    let (b_blocks, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_blocks.iter().zip(b_blocks) {
        for lane in 0..LANES {
            sums[lane] += square(a[lane], b[lane]);
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| square(*a, *b)).sum();
    sums.iter().sum::<f64>() + rest
}

/// The Gram matrix of the centred rows, from their squared distances: double centring, as in
/// classical multidimensional scaling.
pub(super) fn centred(distances: &DMatrix<f64>) -> DMatrix<f64> {
    let n = distances.nrows() as f64;
    let means: Vec<f64> = distances.column_iter().map(|column| column.sum() / n).collect();
    let mean = means.iter().sum::<f64>() / n;
    DMatrix::from_fn(distances.nrows(), distances.ncols(), |i, j| {
        -0.5 * (distances[(i, j)] - means[i] - means[j] + mean)
    })
}
