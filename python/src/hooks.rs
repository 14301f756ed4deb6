//! Python's functions at places of a pass.

use fathom_lm::At;
use numpy::{PyArray1, PyArrayMethods, PyReadonlyArrayDyn};
use pyo3::prelude::*;

/// Calls `hook(values)` with a read-only copy of a place's values, flat, and writes what it
/// returns, unless that is `None`, in their place. `fathom_lm._hooks` gives them their shape and
/// checks what comes back.
pub fn call(hook: &Py<PyAny>, _at: &At, values: &mut [f32]) -> PyResult<()> {
    Python::attach(|py| {
        let seen = PyArray1::from_slice(py, values);
        seen.readwrite().make_nonwriteable();
        let left = hook.bind(py).call1((seen,))?;
        if left.is_none() {
            return Ok(());
        }
        let left: PyReadonlyArrayDyn<'_, f32> = left.extract()?;
        let left = left.as_slice()?;
        if left.len() != values.len() {
            let problem = format!("a hook left {} values of {}", left.len(), values.len());
            return Err(pyo3::exceptions::PyValueError::new_err(problem));
        }
        values.copy_from_slice(left);
        Ok(())
    })
}
