//! How likely a draft is to be accepted, by how long it has been right.
//!
//! Acceptance is not independent from token to token: a draft that was right ten times in a row is
//! in a passage it knows. How long a chunk pays depends on it, so the chances are kept by place in
//! the run. Texts differ more still: one that the draft knows by heart has hardly a run that ends.
//! What is expected of a sequence therefore starts from where in a run it is.

use super::running::Mean;

/// What a judged draft weighs beside the next one at about the same place: the last 300 or so
/// count, which are some tens of steps of one sequence and five of sixteen.
const DECAY: f64 = 0.997;
/// Each place starts from the overall chance, as from so many drafts of its own.
const PRIOR: f64 = 4.0;
/// No draft is certain: chances are at most this.
const MOST: f64 = 0.999;
/// Places told apart: 1, 2, 3–4, 5–8, 9–16 and those behind.
const PLACES: usize = 6;
/// The place from which on chances are the same.
const LAST_PLACE: usize = 1 << (PLACES - 2);
/// Longest run looked at. A longer one counts as if it ended here.
const LONGEST: usize = 256;

/// Running chances of acceptance.
#[derive(Clone, Debug)]
pub(crate) struct RunAcceptance {
    overall: Mean,
    by_place: [Mean; PLACES],
}

impl Default for RunAcceptance {
    fn default() -> RunAcceptance {
        RunAcceptance { overall: Mean::new(DECAY), by_place: [Mean::new(DECAY); PLACES] }
    }
}

impl RunAcceptance {
    /// Counts `judged` drafts, of which the first `accepted` were, after `before` tokens of the
    /// same run.
    pub fn record(&mut self, before: usize, judged: usize, accepted: usize) {
        for i in 0..judged {
            let x = if i < accepted { 1.0 } else { 0.0 };
            self.overall.record(x);
            self.by_place[place(before + i)].record(x);
        }
    }

    /// Share of all judged drafts that were accepted; `None` before the first.
    pub fn overall(&self) -> Option<f64> {
        self.overall.value()
    }

    /// What is expected of a run; `None` before a draft has been judged.
    pub fn survival(&self) -> Option<Survival> {
        let overall = self.overall()?;
        let chance = self.by_place.map(|mean| mean.value_after(overall, PRIOR).min(MOST));
        let mut alive = 1.0;
        let mut reached = Vec::with_capacity(LONGEST + 1);
        reached.push(alive);
        for k in 0..LONGEST {
            alive *= chance[place(k)];
            reached.push(alive);
        }
        Some(Survival { reached })
    }
}

/// The place of a draft after `before` right ones.
fn place(before: usize) -> usize {
    let nth = before + 1;
    (nth.next_power_of_two().ilog2() as usize).min(PLACES - 1)
}

/// The chances of a run to be at least so long.
#[derive(Clone, Debug)]
pub(crate) struct Survival {
    /// `[k]`: the first k drafts of a run are all accepted.
    reached: Vec<f64>,
}

impl Survival {
    /// What is left of a run that has `place` tokens.
    pub fn after(&self, place: usize) -> Remaining<'_> {
        let place = same_chances(place);
        Remaining { reached: &self.reached[place..], now: self.reached[place] }
    }
}

/// What is left of a run: the chances that it goes on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Remaining<'a> {
    reached: &'a [f64],
    now: f64,
}

impl Remaining<'_> {
    /// Chance that the next `k` drafts are all accepted.
    pub fn at(&self, k: usize) -> f64 {
        match self.reached.get(k) {
            _ if k == 0 => 1.0,
            Some(reached) if self.now > 0.0 => reached / self.now,
            _ => 0.0,
        }
    }

    /// Expected tokens: the drafts still accepted and the corrected token.
    pub fn tokens(&self) -> f64 {
        if self.now > 0.0 { self.reached.iter().sum::<f64>() / self.now } else { 1.0 }
    }
}

/// One place for all with the same chances from there on.
pub(crate) fn same_chances(place: usize) -> usize {
    place.min(LAST_PLACE)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn places_are_told_apart_as_they_say() {
        assert_eq!([0, 1, 2, 3, 4, 7, 8, 15, 16, 500].map(place), [0, 1, 2, 2, 3, 3, 4, 4, 5, 5]);
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

    /// Half of the runs end at once, the others never: the overall share does not tell, the places
    /// do.
    #[test]
    fn runs_that_come_in_two_kinds_are_seen() {
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
