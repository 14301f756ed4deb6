//! PEARL: draft and target at work at the same time.

use fathom_model::Result;

use crate::{Completion, Drafted, Judge, Outcome, Proposal, verify};

/// What the target does in a step, besides feeding the last committed token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nothing is pending: it judges the first token of the chunk being drafted.
    PreVerify,
    /// It also scores, and judges before that, what is left of the last chunk.
    PostVerify,
}

/// One sequence under PEARL (DESIGN 2.12).
///
/// In every step, at the same time,
/// * the **target** scores the last committed token and the pending ones,
/// * the **draft** drafts a chunk of γ tokens after the text and the pending ones.
///
/// Then the target's scores judge the pending tokens and the first of the chunk. All accepted: they are
/// text, and the rest of the chunk is pending. One rejected: the target's correction takes its place,
/// everything drafted behind it is dropped, and nothing is pending.
///
/// # Key/value caches
/// Before a step the target's cache holds all of the text but its last token, and the draft's all of text
/// and pending but their last token. [`Pearl::step`] keeps that so with one rule: truncate each to its
/// part of [`Pearl::prefix`] less one.
#[derive(Clone, Debug, Default)]
pub struct Pearl {
    pending: Vec<Drafted>,
}

impl Pearl {
    /// A sequence with nothing pending.
    pub fn new() -> Pearl {
        Pearl::default()
    }

    /// Pre-verify or post-verify.
    pub fn phase(&self) -> Phase {
        if self.pending.is_empty() { Phase::PreVerify } else { Phase::PostVerify }
    }

    /// Drafted, not yet judged. Never part of the text.
    pub fn pending(&self) -> &[Drafted] {
        &self.pending
    }

    /// What the draft continues: the text and the pending tokens.
    pub fn prefix(&self, text: &Completion<'_>) -> Vec<u32> {
        let pending = self.pending.iter().map(|draft| draft.token);
        text.tokens().iter().copied().chain(pending).collect()
    }

    /// Ends a step: `chunk` was drafted after [`Pearl::prefix`] while the target scored the pending
    /// tokens; `judge` holds those scores. An empty chunk is one that was not drafted.
    ///
    /// # Errors
    /// Scores that cannot be used.
    pub fn step(
        &mut self,
        text: &mut Completion<'_>,
        chunk: Proposal,
        judge: &mut dyn Judge,
    ) -> Result<Outcome> {
        let mut outcome = verify(text, &self.pending, chunk.first(), judge)?;
        let drafted = self.pending.len() + chunk.len();
        self.pending = if outcome.ends_run || text.is_finished() {
            Vec::new()
        } else {
            chunk.into_iter().skip(1).collect()
        };
        outcome.wasted = drafted - outcome.accepted - self.pending.len();
        Ok(outcome)
    }

    /// Drops what is pending, as when the sequence goes on in another way of decoding.
    pub fn clear(&mut self) -> usize {
        std::mem::take(&mut self.pending).len()
    }
}
