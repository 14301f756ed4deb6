//! Autoregressive decoding: one target pass per token.

use fathom_model::Result;

use crate::{Completion, Judge, Outcome, verify};

/// Commits the target's next token.
///
/// # Errors
/// Errors of the judge: logits that are not numbers.
pub fn step(text: &mut Completion, judge: &mut dyn Judge) -> Result<Outcome> {
    verify(text, &[], None, judge)
}
