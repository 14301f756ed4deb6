//! Interrupting work that runs without the GIL.

use std::time::{Duration, Instant};

use fathom_lm::Error;
use pyo3::prelude::*;

/// How often signals are checked. Taking the GIL while other threads run Python costs
/// milliseconds, too much for every layer.
const INTERVAL: Duration = Duration::from_millis(20);

/// The Python exception that stopped the work. The library itself sees a placeholder error.
#[derive(Default)]
pub struct Raised(Option<PyErr>);

impl Raised {
    /// Stores an exception and returns the error that stops the library.
    pub fn store(&mut self, exception: PyErr) -> Error {
        self.0 = Some(exception);
        Error::Request("an exception was raised".to_owned())
    }

    /// The exception, if there was one.
    pub fn take(&mut self) -> Option<PyErr> {
        self.0.take()
    }
}

/// Checks for Python's signals, at most once every [`INTERVAL`].
pub struct Signals {
    checked: Instant,
}

impl Signals {
    pub fn new() -> Signals {
        Signals { checked: Instant::now() }
    }

    /// Runs the handlers of pending signals. Python runs handlers in the main thread only; in
    /// others this does nothing.
    ///
    /// # Errors
    /// The exception of a handler, such as `KeyboardInterrupt`.
    pub fn check(&mut self) -> PyResult<()> {
        if self.checked.elapsed() < INTERVAL {
            return Ok(());
        }
        let result = Python::attach(|py| py.check_signals());
        self.checked = Instant::now();
        result
    }
}
