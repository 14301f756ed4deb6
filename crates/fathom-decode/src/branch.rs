//! Branches of forked PEARL: continuations that the draft prepares for the case that one of its
//! tokens is rejected.
//!
//! PEARL loses a step at each rejection: all drafts behind the wrong token are dropped, and the
//! next pass of the target scores a single row. While the target verifies, the draft therefore also
//! continues behind the outcomes (position of the rejection, token in its place) that it finds
//! likeliest. If the target's correction is one of these, the drafts behind it are pending at once,
//! and no step is lost. SpecBranch (Shen et al. 2025, arXiv:2506.01979) and SSD (Kumar et al. 2026)
//! prepare for rejections too; the choice of branches by their cost is our own.
//!
//! Whether a branch is taken is decided by the target's correction alone, which is drawn before
//! branches are looked at. So neither a text nor its distribution depends on the branches. If the
//! correction is drawn from r = max(p - q, 0), as in speculative sampling, one of the prepared
//! tokens C is hit with probability r(C) / Σ r. To draw the prepared tokens at random and to judge
//! one after another, as in multi-candidate sampling (Yang et al. 2024, arXiv:2401.06706;
//! SpecInfer, Miao et al. 2024, arXiv:2305.09781), also gives the target's distribution, but the
//! text of a seed would depend on them.

use crate::Drafted;

/// Drafts for the case that a draft is rejected.
#[derive(Clone, Debug, PartialEq)]
pub struct Branch {
    /// Number of pending drafts before the rejected one, all of them accepted.
    pub after: usize,
    /// The token in its place.
    pub token: u32,
    /// What the draft continues with. Empty if the branch was only considered.
    pub drafts: Vec<Drafted>,
}

impl Branch {
    /// Whether the text took this branch in a step with a rejection, after which `committed` became
    /// text. The correction is its last token, unless free guesses went on behind it; then the
    /// branch must have gone the same way, and further.
    pub fn is_taken(&self, committed: &[u32]) -> bool {
        let is_last = committed.len() == self.after + 1;
        committed.get(self.after) == Some(&self.token)
            && (is_last || !self.rest(committed).is_empty())
    }

    /// The drafts that are left after `committed` if the branch is taken.
    pub fn rest(&self, committed: &[u32]) -> &[Drafted] {
        let others = committed.get(self.after + 1..).unwrap_or_default();
        let agree = others.iter().zip(&self.drafts).all(|(token, own)| *token == own.token);
        if agree { self.drafts.get(others.len()..).unwrap_or_default() } else { &[] }
    }
}

/// Rejections considered for a text. Those without a branch of their own show what more branches
/// would gain.
pub(crate) const CONSIDERED: usize = 32;

/// The most likely tokens of the draft model at a position.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Alternatives {
    /// Token ids and their probabilities among these tokens, the most likely first.
    tokens: Vec<(u32, f32)>,
}

/// Tokens kept for a position. A weak draft's eighth choice is still the target's now and then, and
/// where nothing is pending all branches are at one position.
const KEPT: usize = 32;

impl Alternatives {
    /// The most likely of the ids < `limit`. The others are neglected: they hardly matter for which
    /// branch is likelier. Ids whose logit is not a number are ignored.
    pub fn of(
        logits: &[f32], // [vocab]
        limit: usize,
    ) -> Alternatives {
        let mut tokens: Vec<(u32, f32)> = Vec::with_capacity(KEPT + 1);
        let mut least = f32::NEG_INFINITY;
        for (id, &logit) in (0..).zip(&logits[..limit.min(logits.len())]) {
            if logit > least {
                let at = tokens.partition_point(|&(_, kept)| kept >= logit);
                tokens.insert(at, (id, logit));
                tokens.truncate(KEPT);
                if tokens.len() == KEPT {
                    least = tokens[KEPT - 1].1;
                }
            }
        }
        let largest = tokens.first().map_or(0.0, |&(_, logit)| logit);
        tokens.iter_mut().for_each(|(_, weight)| *weight = (*weight - largest).exp());
        let sum: f32 = tokens.iter().map(|&(_, weight)| weight).sum();
        tokens.iter_mut().for_each(|(_, weight)| *weight /= sum);
        Alternatives { tokens }
    }

    /// The probability of a token, or of the least likely one if it is not among them. 1 if
    /// nothing is known.
    fn prob(&self, token: u32) -> f32 {
        let own = self.tokens.iter().find(|(id, _)| *id == token);
        own.or(self.tokens.last()).map_or(1.0, |&(_, prob)| prob)
    }
}

