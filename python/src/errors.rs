//! The library's errors as Python's: the sentence is the same, the class says whose matter it is.

use fathom_lm::Error;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyModule;

/// An error as an exception of `fathom_lm._errors`.
pub fn to_python(py: Python<'_>, error: &Error) -> PyErr {
    let class = match error {
        Error::Io { .. } | Error::File { .. } | Error::Field { .. } | Error::Tensor { .. } => {
            "CheckpointError"
        }
        Error::Line { .. } => "DataError",
        Error::Request(_) => "RequestError",
        Error::Backend(_) => "BackendError",
        Error::Stopped(_) => "EngineError",
        _ => "FathomError",
    };
    raise(py, class, error.to_string())
}

/// An exception of `fathom_lm._errors`; whatever goes wrong on the way there instead.
pub fn raise(py: Python<'_>, class: &str, sentence: String) -> PyErr {
    static ERRORS: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
    let made = ERRORS
        .get_or_try_init(py, || py.import("fathom_lm._errors").map(Bound::unbind))
        .and_then(|errors| errors.bind(py).getattr(class)?.call1((sentence,)));
    match made {
        Ok(exception) => PyErr::from_value(exception),
        Err(error) => error,
    }
}
