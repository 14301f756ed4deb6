//! Limits on the memory and work of a template.
//!
//! Counting instructions is not enough, because a string appended to itself doubles with each one.
//! So each value that a template builds or reads is also charged by its size in bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

/// Maximum nesting of lists and maps. Tool definitions nest a few levels; a value that contains
/// itself nests without end.
const MAX_DEPTH: usize = 64;

/// Charge for an element of a list or map in addition to its content: about its size in memory, in
/// bytes.
pub(super) const ELEMENT: u64 = 32;

/// The number of bytes that a template may still build or read. Clones share the counter.
#[derive(Clone)]
pub(super) struct Budget(Arc<AtomicU64>);

/// Why a template was stopped, as opposed to Jinja's own errors.
#[derive(Debug, thiserror::Error)]
pub(super) enum Stop {
    #[error("{0}")]
    Refused(String),
    #[error("builds or reads more text than the conversation justifies")]
    TooMuchText,
    #[error("builds values nested more than {MAX_DEPTH} deep")]
    TooDeep,
}

impl From<Stop> for Error {
    fn from(stop: Stop) -> Error {
        Error::new(ErrorKind::InvalidOperation, stop.to_string()).with_source(stop)
    }
}

impl Budget {
    pub(super) fn new(bytes: u64) -> Budget {
        Budget(Arc::new(AtomicU64::new(bytes)))
    }

    /// Charges `bytes` that are about to be built or read.
    pub(super) fn take(&self, bytes: u64) -> Result<(), Error> {
        let pay = |left: u64| left.checked_sub(bytes);
        match self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, pay) {
            Ok(_) => Ok(()),
            Err(_) => Err(Stop::TooMuchText.into()),
        }
    }

    /// The bytes charged so far, given the `initial` budget.
    pub(super) fn used(&self, initial: u64) -> u64 {
        initial - self.0.load(Ordering::Relaxed)
    }

    /// Charges a value including everything nested in it.
    pub(super) fn charge(&self, value: &Value) -> Result<(), Error> {
        self.charge_nested(value, 0)
    }

    fn charge_nested(&self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(Stop::TooDeep.into());
        }
        match value.kind() {
            ValueKind::String => self.take(value.as_str().map_or(0, str::len) as u64),
            ValueKind::Bytes => self.take(value.as_bytes().map_or(0, <[u8]>::len) as u64),
            ValueKind::Seq | ValueKind::Iterable => value.try_iter()?.try_for_each(|item| {
                self.take(ELEMENT)?;
                self.charge_nested(&item, depth + 1)
            }),
            ValueKind::Map => value.try_iter()?.try_for_each(|key| {
                self.take(ELEMENT)?;
                self.charge_nested(&key, depth + 1)?;
                self.charge_nested(&value.get_item(&key)?, depth + 1)
            }),
            _ => self.take(1),
        }
    }
}

/// Text under construction, charged as it grows.
pub(super) struct Text<'a> {
    text: String,
    budget: &'a Budget,
}

impl<'a> Text<'a> {
    pub(super) fn new(budget: &'a Budget) -> Text<'a> {
        Text { text: String::new(), budget }
    }

    pub(super) fn push(&mut self, piece: &str) -> Result<(), Error> {
        self.budget.take(piece.len() as u64)?;
        self.text.push_str(piece);
        Ok(())
    }

    pub(super) fn push_char(&mut self, c: char) -> Result<(), Error> {
        self.push(c.encode_utf8(&mut [0; 4]))
    }

    pub(super) fn finish(self) -> String {
        self.text
    }
}
