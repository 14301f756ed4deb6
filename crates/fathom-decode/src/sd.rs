//! Ordinary speculative decoding: the draft drafts γ tokens, then the target scores them in one
//! pass.

use fathom_model::Result;

use crate::{Completion, Drafted, Judge, Outcome, verify};

/// Judges a chunk drafted after `text`; where all of it is accepted, the target's own next token
/// follows.
///
/// # Errors
/// Scores that cannot be used.
pub fn step(text: &mut Completion, chunk: &[Drafted], judge: &mut dyn Judge) -> Result<Outcome> {
    let mut outcome = verify(text, chunk, None, judge)?;
    outcome.wasted = chunk.len() - outcome.accepted;
    Ok(outcome)
}
