//! Values of the library as NumPy arrays, without a copy.

use fathom_lm::Array;
use numpy::{Element, IxDyn, PyArray1, PyArrayDyn, PyArrayMethods};
use pyo3::prelude::*;

/// A read-only array that owns the library's memory, so it may outlive the cache and the model.
pub fn to_numpy<'py>(py: Python<'py>, array: Array) -> PyResult<Bound<'py, PyArrayDyn<f32>>> {
    let Array { shape, values } = array;
    // Read-only before it is reshaped: NumPy makes no view of a read-only array writable.
    read_only(py, values).reshape(IxDyn(&shape))
}

/// A read-only `int64` array of token ids, the type that other libraries use for ids.
pub fn ids_to_numpy<'py>(py: Python<'py>, ids: &[u32]) -> Bound<'py, PyArray1<i64>> {
    read_only(py, ids.iter().copied().map(i64::from).collect())
}

/// A read-only array of one axis that owns `values`.
pub fn read_only<T: Element>(py: Python<'_>, values: Vec<T>) -> Bound<'_, PyArray1<T>> {
    let array = PyArray1::from_vec(py, values);
    array.readwrite().make_nonwriteable();
    array
}
