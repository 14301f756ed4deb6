//! Numbers of the library as NumPy arrays, without a copy.

use fathom_lm::Array;
use numpy::{IxDyn, PyArray1, PyArrayDyn, PyArrayMethods};
use pyo3::prelude::*;

/// A read-only array that owns the library's memory: it may outlive the pass, the cache and the
/// model.
pub fn to_numpy<'py>(py: Python<'py>, array: Array) -> PyResult<Bound<'py, PyArrayDyn<f32>>> {
    let Array { shape, values } = array;
    let flat = PyArray1::from_vec(py, values);
    // Before it is reshaped: a view of what cannot be written cannot be made writable.
    flat.readwrite().make_nonwriteable();
    flat.reshape(IxDyn(&shape))
}

/// A read-only array of token ids: `int64`, as other libraries take them.
pub fn ids_to_numpy<'py>(py: Python<'py>, ids: &[u32]) -> Bound<'py, PyArray1<i64>> {
    let array = PyArray1::from_vec(py, ids.iter().copied().map(i64::from).collect());
    array.readwrite().make_nonwriteable();
    array
}