/// The `most` likeliest rejections among consecutive `drafts`, the likeliest first, by the draft's
/// own probabilities: draft d_i is replaced by r with probability q_1(d_1) ⋯ q_{i-1}(d_{i-1})
/// times q_i(r). They are branches without drafts.
///
/// ```
/// use fathom_decode::{Alternatives, likeliest_rejections};
///
/// let certain = Alternatives::of(&[9.0, 0.0, 0.0], 3);
/// let doubtful = Alternatives::of(&[0.0, 2.0, 1.9], 3);
/// let branches = likeliest_rejections(&[(0, &certain), (1, &doubtful)], 2);
/// assert_eq!((branches[0].after, branches[0].token), (1, 2));
/// assert_eq!((branches[1].after, branches[1].token), (1, 0));
/// ```
pub fn likeliest_rejections(drafts: &[(u32, &Alternatives)], most: usize) -> Vec<Branch> {
    let mut reached = 1.0;
    let mut all: Vec<(f32, Branch)> = Vec::new();
    for (after, &(draft, alternatives)) in drafts.iter().enumerate() {
        let others = alternatives.tokens.iter().filter(|(token, _)| *token != draft);
        all.extend(
            others.map(|&(token, prob)| {
                (reached * prob, Branch { after, token, drafts: Vec::new() })
            }),
        );
        reached *= alternatives.prob(draft);
    }
    all.sort_by(|a, b| b.0.total_cmp(&a.0)); // stable: the earlier position first
    all.into_iter().map(|(_, branch)| branch).take(most).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn branch(after: usize, token: u32, drafts: &[u32]) -> Branch {
        let drafts = drafts.iter().map(|&token| Drafted { token, q: None }).collect();
        Branch { after, token, drafts }
    }

    #[test]
    fn a_branch_is_taken_if_the_text_goes_its_way() {
        let branch = branch(1, 9, &[3, 4]);
        let rest = |committed: &[u32]| branch.rest(committed).len();
        assert!(branch.is_taken(&[5, 9]) && rest(&[5, 9]) == 2);
        assert!(branch.is_taken(&[5, 9, 3]) && rest(&[5, 9, 3]) == 1, "a free guess went on");
        for committed in [&[5, 9, 4][..], &[5, 9, 3, 4], &[5, 9, 3, 4, 5]] {
            assert!(!branch.is_taken(committed) && rest(committed) == 0, "{committed:?}");
        }
        assert!(!branch.is_taken(&[9]), "another position");
        assert!(!branch.is_taken(&[5, 8]), "another token");
    }

    /// Against all (position, token) pairs of softmax probabilities over the whole vocabulary.
    #[test]
    fn the_likeliest_rejections_come_first() {
        let logits = [[2.0, 1.0, 0.5, -1.0, 0.2], [0.1, 3.0, 2.9, 1.0, -2.0], [0.0; 5]];
        let drafts = [0_u32, 1, 4];
        let alternatives = logits.map(|row| Alternatives::of(&row, 5));
        let pairs: Vec<_> = drafts.iter().copied().zip(&alternatives).collect();
        let softmax = |row: [f32; 5]| {
            let sum: f32 = row.iter().map(|x| x.exp()).sum();
            row.map(|x| x.exp() / sum)
        };
        let mut expected = Vec::new();
        let mut reached = 1.0;
        for (after, (row, draft)) in logits.into_iter().zip(drafts).enumerate() {
            let probs = softmax(row);
            for token in (0..5).filter(|&token| token != draft) {
                expected.push((reached * probs[token as usize], after, token));
            }
            reached *= probs[draft as usize];
        }
        expected.sort_by(|a, b| b.0.total_cmp(&a.0));
        let expected: Vec<_> = expected.into_iter().map(|(_, at, token)| (at, token)).collect();
        let found = likeliest_rejections(&pairs, 100);
        let found: Vec<_> = found.into_iter().map(|b| (b.after, b.token)).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn padding_and_numbers_that_are_none_are_no_alternatives() {
        let alternatives = Alternatives::of(&[f32::NAN, 1.0, 5.0, 9.0], 3);
        let tokens: Vec<u32> = alternatives.tokens.iter().map(|&(id, _)| id).collect();
        assert_eq!(tokens, [2, 1]);
        let many: Vec<f32> = (0..100).map(|i| ((i * 37) % 100) as f32).collect();
        let mut descending: Vec<u32> = (0..100).collect();
        descending.sort_by(|&a, &b| many[b as usize].total_cmp(&many[a as usize]));
        let kept = Alternatives::of(&many, 100).tokens;
        assert_eq!(kept.iter().map(|&(id, _)| id).collect::<Vec<_>>(), descending[..KEPT]);
    }
}
