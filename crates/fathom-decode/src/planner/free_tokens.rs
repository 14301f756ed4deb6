//! What free guesses add to the steps of `pearl` and `forked`.

use std::collections::BTreeMap;

use super::running::Mean;
use super::speeds::size_class;
use crate::{Outcome, Phase};

/// Exponential decay per step of a sequence: an effective window of 100.
const DECAY: f64 = 0.99;
/// Weight, in steps, of the assumption that guesses add nothing.
const PRIOR: f64 = 4.0;

/// Measured means per step of a sequence, by batch size class and phase.
#[derive(Clone, Debug, Default)]
pub(crate) struct FreeTokens {
    by_phase: BTreeMap<(usize, Phase), Means>,
}

#[derive(Clone, Copy, Debug)]
struct Means {
    rows: Mean,
    tokens: Mean,
    steps: Mean,
}

/// What guesses add to the mean step of a sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Gain {
    /// Guesses that the target scores.
    pub rows: f64,
    /// Tokens after the draft's first error, or after its chunk.
    pub tokens: f64,
    /// Steps saved, because the draft's first error was found a step early.
    pub steps: f64,
}

impl FreeTokens {
    /// Records a step of a sequence, in a batch of this size, that began in `phase` and in which
    /// the target scored `guesses`.
    pub fn record(&mut self, batch: usize, phase: Phase, guesses: usize, outcome: &Outcome) {
        let new = Mean::new(DECAY);
        let means = self.by_phase.entry((size_class(batch), phase));
        let means = means.or_insert(Means { rows: new, tokens: new, steps: new });
        means.rows.record(guesses as f64);
        means.tokens.record(outcome.free as f64);
        means.steps.record(if outcome.is_early { 1.0 } else { 0.0 });
    }

    /// What guesses are expected to add to a step that begins in `phase`.
    pub fn gain(&self, batch: usize, phase: Phase) -> Gain {
        let Some(means) = self.by_phase.get(&(size_class(batch), phase)) else {
            return Gain::default();
        };
        let value = |mean: Mean| mean.value_after(0.0, PRIOR);
        Gain { rows: value(means.rows), tokens: value(means.tokens), steps: value(means.steps) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gains_are_learned_by_batch_size_and_phase() {
        let mut free = FreeTokens::default();
        for i in 0..1000 {
            let outcome = Outcome { free: 2 * (i % 2), is_early: i % 4 == 0, ..Outcome::default() };
            free.record(3, Phase::PreVerify, 5, &outcome);
        }
        let Gain { rows, tokens, steps } = free.gain(4, Phase::PreVerify);
        assert!((rows - 5.0).abs() < 0.3 && (tokens - 1.0).abs() < 0.1, "{rows} {tokens}");
        assert!((steps - 0.25).abs() < 0.03, "{steps}");
        assert_eq!(free.gain(4, Phase::PostVerify), Gain::default());
        assert_eq!(free.gain(1, Phase::PreVerify), Gain::default());
    }
}
