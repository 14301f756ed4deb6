//! Statistics of speculation: accepted runs and acceptance rates.

use crate::Outcome;

/// Runs of one sequence. A run is the tokens committed between two rejections, including the
/// corrected token. Without drafts every token is a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AcceptedRuns {
    /// Ended runs.
    ended: usize,
    /// Tokens of the ended runs.
    in_ended: usize,
    /// Tokens of the current run.
    open: usize,
}

impl AcceptedRuns {
    /// Records a step.
    pub fn record(&mut self, outcome: &Outcome) {
        self.open += outcome.committed;
        if outcome.ends_run {
            self.ended += 1;
            self.in_ended += std::mem::take(&mut self.open);
        }
    }

    /// Tokens of the run that has not ended.
    pub fn open(&self) -> usize {
        self.open
    }

    /// Mean accepted tokens (MAT): the mean length of a run, including the last one, which no
    /// rejection ended. `None` before the first token.
    pub fn mean(&self) -> Option<f64> {
        let runs = self.ended + usize::from(self.open > 0);
        (runs > 0).then(|| (self.in_ended + self.open) as f64 / runs as f64)
    }
}

/// Acceptance counts by position among the drafts judged in one pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Acceptance {
    judged: Vec<u64>,
    accepted: Vec<u64>,
}

impl Acceptance {
    /// Records a step.
    pub fn record(&mut self, outcome: &Outcome) {
        if self.judged.len() < outcome.judged {
            self.judged.resize(outcome.judged, 0);
            self.accepted.resize(outcome.judged, 0);
        }
        self.judged.iter_mut().take(outcome.judged).for_each(|n| *n += 1);
        self.accepted.iter_mut().take(outcome.accepted).for_each(|n| *n += 1);
    }

    /// Drafts judged.
    pub fn judged(&self) -> u64 {
        self.judged.iter().sum()
    }

    /// Drafts accepted.
    pub fn accepted(&self) -> u64 {
        self.accepted.iter().sum()
    }

    /// Share of judged drafts that were accepted. `None` before the first.
    pub fn rate(&self) -> Option<f64> {
        let judged = self.judged();
        (judged > 0).then(|| self.accepted() as f64 / judged as f64)
    }

    /// Judged and accepted drafts by position: of the 1st, 2nd, … draft judged in a pass of the
    /// target.
    pub fn counts(&self) -> impl Iterator<Item = (u64, u64)> {
        self.judged.iter().copied().zip(self.accepted.iter().copied())
    }

    /// The acceptance rate of the 1st, 2nd, … draft judged in a pass of the target.
    pub fn by_position(&self) -> Vec<f64> {
        self.accepted.iter().zip(&self.judged).map(|(&a, &n)| a as f64 / n as f64).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(judged: usize, accepted: usize, committed: usize, ends_run: bool) -> Outcome {
        let wasted = judged - accepted;
        Outcome { judged, accepted, committed, wasted, ends_run, ..Outcome::default() }
    }

    #[test]
    fn a_run_is_the_tokens_from_one_rejection_to_the_next() {
        let mut runs = AcceptedRuns::default();
        assert_eq!(runs.mean(), None);
        runs.record(&step(1, 1, 1, false)); // pre-verify, accepted
        runs.record(&step(4, 2, 3, true)); // two more and the correction: a run of 4
        runs.record(&step(1, 0, 1, true)); // a run of 1
        assert_eq!(runs.mean(), Some(2.5));
        runs.record(&step(1, 1, 1, false)); // still open: 1
        assert_eq!(runs.mean(), Some(2.0));
    }

    #[test]
    fn acceptance_is_counted_by_position() {
        let mut acceptance = Acceptance::default();
        acceptance.record(&step(3, 3, 4, false));
        acceptance.record(&step(2, 1, 2, true));
        assert_eq!(acceptance.rate(), Some(4.0 / 5.0));
        assert_eq!(acceptance.by_position(), [1.0, 0.5, 1.0]);
    }
}
