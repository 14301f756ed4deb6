//! Vectors, matrices, and the basis of the residual stream.

use std::ops::Range;

use half::bf16;

use super::plan::{Direction, FIRST_KIND, HIDDEN, Plan, State};
use super::rng::Rng;

/// A row-major matrix.
pub(super) struct Matrix {
    pub(super) rows: usize,
    pub(super) columns: usize,
    values: Vec<f64>,
}

impl Matrix {
    pub(super) fn zeros(rows: usize, columns: usize) -> Matrix {
        Matrix { rows, columns, values: vec![0.0; rows * columns] }
    }

    pub(super) fn row_mut(&mut self, row: usize) -> &mut [f64] {
        &mut self.values[row * self.columns..(row + 1) * self.columns]
    }

    pub(super) fn set_row(&mut self, row: usize, values: &[f64]) {
        self.row_mut(row).copy_from_slice(values);
    }

    pub(super) fn set_column(&mut self, column: usize, values: &[f64]) {
        for (row, value) in values.iter().enumerate() {
            self.row_mut(row)[column] = *value;
        }
    }

    /// The values as little-endian bfloat16.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        bytes(&self.values)
    }
}

/// The values as little-endian bfloat16.
pub(super) fn bytes(values: &[f64]) -> Vec<u8> {
    values.iter().flat_map(|x| bf16::from_f64(*x).to_le_bytes()).collect()
}

/// The values rounded to bfloat16, as the checkpoint stores them.
pub(super) fn rounded(values: &[f64]) -> Vec<f64> {
    values.iter().map(|x| bf16::from_f64(*x).to_f64()).collect()
}

pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// `into` += `scale` · `vector`.
pub(super) fn add_scaled(into: &mut [f64], scale: f64, vector: &[f64]) {
    for (into, x) in into.iter_mut().zip(vector) {
        *into += scale * x;
    }
}

pub(super) fn scaled(vector: &[f64], scale: f64) -> Vec<f64> {
    vector.iter().map(|x| scale * x).collect()
}

/// A random orthonormal basis of the residual stream. The first rows are the [`Direction`]s, and
/// the last ones those of massive activations, if the plan has any. The others span the content.
pub(super) struct Basis {
    rows: Vec<Vec<f64>>,
    content: Range<usize>,
}

impl Basis {
    pub(super) fn random(plan: &Plan, rng: &mut Rng) -> Basis {
        let massive = plan.massive_dims();
        let content = FIRST_KIND + plan.kinds.len()..HIDDEN - massive.len();
        let mut rows: Vec<Vec<f64>> = Vec::with_capacity(HIDDEN);
        while rows.len() < content.end {
            let is_sink = rows.len() == Direction::Sink.index();
            let mut row: Vec<f64> =
                (0..HIDDEN).map(|_| if is_sink { rng.sign() } else { rng.normal() }).collect();
            massive.iter().for_each(|dim| row[*dim] = 0.0);
            for _ in 0..2 {
                // Gram-Schmidt. The second pass removes the rounding errors of the first.
                for other in &rows {
                    let along = dot(&row, other);
                    add_scaled(&mut row, -along, other);
                }
            }
            let norm = dot(&row, &row).sqrt();
            if norm > 1e-3 {
                rows.push(scaled(&row, 1.0 / norm));
            }
        }
        rows.extend(massive.iter().map(|dim| {
            let mut unit = vec![0.0; HIDDEN];
            unit[*dim] = 1.0;
            unit
        }));
        Basis { rows, content }
    }

    /// Σ amount · direction, `[HIDDEN]`.
    pub(super) fn vector(&self, parts: &[(Direction, f64)]) -> Vec<f64> {
        let mut vector = vec![0.0; HIDDEN];
        for (direction, amount) in parts {
            add_scaled(&mut vector, *amount, &self.rows[direction.index()]);
        }
        vector
    }

    /// A random content vector of norm `norm`, `[HIDDEN]`.
    pub(super) fn content(&self, rng: &mut Rng, norm: f64) -> Vec<f64> {
        let mut vector = vec![0.0; HIDDEN];
        for row in &self.rows[self.content.clone()] {
            add_scaled(&mut vector, rng.normal(), row);
        }
        let length = dot(&vector, &vector).sqrt();
        scaled(&vector, norm / length)
    }

    /// RMSNorm of a planned state, without its content, `[HIDDEN]`.
    pub(super) fn normed(&self, state: &State) -> Vec<f64> {
        let scale = (HIDDEN as f64).sqrt() / state.norm();
        let mut vector = vec![0.0; HIDDEN];
        for (amount, row) in state.along.iter().zip(&self.rows) {
            add_scaled(&mut vector, scale * amount, row);
        }
        vector
    }
}
