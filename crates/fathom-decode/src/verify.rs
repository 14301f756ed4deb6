//! Verification of drafts, shared by all modes.

use fathom_model::Result;

use crate::{Completion, Drafted};

/// The target's verdict on a drafted token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The draft is accepted.
    Accept,
    /// The draft is rejected and replaced by this token.
    Reject(u32),
}

/// The target's verdict on a chunk of drafts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockVerdict {
    /// Number of accepted drafts.
    pub accepted: usize,
    /// The token after them, if not all were accepted.
    pub correction: Option<u32>,
}

/// How the drafts of a sampled text are judged. Both give the target's distribution; the texts of a
/// seed differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verification {
    /// One by one (Leviathan et al. 2023, algorithm 1).
    #[default]
    Token,
    /// Those of a pass together, which accepts at least as many ([`crate::BlockVerification`]).
    Block,
}

/// The target's scores of a text and the drafts after it.
///
/// Row `i` predicts the token after the text and the first `i` drafts.
pub trait Judge {
    /// Judges `draft` by row `row`.
    ///
    /// # Errors
    /// Logits that are not numbers.
    fn judge(&mut self, row: usize, draft: &Drafted) -> Result<Verdict>;

    /// The target's own token for row `row`.
    ///
    /// # Errors
    /// Logits that are not numbers.
    fn sample(&mut self, row: usize) -> Result<u32>;

    /// Judges drafts from row 0 on together. `None` if they are to be judged one by one.
    ///
    /// # Errors
    /// Logits that are not numbers.
    fn judge_block(&mut self, _drafts: &[&Drafted]) -> Result<Option<BlockVerdict>> {
        Ok(None)
    }
}

/// The result of a step for one text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Drafts judged.
    pub judged: usize,
    /// Drafts accepted: all judged ones, or all but the last.
    pub accepted: usize,
    /// Tokens committed: accepted drafts, and the target's own token if there is one.
    pub committed: usize,
    /// Drafts that did not become text. Set by the modes: [`verify`] leaves it 0.
    pub wasted: usize,
    /// Whether this step ends a run: a draft was rejected, or there was none.
    pub ends_run: bool,
    /// Of `committed`, the tokens that only free guesses gave: after the correction of a draft, or
    /// after the last one.
    pub free: usize,
    /// Whether a draft was rejected that would not have been judged before the next step without
    /// free guesses.
    pub is_early: bool,
    /// Drafts that the next step will judge. Set by `pearl` and `forked`.
    pub pending: usize,
}

/// Judges `pending` and then `next`, which follows them, until one is rejected. Commits the
/// accepted drafts, and the target's correction of a rejected one. If nothing is rejected and
/// `next` is `None`, commits the target's own token. Stops when the text ends.
///
/// ```
/// use fathom_decode::{Completion, Drafted, EndRules, GreedyJudge, verify};
///
/// # fn main() -> fathom_model::Result<()> {
/// let end = EndRules { max_tokens: 10, ..EndRules::default() };
/// let mut text = Completion::new(vec![1, 2], end);
/// let drafts = [3, 4, 9].map(|token| Drafted { token, q: None });
///
/// // The target's tokens after the text and after each of the drafts.
/// let mut judge = GreedyJudge { best: &[3, 4, 5, 6] };
/// let outcome = verify(&mut text, &drafts, None, &mut judge)?;
/// assert_eq!(text.generated(), [3, 4, 5], "two accepted, and the target's own in place of the 9");
/// assert_eq!((outcome.judged, outcome.accepted, outcome.committed), (3, 2, 3));
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// Errors of the judge: logits that are not numbers.
pub fn verify(
    text: &mut Completion,
    pending: &[Drafted],
    next: Option<&Drafted>,
    judge: &mut dyn Judge,
) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    let drafts: Vec<&Drafted> = pending.iter().chain(next).collect();
    let mut block = judge.judge_block(&drafts)?;
    let mut verdict = |row: usize, draft: &Drafted, judge: &mut dyn Judge| match &mut block {
        None => judge.judge(row, draft),
        Some(BlockVerdict { accepted, correction }) => Ok(match correction {
            Some(correction) if row == *accepted => Verdict::Reject(*correction),
            _ => Verdict::Accept,
        }),
    };
    for (row, draft) in drafts.into_iter().enumerate() {
        if text.is_finished() {
            return Ok(outcome);
        }
        outcome.judged += 1;
        outcome.committed += 1;
        match verdict(row, draft, judge)? {
            Verdict::Accept => {
                outcome.accepted += 1;
                text.commit(draft.token)?;
            }
            Verdict::Reject(correction) => {
                outcome.ends_run = true;
                text.commit(correction)?;
                return Ok(outcome);
            }
        }
    }
    if next.is_none() && !text.is_finished() {
        outcome.committed += 1;
        outcome.ends_run = pending.is_empty();
        text.commit(judge.sample(pending.len())?)?;
    }
    Ok(outcome)
}
