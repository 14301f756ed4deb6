//! Python functions as hooks of a pass.

use fathom_lm::At;
use numpy::PyReadonlyArrayDyn;
use pyo3::prelude::*;

use crate::arrays;

/// Calls `hook` with a read-only flat copy of a place's values. If it returns an array, that
/// replaces the values. `fathom_lm._hooks` handles shapes and checks what is returned.
pub fn call(hook: &Py<PyAny>, _at: &At, values: &mut [f32]) -> PyResult<()> {
    Python::attach(|py| {
        let copy = arrays::read_only(py, values.to_vec());
        let returned = hook.bind(py).call1((copy,))?;
        if returned.is_none() {
            return Ok(());
        }
        let returned: PyReadonlyArrayDyn<'_, f32> = returned.extract()?;
        let returned = returned.as_slice()?;
        if returned.len() != values.len() {
            let (expected, found) = (values.len(), returned.len());
            let problem = format!("a hook returned {found} values, expected {expected}");
            return Err(pyo3::exceptions::PyValueError::new_err(problem));
        }
        values.copy_from_slice(returned);
        Ok(())
    })
}
