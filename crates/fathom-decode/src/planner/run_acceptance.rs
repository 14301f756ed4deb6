//! Acceptance probability of a draft by its position in the run.
//!
//! Acceptance is not independent between tokens: after ten accepted drafts in a row the text is one
//! that the draft model predicts well. The best chunk length depends on this, so probabilities are
//! kept by position in the run. Texts differ even more: some have hardly any rejection. The
//! forecast of a sequence therefore starts from its position in its current run.

use super::running::Mean;

/// Exponential decay per observation: an effective window of 300 drafts, which are some tens of
/// steps of one sequence, or five steps of sixteen.
const DECAY: f64 = 0.997;
/// Weight, in drafts, of the overall probability as the prior of each position.
const PRIOR: f64 = 4.0;
/// Upper bound of an acceptance probability: no draft is certain.
const MOST: f64 = 0.999;
/// Position classes: drafts 1, 2, 3–4, 5–8, 9–16 and later ones of a run.
const CLASSES: usize = 6;
/// Position from which all probabilities are equal.
const LAST_POSITION: usize = 1 << (CLASSES - 2);
/// Longest run considered. A longer one counts as if it ended here.
const LONGEST: usize = 256;

/// Running acceptance probabilities.
#[derive(Clone, Debug)]
pub(crate) struct RunAcceptance {
    overall: Mean,
    by_position: [Mean; CLASSES],
}

impl Default for RunAcceptance {
    fn default() -> RunAcceptance {
        RunAcceptance { overall: Mean::new(DECAY), by_position: [Mean::new(DECAY); CLASSES] }
    }
}

impl RunAcceptance {
    /// Records `judged` drafts, the first `accepted` of them accepted, after `before` tokens of the
    /// same run.
    pub fn record(&mut self, before: usize, judged: usize, accepted: usize) {
        for i in 0..judged {
            let x = if i < accepted { 1.0 } else { 0.0 };
            self.overall.record(x);
            self.by_position[position_class(before + i)].record(x);
        }
    }

    /// Share of all judged drafts that were accepted. `None` before the first.
    pub fn overall(&self) -> Option<f64> {
        self.overall.value()
    }

    /// The survival function of a run. `None` before a draft has been judged.
    pub fn survival(&self) -> Option<Survival> {
        let overall = self.overall()?;
        let chance = self.by_position.map(|mean| mean.value_after(overall, PRIOR).min(MOST));
        let mut alive = 1.0;
        let mut reached = Vec::with_capacity(LONGEST + 1);
        reached.push(alive);
        for k in 0..LONGEST {
            alive *= chance[position_class(k)];
            reached.push(alive);
        }
        let mut ahead = reached.clone();
        for k in (0..LONGEST).rev() {
            ahead[k] += ahead[k + 1];
        }
        Some(Survival { reached, ahead })
    }
}

/// The position class of a draft after `before` accepted ones.
fn position_class(before: usize) -> usize {
    let nth = before + 1;
    (nth.next_power_of_two().ilog2() as usize).min(CLASSES - 1)
}

/// S(k): the probability that the first k drafts of a run are all accepted.
#[derive(Clone, Debug)]
pub(crate) struct Survival {
    /// `[k]` = S(k).
    reached: Vec<f64>,
    /// `[k]` = S(k) + S(k + 1) + …
    ahead: Vec<f64>,
}

impl Survival {
    /// The rest of a run that has `position` tokens.
    pub fn after(&self, position: usize) -> Remaining<'_> {
        let position = bounded_position(position);
        let Survival { reached, ahead } = self;
        Remaining { reached: &reached[position..], now: reached[position], ahead: ahead[position] }
    }
}

/// Survival of a run in progress: S(position + k) / S(position).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Remaining<'a> {
    reached: &'a [f64],
    now: f64,
    ahead: f64,
}

impl Remaining<'_> {
    /// Probability that the next `k` drafts are all accepted.
    pub fn at(&self, k: usize) -> f64 {
        match self.reached.get(k) {
            _ if k == 0 => 1.0,
            Some(reached) if self.now > 0.0 => reached / self.now,
            _ => 0.0,
        }
    }

    /// Expected tokens: further accepted drafts and the corrected token.
    pub fn tokens(&self) -> f64 {
        if self.now > 0.0 { self.ahead / self.now } else { 1.0 }
    }
}

/// `position`, or the last position class's first position if that is smaller: the survival from
/// both is the same.
pub(crate) fn bounded_position(position: usize) -> usize {
    position.min(LAST_POSITION)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn position_classes_are_powers_of_two() {
        let classes = [0, 1, 2, 3, 4, 7, 8, 15, 16, 500].map(position_class);
        assert_eq!(classes, [0, 1, 2, 2, 3, 3, 4, 4, 5, 5]);
    }

    /// Independent acceptance α: a run reaches k with α^k, and has 1/(1-α) tokens.
    #[test]
    fn independent_acceptance_gives_geometric_runs() {
        let mut acceptance = RunAcceptance::default();
        assert!(acceptance.survival().is_none());
        for i in 0..4000 {
            acceptance.record(i / 10 % 40, 1, usize::from(i % 10 != 3)); // one in ten rejected
        }
        let alpha = acceptance.overall().unwrap();
        let survival = acceptance.survival().unwrap();
        assert!((survival.after(0).at(4) / alpha.powi(4) - 1.0).abs() < 0.1);
        assert!(
            (survival.after(0).tokens() * (1.0 - alpha) - 1.0).abs() < 0.1,
            "{}",
            survival.after(0).tokens()
        );
    }

    /// Half of the runs end at once, the others never. The probabilities by position show it, the
    /// overall share does not.
    #[test]
    fn runs_of_two_kinds_are_distinguished() {
        let mut acceptance = RunAcceptance::default();
        for _ in 0..500 {
            acceptance.record(0, 1, 0);
            acceptance.record(0, 1, 1);
            acceptance.record(1, 20, 20);
        }
        let survival = acceptance.survival().unwrap();
        assert!((survival.after(0).at(1) - 0.5).abs() < 0.05, "{}", survival.after(0).at(1));
        assert!(survival.after(0).at(20) > 0.45, "{}", survival.after(0).at(20));
    }
}
