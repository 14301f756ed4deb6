//! Calls into parsers of other crates that panic on some malformed files.

use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::sanitize::sanitize;

/// Calls a parser and returns its error as one line. Panics are caught: some parsers panic on
/// malformed files, such as a tokenizer's post-processor that names a token it does not define.
pub(crate) fn guarded<T, E: Display>(call: impl FnOnce() -> Result<T, E>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|error| sanitize(&error.to_string())),
        Err(_) => Err("one of its parts is malformed".to_owned()),
    }
}
