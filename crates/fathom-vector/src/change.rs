//! Edits of a row's values.

use fathom_backend::RowChange;

use crate::norm;

/// Applies `change` to `values`: a row, or the selected columns of one.
///
/// # Panics
/// If the number of values to add or to write differs from `values.len()`.
pub fn change_values(change: &RowChange<'_>, values: &mut [f32]) {
    match change {
        RowChange::Fill(value) => values.fill(*value),
        RowChange::Scale(factor) => values.iter_mut().for_each(|value| *value *= factor),
        RowChange::Clamp(limit) => {
            let before = norm(values);
            if before > *limit {
                values.iter_mut().for_each(|value| *value *= limit / before);
            }
        }
        RowChange::Add(terms) => {
            assert_eq!(terms.len(), values.len(), "values to add");
            values.iter_mut().zip(*terms).for_each(|(value, term)| *value += term);
        }
        RowChange::Write(new) => values.copy_from_slice(new),
    }
}
