//! Autoregressive decoding: a pass of the target for every token. Also how every text begins: its
//! first token is the target's own, in every way of decoding.

use fathom_model::Result;

use crate::{Completion, Judge, Outcome, verify};

/// Commits the target's next token.
///
/// # Errors
/// Scores that cannot be used.
pub fn step(text: &mut Completion, judge: &mut dyn Judge) -> Result<Outcome> {
    verify(text, &[], None, judge)
}
