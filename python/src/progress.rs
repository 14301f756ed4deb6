//! Telling Python how far something is, and asking it whether to go on.

use std::time::{Duration, Instant};

use fathom_lm::fathom_sinks::explain::ExplainProgress;
use fathom_lm::{Progress, Result, TraceDetection};
use pyo3::prelude::*;

use crate::signals::{Raised, Signals};

/// Nobody reads faster.
const PAUSE: Duration = Duration::from_millis(100);

/// Tells a function `(step, unit, done, total)` of work that runs without the GIL, and ends that
/// work when a signal's handler or the function raises.
pub struct Told {
    call: Option<Py<PyAny>>,
    raised: Raised,
    failed: bool,
    signals: Signals,
    step: &'static str,
    unit: &'static str,
    done: usize,
    total: usize,
    told: Instant,
}

impl Told {
    pub fn new(call: Option<Py<PyAny>>) -> Told {
        Told {
            call,
            raised: Raised::default(),
            failed: false,
            signals: Signals::new(),
            step: "",
            unit: "",
            done: 0,
            total: 0,
            told: Instant::now(),
        }
    }

    /// What was raised meanwhile, or else what came of the work.
    pub fn result<T>(mut self, py: Python<'_>, result: Result<T>) -> PyResult<T> {
        if !self.failed && self.done > 0 {
            self.tell();
        }
        match (self.raised.take(), result) {
            (Some(raised), _) => Err(raised),
            (None, result) => result.map_err(|error| crate::errors::to_python(py, &error)),
        }
    }

    fn begin(&mut self, step: &'static str, unit: &'static str, total: usize) {
        (self.step, self.unit, self.done, self.total) = (step, unit, 0, total);
        self.tell();
    }

    fn more(&mut self, done: usize) {
        self.done += done;
        if self.told.elapsed() >= PAUSE {
            self.tell();
        }
    }

    fn tell(&mut self) {
        let Some(call) = &self.call else { return };
        let arguments = (self.step, self.unit, self.done, self.total);
        if let Err(raised) = Python::attach(|py| call.call1(py, arguments).map(drop)) {
            self.fail(raised);
        }
        self.told = Instant::now();
    }

    fn fail(&mut self, raised: PyErr) -> fathom_lm::Error {
        self.failed = true;
        self.raised.keep(raised)
    }

    fn go_on(&mut self) -> Result<()> {
        if self.failed {
            return Err(fathom_lm::Error::Request("an exception was raised".to_owned()));
        }
        self.signals.check().map_err(|raised| self.fail(raised))
    }
}

impl Progress for Told {
    fn start(&mut self, tokens: usize) {
        self.begin("scanning", "tokens", tokens);
    }

    fn advance(&mut self, tokens: usize) {
        self.more(tokens);
    }

    fn trace(&mut self, _: &TraceDetection) {}

    fn check(&mut self) -> Result<()> {
        self.go_on()
    }
}

impl ExplainProgress for Told {
    fn start(&mut self, step: &'static str, unit: &'static str, steps: usize) {
        self.begin(step, unit, steps);
    }

    fn advance(&mut self, steps: usize) {
        self.more(steps);
    }

    fn check(&mut self) -> Result<()> {
        self.go_on()
    }
}
