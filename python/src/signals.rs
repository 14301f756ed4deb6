//! What Python may want of a pass that runs without the GIL: to stop it.

use std::time::{Duration, Instant};

use fathom_lm::Error;
use pyo3::prelude::*;

/// Taking the GIL while other threads compute in Python costs milliseconds: not before each layer.
const PAUSE: Duration = Duration::from_millis(20);

/// The exception that ended a pass from inside: the library's error only stands for it.
#[derive(Default)]
pub struct Raised(Option<PyErr>);

impl Raised {
    /// Keeps an exception and gives the error that ends the pass.
    pub fn keep(&mut self, exception: PyErr) -> Error {
        self.0 = Some(exception);
        Error::Request("an exception was raised".to_owned())
    }

    /// The exception, where there was one.
    pub fn take(&mut self) -> Option<PyErr> {
        self.0.take()
    }
}

/// Asks Python for signals now and then.
pub struct Signals {
    asked: Instant,
}

impl Signals {
    pub fn new() -> Signals {
        Signals { asked: Instant::now() }
    }

    /// Runs handlers of signals that came; in threads other than the main one Python runs none.
    ///
    /// # Errors
    /// What a handler raised, such as `KeyboardInterrupt`.
    pub fn check(&mut self) -> PyResult<()> {
        if self.asked.elapsed() < PAUSE {
            return Ok(());
        }
        let checked = Python::attach(|py| py.check_signals());
        self.asked = Instant::now();
        checked
    }
}
