//! Owned copies of row edits, which can be sent to the device's thread.

use fathom_backend::{RowChange, RowEdit};

/// An owned [`RowEdit`].
pub struct OwnedEdit {
    row: usize,
    columns: Option<Vec<usize>>,
    change: OwnedChange,
}

enum OwnedChange {
    Fill(f32),
    Scale(f32),
    Clamp(f32),
    Add(Vec<f32>),
    Write(Vec<f32>),
}

impl OwnedEdit {
    pub fn of(edit: &RowEdit<'_>) -> OwnedEdit {
        let change = match edit.change {
            RowChange::Fill(value) => OwnedChange::Fill(value),
            RowChange::Scale(factor) => OwnedChange::Scale(factor),
            RowChange::Clamp(norm) => OwnedChange::Clamp(norm),
            RowChange::Add(terms) => OwnedChange::Add(terms.to_vec()),
            RowChange::Write(values) => OwnedChange::Write(values.to_vec()),
        };
        OwnedEdit { row: edit.row, columns: edit.columns.map(<[usize]>::to_vec), change }
    }

    pub fn borrow(&self) -> RowEdit<'_> {
        let change = match &self.change {
            OwnedChange::Fill(value) => RowChange::Fill(*value),
            OwnedChange::Scale(factor) => RowChange::Scale(*factor),
            OwnedChange::Clamp(norm) => RowChange::Clamp(*norm),
            OwnedChange::Add(terms) => RowChange::Add(terms),
            OwnedChange::Write(values) => RowChange::Write(values),
        };
        RowEdit { row: self.row, columns: self.columns.as_deref(), change }
    }
}
