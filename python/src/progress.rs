//! Progress of work that runs without the GIL, reported to Python, and its interruption.

use std::time::{Duration, Instant};

use fathom_lm::fathom_sinks::explain::ExplainProgress;
use fathom_lm::{LoadProgress, Progress, Result, TraceDetection};
use pyo3::prelude::*;

use crate::errors;
use crate::signals::{Raised, Signals};

/// How often progress is reported.
const INTERVAL: Duration = Duration::from_millis(100);

/// Reports progress to a Python function `(step, unit, done, total)`, if there is one, and stops
/// the work when the function or the handler of a signal raises an exception.
pub struct Reporter {
    call: Option<Py<PyAny>>,
    raised: Raised,
    failed: bool,
    signals: Signals,
    step: &'static str,
    unit: &'static str,
    done: usize,
    total: usize,
    reported: Instant,
}

impl Reporter {
    pub fn new(call: Option<Py<PyAny>>) -> Reporter {
        Reporter {
            call,
            raised: Raised::default(),
            failed: false,
            signals: Signals::new(),
            step: "",
            unit: "",
            done: 0,
            total: 0,
            reported: Instant::now(),
        }
    }

    /// The result of the work, or the exception that stopped it.
    pub fn result<T>(mut self, py: Python<'_>, result: Result<T>) -> PyResult<T> {
        if !self.failed && self.done > 0 {
            self.report();
        }
        match (self.raised.take(), result) {
            (Some(raised), _) => Err(raised),
            (None, result) => result.map_err(|error| errors::to_python(py, &error)),
        }
    }

    fn begin(&mut self, step: &'static str, unit: &'static str, total: usize) {
        (self.step, self.unit, self.done, self.total) = (step, unit, 0, total);
        self.report();
    }

    fn add(&mut self, done: usize) {
        self.done += done;
        if self.reported.elapsed() >= INTERVAL {
            self.report();
        }
    }

    fn report(&mut self) {
        let Some(call) = &self.call else { return };
        let arguments = (self.step, self.unit, self.done, self.total);
        if let Err(raised) = Python::attach(|py| call.call1(py, arguments).map(drop)) {
            self.fail(raised);
        }
        self.reported = Instant::now();
    }

    fn fail(&mut self, raised: PyErr) -> fathom_lm::Error {
        self.failed = true;
        self.raised.store(raised)
    }

    fn check_signals(&mut self) -> Result<()> {
        if self.failed {
            return Err(fathom_lm::Error::Request("an exception was raised".to_owned()));
        }
        self.signals.check().map_err(|raised| self.fail(raised))
    }
}

impl Progress for Reporter {
    fn start(&mut self, tokens: usize) {
        self.begin("scanning", "tokens", tokens);
    }

    fn advance(&mut self, tokens: usize) {
        self.add(tokens);
    }

    fn trace(&mut self, _: &TraceDetection) {}

    fn check(&mut self) -> Result<()> {
        self.check_signals()
    }
}

impl ExplainProgress for Reporter {
    fn start(&mut self, step: &'static str, unit: &'static str, steps: usize) {
        self.begin(step, unit, steps);
    }

    fn advance(&mut self, steps: usize) {
        self.add(steps);
    }

    fn check(&mut self) -> Result<()> {
        self.check_signals()
    }
}

/// Loading can be interrupted; its progress is not reported.
impl LoadProgress for Reporter {
    fn layer(&mut self, _: usize, _: usize) {}

    fn check(&mut self) -> Result<()> {
        self.check_signals()
    }
}
