//! Changes of a row's values.

use fathom_backend::RowChange;

use crate::norm;

/// Makes a change of a row, or of the columns of it that are changed.
///
/// # Panics
/// If there are not as many values to add or to write as there are in `values`.
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
