//! The way of decoding that is fastest here and now.

use std::collections::BTreeMap;

use crate::Mode;
use crate::running::Mean;

/// Every so many steps each way is looked at again.
const ROUND: usize = 512;
/// Steps a look takes.
const LOOK: usize = 4;
/// What a measured step weighs beside the one after it.
const DECAY: f64 = 0.95;

/// Chooses among all ways of decoding by measuring: a few steps of each in turn, then the one that makes
/// the most tokens a second, and the same again now and then. Batch sizes are told apart by powers of two.
#[derive(Clone, Debug, Default)]
pub struct AutoMode {
    sizes: BTreeMap<usize, Size>,
}

#[derive(Clone, Debug, Default)]
struct Size {
    steps: usize,
    /// Seconds of a step.
    seconds: BTreeMap<Mode, Mean>,
}

impl AutoMode {
    /// The way to make the next step with `batch` sequences. `tokens_per_step` is what a way is expected
    /// to make of one sequence: acceptance is known better from all drafts than from a look's few steps.
    pub fn choose(&mut self, batch: usize, tokens_per_step: impl Fn(Mode) -> f64) -> Mode {
        let size = self.sizes.entry(batch.next_power_of_two()).or_default();
        let step = size.steps % ROUND;
        size.steps += 1;
        if let Some(&looked_at) = Mode::ALL.get(step / LOOK) {
            return looked_at;
        }
        let speed = |mode: &Mode| {
            let seconds = size.seconds.get(mode).and_then(Mean::value);
            seconds.map_or(0.0, |seconds| tokens_per_step(*mode) / seconds)
        };
        // Of equally fast ones the simplest: `max_by` takes the last.
        let fastest = Mode::ALL.into_iter().rev().max_by(|a, b| speed(a).total_cmp(&speed(b)));
        fastest.unwrap_or(Mode::Ar)
    }

    /// Counts a step of `mode` with `batch` sequences that took `seconds`.
    pub fn record(&mut self, batch: usize, mode: Mode, seconds: f64) {
        let size = self.sizes.entry(batch.next_power_of_two()).or_default();
        size.seconds.entry(mode).or_insert_with(|| Mean::new(DECAY)).record(seconds);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs `steps` steps on a machine with known speeds; how often each way was taken.
    fn run(
        auto: &mut AutoMode,
        steps: usize,
        batch: usize,
        seconds: impl Fn(Mode) -> f64,
    ) -> BTreeMap<Mode, usize> {
        let tokens = |mode| [1.0, 3.0, 2.5][mode as usize];
        let mut taken = BTreeMap::new();
        for _ in 0..steps {
            let mode = auto.choose(batch, tokens);
            auto.record(batch, mode, seconds(mode));
            *taken.entry(mode).or_default() += 1;
        }
        taken
    }

    #[test]
    fn the_fastest_way_is_taken_but_for_the_looks() {
        for (seconds, fastest) in [
            ([1.0, 2.0, 1.1], Mode::Pearl),
            ([1.0, 2.0, 2.0], Mode::Sd),
            ([1.0, 4.0, 3.0], Mode::Ar),
        ] {
            let mut auto = AutoMode::default();
            let taken = run(&mut auto, ROUND, 4, |mode| seconds[mode as usize]);
            assert_eq!(taken[&fastest], ROUND - 2 * LOOK);
        }
    }

    #[test]
    fn what_was_slow_is_looked_at_again() {
        let mut auto = AutoMode::default();
        run(&mut auto, ROUND, 1, |mode| [1.0, 4.0, 3.0][mode as usize]);
        let taken = run(&mut auto, 20 * ROUND, 1, |mode| [1.0, 2.0, 1.1][mode as usize]);
        assert!(taken[&Mode::Pearl] > 15 * ROUND, "{taken:?}");
    }

    #[test]
    fn batch_sizes_are_measured_apart() {
        let mut auto = AutoMode::default();
        run(&mut auto, ROUND, 1, |mode| [1.0, 4.0, 1.0][mode as usize]);
        let taken = run(&mut auto, ROUND, 32, |mode| [1.0, 8.0, 8.0][mode as usize]);
        assert_eq!(taken[&Mode::Ar], ROUND - 2 * LOOK);
    }
}
