//! PEARL: draft and target run at the same time (Liu et al. 2024).

use fathom_model::Result;

use crate::{Branch, Completion, Drafted, Judge, Outcome, Proposal, Verdict, verify};

/// What the target judges in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
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

    /// Ends a step in which the target scored free guesses too: `guesses` follow the pending
    /// tokens, and so far each row costs nothing in a pass that is bound by memory.
    ///
    /// If the token after the pending ones is the first guess, the next row is the target's for the
    /// text with that token, and gives one more; and so on. While these tokens are those of the
    /// chunk, the chunk goes on after them. A rejected draft thus costs no step if the guesses are
    /// right.
    ///
    /// For texts at temperature 0, which are the same with any guesses. Above it the distribution
    /// would be right too, but the text of a seed would depend on the guesses.
    ///
    /// # Errors
    /// Errors of the judge: logits that are not numbers.
    pub fn step_with_guesses(
        &mut self,
        text: &mut Completion,
        chunk: Proposal,
        guesses: &[u32],
        judge: &mut dyn Judge,
    ) -> Result<Outcome> {
        let after_pending = text.tokens().len() + self.pending.len();
        let mut outcome = verify(text, &self.pending, chunk.first(), judge)?;
        let committed = |text: &Completion| text.tokens().len().saturating_sub(after_pending);
        // Tokens of the chunk that are text.
        let mut agreed = match outcome.ends_run {
            true => 0,
            false => committed(text).min(chunk.len()),
        };
        for (row, guess) in (self.pending.len() + 1..).zip(guesses) {
            let is_right = committed(text) > 0 && text.tokens().last() == Some(guess);
            if text.is_finished() || !is_right {
                break;
            }
            outcome.committed += 1;
            match chunk.get(agreed).filter(|_| agreed == committed(text)) {
                None => {
                    outcome.free += 1;
                    text.commit(judge.sample(row)?)?;
                }
                Some(draft) => {
                    outcome.judged += 1;
                    match judge.judge(row, draft)? {
                        Verdict::Accept => {
                            outcome.accepted += 1;
                            agreed += 1;
                            text.commit(draft.token)?;
                        }
                        Verdict::Reject(correction) => {
                            (outcome.ends_run, outcome.is_early) = (true, true);
                            text.commit(correction)?;
                        }
                    }
                }
            }
        }
        let drafted = self.pending.len() + chunk.len();
        self.pending = if outcome.ends_run || text.is_finished() {
            Vec::new()
        } else {
            chunk.into_iter().skip(agreed).collect()
        };
        outcome.pending = self.pending.len();
        outcome.wasted = drafted - outcome.accepted - outcome.pending;
        Ok(outcome)
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
        self.step_with_guesses(text, chunk, &[], judge)
    }

    /// Ends a step of `forked`, for which the draft prepared `branches`. Like
    /// [`Pearl::step_with_guesses`], but if the text took a branch after a rejection, what is left
    /// of it is pending. Returns which one.
    ///
    /// # Errors
    /// Errors of the judge: logits that are not numbers.
    pub fn step_with_branches(
        &mut self,
        text: &mut Completion,
        chunk: Proposal,
        guesses: &[u32],
        branches: &[Branch],
        judge: &mut dyn Judge,
    ) -> Result<(Outcome, Option<usize>)> {
        let before = text.tokens().len();
        let mut outcome = self.step_with_guesses(text, chunk, guesses, judge)?;
        if !outcome.ends_run || text.is_finished() {
            return Ok((outcome, None));
        }
        let committed = &text.tokens()[before..];
        let taken = branches.iter().position(|branch| branch.is_taken(committed));
        if let Some(branch) = taken.and_then(|i| branches.get(i)) {
            self.pending = branch.rest(committed).to_vec();
            outcome.pending = self.pending.len();
        }
        Ok((outcome, taken))
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
    use crate::EndRules;

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

    /// With γ = 3: guesses after a rejected draft are text at once, and a chunk goes on behind the
    /// guesses that agree with it.
    #[test]
    fn guesses_fill_the_pass() {
        let end = EndRules { max_tokens: 100, ..EndRules::default() };
        let mut text = Completion::new(vec![10], end);
        let mut pearl = Pearl::new();
        let mut step = |chunk_tokens: &[u32], guesses: &[u32]| {
            let mut judge = Counting { position: text.tokens().len() };
            let chunk = chunk(chunk_tokens);
            let outcome = pearl.step_with_guesses(&mut text, chunk, guesses, &mut judge).unwrap();
            (text.generated().len(), pearl.prefix(&text).len(), outcome)
        };

        // The draft is wrong, both guesses are right: three tokens, nothing pending.
        let (len, prefix, outcome) = step(&[99, 98, 97], &[11, 12]);
        assert_eq!((len, prefix, outcome.judged, outcome.accepted), (3, 4, 1, 0));
        assert_eq!((outcome.committed, outcome.wasted, outcome.ends_run), (3, 3, true));
        assert_eq!((outcome.free, outcome.is_early), (2, false));

        // Draft and first guess are right: two tokens, and the third of the chunk is pending.
        let (len, prefix, outcome) = step(&[14, 15, 16], &[14, 99]);
        assert_eq!((len, prefix, outcome.judged, outcome.accepted), (5, 7, 2, 2));
        assert_eq!((outcome.committed, outcome.wasted, outcome.ends_run), (2, 0, false));

        // Post-verify: guesses follow the pending token. The second of the chunk is wrong.
        let (len, prefix, outcome) = step(&[17, 99, 98], &[17, 18]);
        assert_eq!((len, prefix, outcome.judged, outcome.accepted), (9, 10, 3, 2));
        assert_eq!((outcome.committed, outcome.wasted, outcome.ends_run), (4, 2, true));
        assert_eq!((outcome.free, outcome.is_early), (1, true), "the second of the chunk was due");

        // A wrong guess changes nothing, nor do guesses behind a rejected pending token.
        let (len, prefix, _) = step(&[20, 99, 22], &[99, 21]);
        assert_eq!((len, prefix), (10, 13));
        let (len, prefix, outcome) = step(&[23, 24, 25], &[23, 24]);
        assert_eq!((len, prefix, outcome.committed, outcome.ends_run), (11, 12, 1, true));
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
