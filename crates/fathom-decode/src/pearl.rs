//! PEARL: draft and target run at the same time (Liu et al. 2024).

use fathom_model::Result;

use crate::{Completion, Drafted, Judge, Outcome, Proposal, verify};

/// What the target judges in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nothing is pending: the target judges the first token of the chunk being drafted.
    PreVerify,
    /// The target also judges the pending tokens, the rest of the last chunk.
    PostVerify,
}

/// State of one sequence under PEARL (docs/definitions.md).
///
/// In every step, at the same time,
/// * the **target** scores the last committed token and the pending ones,
/// * the **draft** drafts a chunk of γ tokens after the text and the pending ones.
///
/// Then the target's scores judge the pending tokens and the first token of the chunk. If all are
/// accepted, they become text and the rest of the chunk becomes pending. If one is rejected, the
/// target's correction replaces it, all drafts after it are dropped, and nothing is pending.
///
/// # Key/value caches
/// Before a step the target's cache holds the text without its last token, and the draft's cache
/// holds text and pending tokens without the last one. After [`Pearl::step`] the caller restores
/// this by truncating both.
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

    /// Drafts that are not judged yet. Never part of the text.
    pub fn pending(&self) -> &[Drafted] {
        &self.pending
    }

    /// The prefix that the draft model continues: text and pending tokens.
    pub fn prefix(&self, text: &Completion) -> Vec<u32> {
        let pending = self.pending.iter().map(|draft| draft.token);
        text.tokens().iter().copied().chain(pending).collect()
    }

    /// Ends a step. `chunk` was drafted after [`Pearl::prefix`] while the target scored the pending
    /// tokens; `judge` holds these scores. The chunk is empty if there was no room to draft.
    ///
    /// # Errors
    /// Errors of the judge: logits that are not numbers.
    pub fn step(
        &mut self,
        text: &mut Completion,
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

    /// Drops the pending drafts, as when the mode changes. Returns their number.
    pub fn clear(&mut self) -> usize {
        std::mem::take(&mut self.pending).len()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{EndRules, Verdict};

    /// A target whose text is 10, 11, 12, …
    struct Counting {
        position: usize,
    }

    impl Judge for Counting {
        fn judge(&mut self, row: usize, draft: &Drafted) -> Result<Verdict> {
            let token = self.sample(row)?;
            Ok(if draft.token == token { Verdict::Accept } else { Verdict::Reject(token) })
        }

        fn sample(&mut self, row: usize) -> Result<u32> {
            Ok(10 + (self.position + row) as u32)
        }
    }

    fn chunk(tokens: &[u32]) -> Proposal {
        tokens.iter().map(|&token| Drafted { token, q: None }).collect()
    }

    /// Example of docs/definitions.md, PEARL, with γ = 3.
    #[test]
    fn a_sequence_goes_through_its_phases() {
        let end = EndRules { eos: [18].into(), max_tokens: 100, ..EndRules::default() };
        let mut text = Completion::new(vec![10], end);
        let mut pearl = Pearl::new();
        let mut step = |chunk_tokens: &[u32]| {
            let mut judge = Counting { position: text.tokens().len() };
            let outcome = pearl.step(&mut text, chunk(chunk_tokens), &mut judge).unwrap();
            (text.generated().to_vec(), pearl.prefix(&text), pearl.phase(), outcome)
        };

        // Pre-verify, accepted: one token is text, two are pending.
        let (text, prefix, phase, outcome) = step(&[11, 12, 13]);
        assert_eq!((&text[..], &prefix[..]), (&[11][..], &[10, 11, 12, 13][..]));
        assert_eq!((phase, outcome.judged, outcome.accepted), (Phase::PostVerify, 1, 1));

        // Post-verify, all accepted: the two pending ones and the first of the next chunk.
        let (text, prefix, phase, outcome) = step(&[14, 15, 99]);
        assert_eq!((&text[..], prefix.len()), (&[11, 12, 13, 14][..], 7));
        assert_eq!((phase, outcome.judged, outcome.accepted), (Phase::PostVerify, 3, 3));

        // Post-verify, the second pending one rejected: its correction ends the run, the chunk is
        // dropped.
        let (text, prefix, phase, outcome) = step(&[100, 101, 102]);
        assert_eq!((&text[4..], prefix.len()), (&[15, 16][..], 7));
        assert_eq!((phase, outcome.judged, outcome.accepted), (Phase::PreVerify, 2, 1));
        assert_eq!((outcome.wasted, outcome.ends_run), (4, true));

        // Pre-verify, rejected.
        let (text, _, phase, outcome) = step(&[42, 43, 44]);
        assert_eq!((&text[6..], phase, outcome.accepted), (&[17][..], Phase::PreVerify, 0));
        assert_eq!(outcome.wasted, 3);

        // An end-of-text token accepted: nothing after it is text, or pending.
        let (text, prefix, _, outcome) = step(&[18, 19, 20]);
        assert_eq!((&text[7..], prefix.len()), (&[18][..], 9));
        assert_eq!((outcome.accepted, outcome.wasted), (1, 2));
    }
}
