//! Activations and vectors in host memory.

use std::ops::{Deref, Range};

use fathom_backend::Result;

use super::aligned::Aligned;

/// What memory is for, in error messages.
pub(crate) const ACTIVATIONS: &str = "activations";

/// A matrix of f32 activations `[rows, columns]`, row-major.
pub struct Rows {
    data: Aligned<f32>,
    rows: usize,
    columns: usize,
}

impl Rows {
    pub(crate) fn zeroed(rows: usize, columns: usize) -> Result<Rows> {
        Ok(Rows { data: Aligned::try_zeroed(rows * columns, ACTIVATIONS)?, rows, columns })
    }

    pub(crate) fn resize(&mut self, rows: usize, columns: usize) -> Result<()> {
        self.data.try_reserve(rows * columns, ACTIVATIONS)?;
        (self.rows, self.columns) = (rows, columns);
        Ok(())
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    pub(crate) fn as_slice(&self) -> &[f32] {
        &self.data[..self.rows * self.columns]
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [f32] {
        let len = self.rows * self.columns;
        &mut self.data[..len]
    }

    pub(crate) fn slice(&self, rows: Range<usize>) -> &[f32] {
        &self.as_slice()[rows.start * self.columns..rows.end * self.columns]
    }

    pub(crate) fn row(&self, row: usize) -> &[f32] {
        self.slice(row..row + 1)
    }

    pub(crate) fn iter_rows_mut(&mut self) -> impl Iterator<Item = &mut [f32]> {
        let columns = self.columns.max(1);
        self.as_mut_slice().chunks_exact_mut(columns)
    }

    /// A handle through which several threads write disjoint parts.
    pub(crate) fn shared(&mut self) -> SharedMut {
        SharedMut(self.as_mut_slice().as_mut_ptr())
    }
}

/// A vector of f32, such as a norm's weight.
pub struct Vector(Aligned<f32>);

impl From<&[f32]> for Vector {
    fn from(values: &[f32]) -> Vector {
        Vector(Aligned::copied_from(values, values.len()))
    }
}

impl Deref for Vector {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.0
    }
}

/// A pointer through which several threads write, each to its own elements.
#[derive(Clone, Copy)]
pub(crate) struct SharedMut<T = f32>(*mut T);

// SAFETY: it only carries an address. Every access through it is unsafe and must establish that no
// other thread accesses the same elements.
unsafe impl<T> Send for SharedMut<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for SharedMut<T> {}

impl<T> SharedMut<T> {
    pub(crate) fn new(data: &mut [T]) -> SharedMut<T> {
        SharedMut(data.as_mut_ptr())
    }

    pub(crate) fn pointer(self) -> *mut T {
        self.0
    }

    /// # Safety
    /// The range is within the allocation, and no other thread accesses it while the slice is live.
    pub(crate) unsafe fn slice<'a>(self, range: Range<usize>) -> &'a mut [T] {
        // SAFETY: by the caller's contract the range is valid and exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(range.start), range.len()) }
    }
}
