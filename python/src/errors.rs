//! The library's errors as Python exceptions: the same sentence, in a class that says who can fix
//! it.

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

/// An exception of `fathom_lm._errors`, or the error that prevented making it.
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

/// Refuses the use of an object of `process` in another one, a forked child: the child has none of
/// the threads that do the work, so it would wait forever.
pub fn refuse_in_fork(py: Python<'_>, process: u32, made: &str, instead: &str) -> PyResult<()> {
    let here = std::process::id();
    if here == process {
        return Ok(());
    }
    let sentence = format!(
        "{made} in process {process}; this process ({here}) is a fork without its threads: \
         {instead}, or start processes with multiprocessing's `spawn`"
    );
    Err(raise(py, "EngineError", sentence))
}
