//! A dense array of f32.

use std::fmt;

/// A dense row-major array of f32.
///
/// ```
/// let logits = fathom_lm::Array { shape: vec![2, 3], values: vec![0.0, 2.0, 1.0, 5.0, 4.0, 3.0] };
/// assert_eq!(logits.row(1), [5.0, 4.0, 3.0]);
/// assert_eq!(logits.argmax(), [1, 0]);
/// ```
#[derive(Clone, PartialEq)]
pub struct Array {
    /// The size of each axis, slowest first.
    pub shape: Vec<usize>,
    /// The values, as many as the product of `shape`.
    pub values: Vec<f32>,
}

impl Array {
    /// Row `index`, counted over all axes but the last. In `[T, hidden]` it is the vector at
    /// position `index`; in `[heads, T, head_dim]` that of head `index / T` at position
    /// `index % T`.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row(&self, index: usize) -> &[f32] {
        let width = self.shape.last().copied().unwrap_or(1);
        &self.values[index * width..(index + 1) * width]
    }

    /// The column of the largest value in each row; the first one if several are equal. For logits
    /// `[T, vocab]` it is the most likely next token at each position.
    pub fn argmax(&self) -> Vec<usize> {
        let width = self.shape.last().copied().unwrap_or(1).max(1);
        let best = |row: &[f32]| {
            let larger = |best: usize, i: usize| if row[i] > row[best] { i } else { best };
            (0..row.len()).fold(0, larger)
        };
        self.values.chunks_exact(width).map(best).collect()
    }
}

impl fmt::Debug for Array {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Array {{ shape: {:?} }}", self.shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_likely_is_the_first_of_equals() {
        let array = Array { shape: vec![2, 3], values: vec![1.0, 2.0, 2.0, f32::NAN, -1.0, -2.0] };
        assert_eq!(array.argmax(), [1, 0]);
        assert_eq!(array.row(1)[1], -1.0);
    }
}
