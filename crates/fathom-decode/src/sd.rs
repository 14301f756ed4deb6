//! Ordinary speculative decoding: γ tokens are drafted, then the target scores them in one pass
//! (Leviathan et al. 2023; Chen et al. 2023). `sd` takes the drafts from a model, `suffix` from the
//! text itself.

use fathom_model::Result;

use crate::{Completion, Drafted, Judge, Outcome, verify};

/// Judges a chunk drafted after `text`. If all of it is accepted, the target's own next token is
/// committed too.
///
/// # Errors
/// Errors of the judge: logits that are not numbers.
pub fn step(text: &mut Completion, chunk: &[Drafted], judge: &mut dyn Judge) -> Result<Outcome> {
    let mut outcome = verify(text, chunk, None, judge)?;
    outcome.wasted = chunk.len() - outcome.accepted;
    Ok(outcome)
}
