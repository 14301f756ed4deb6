//! `auto`: the mode with the highest expected throughput, with occasional exploration of the
//! others.

use std::collections::BTreeMap;

use super::speeds::size_class;
use crate::Mode;

/// Steps of an exploration.
const EXPLORATION: usize = 3;
/// Steps before a mode that was not the fastest may be explored again. Every exploration that
/// changes nothing doubles it.
const FIRST_INTERVAL: usize = 64;
/// Upper bound of the interval. After this many steps every mode is explored, even one that seemed
/// slow: its measurements may be wrong.
const LAST_INTERVAL: usize = 2048;
/// A mode is explored only if it would be the fastest when faster than expected by this factor.
const OPTIMISM: f64 = 1.25;
/// The mode changes only if the new one is expected to be faster by this factor.
const WORTH_CHANGING: f64 = 1.02;

/// Chooses a mode for each step. It runs every mode for a few steps, then the one with the most
/// expected tokens per second, and explores the others at intervals that grow while exploration
/// changes nothing. Batch sizes are kept apart by powers of two.
#[derive(Clone, Debug, Default)]
pub struct AutoMode {
    /// By size class of the speculating sequences and of the batch.
    sizes: BTreeMap<(usize, usize), SizeState>,
}

/// The choice for one batch size class.
#[derive(Clone, Debug)]
struct SizeState {
    steps: usize,
    current: Mode,
    /// An exploration in progress and its remaining steps.
    exploration: Option<(Mode, usize)>,
    /// Last step at which each mode ran.
    last_run: BTreeMap<Mode, usize>,
    /// Steps between explorations.
    interval: usize,
}

impl Default for SizeState {
    fn default() -> SizeState {
        SizeState {
            steps: 0,
            current: Mode::Ar,
            exploration: None,
            last_run: BTreeMap::new(),
            interval: FIRST_INTERVAL,
        }
    }
}

impl AutoMode {
    /// The mode of the next step, of `modes`, with `batch` speculating sequences and `plain`
    /// others. `speed` returns the expected tokens per second of a mode, `None` before it has been
    /// measured.
    pub fn choose(
        &mut self,
        modes: &[Mode],
        batch: usize,
        plain: usize,
        speed: impl Fn(Mode) -> Option<f64>,
    ) -> Mode {
        let sizes = (size_class(batch), size_class(batch + plain));
        let size = self.sizes.entry(sizes).or_default();
        let mode = size.choose(modes, speed);
        size.last_run.insert(mode, size.steps);
        size.steps += 1;
        mode
    }
}

impl SizeState {
    fn choose(&mut self, modes: &[Mode], speed: impl Fn(Mode) -> Option<f64>) -> Mode {
        let exploring = self.exploration.take();
        if let Some((mode, left)) = exploring.filter(|(mode, n)| *n > 0 && modes.contains(mode)) {
            self.exploration = Some((mode, left - 1));
            return mode;
        }
        if !modes.contains(&self.current) {
            self.current = Mode::Ar;
        }
        let known = |mode: Mode| speed(mode).unwrap_or(0.0);
        // Ties go to the simplest mode: `max_by` takes the last.
        let simplest_last = modes.iter().rev().copied();
        let fastest = simplest_last.max_by(|a, b| known(*a).total_cmp(&known(*b)));
        let fastest = fastest.unwrap_or(Mode::Ar);
        if known(fastest) > WORTH_CHANGING * known(self.current) {
            self.current = fastest;
            self.interval = FIRST_INTERVAL;
        }
        let candidate = modes.iter().copied().find(|&mode| {
            let may_win = known(mode) * OPTIMISM > known(self.current);
            let last_run = self.last_run.get(&mode);
            if speed(mode).is_none() {
                return last_run.is_none_or(|step| self.steps - step > FIRST_INTERVAL);
            }
            // A known mode that never ran at this size was measured earlier: its age starts at 0.
            let age = self.steps - last_run.copied().unwrap_or(0);
            age > LAST_INTERVAL || (may_win && age > self.interval)
        });
        match candidate.filter(|&mode| mode != self.current || speed(mode).is_none()) {
            Some(mode) => {
                self.exploration = Some((mode, EXPLORATION - 1));
                if speed(mode).is_some() {
                    self.interval = (2 * self.interval).min(LAST_INTERVAL);
                }
                mode
            }
            None => self.current,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The modes of an engine with a draft model and without guesses.
    const MODES: [Mode; 3] = [Mode::Ar, Mode::Sd, Mode::Pearl];

    /// Runs `steps` steps with known speeds. `auto` learns the speeds of the modes it runs.
    fn run(
        auto: &mut AutoMode,
        seen: &mut BTreeMap<Mode, f64>,
        steps: usize,
        batch: usize,
        speeds: [f64; 3],
    ) -> BTreeMap<Mode, usize> {
        let mut taken = BTreeMap::new();
        for _ in 0..steps {
            let mode = auto.choose(&MODES, batch, 0, |mode| seen.get(&mode).copied());
            seen.insert(mode, speeds[mode as usize]);
            *taken.entry(mode).or_default() += 1;
        }
        taken
    }

    fn first(steps: usize, speeds: [f64; 3]) -> BTreeMap<Mode, usize> {
        run(&mut AutoMode::default(), &mut BTreeMap::new(), steps, 4, speeds)
    }

    #[test]
    fn the_fastest_mode_runs_except_for_explorations() {
        for (speeds, fastest) in [
            ([1.0, 1.5, 2.3], Mode::Pearl),
            ([1.0, 1.5, 1.2], Mode::Sd),
            ([1.0, 0.8, 0.9], Mode::Ar),
        ] {
            assert_eq!(first(60, speeds)[&fastest], 60 - 2 * EXPLORATION, "{speeds:?}");
            let taken = first(5000, speeds);
            assert!(taken[&fastest] > 4900, "{taken:?}");
        }
    }

    #[test]
    fn a_slow_mode_is_explored_again() {
        let (mut auto, mut seen) = (AutoMode::default(), BTreeMap::new());
        run(&mut auto, &mut seen, 300, 1, [1.0, 0.5, 0.3]);
        let taken = run(&mut auto, &mut seen, 10_000, 1, [1.0, 0.5, 2.0]);
        assert!(taken[&Mode::Pearl] > 7000, "{taken:?}");
        // A mode that becomes slow is left at once.
        let taken = run(&mut auto, &mut seen, 300, 1, [1.0, 0.5, 0.3]);
        assert!(taken[&Mode::Ar] > 280, "{taken:?}");
    }

    #[test]
    fn batch_sizes_are_measured_separately() {
        let mut auto = AutoMode::default();
        run(&mut auto, &mut BTreeMap::new(), 300, 1, [1.0, 0.5, 2.0]);
        let taken = run(&mut auto, &mut BTreeMap::new(), 60, 32, [1.0, 0.5, 0.6]);
        assert_eq!(taken[&Mode::Ar], 60 - 2 * EXPLORATION);
    }

    /// Modes that the engine has measured before are not explored.
    #[test]
    fn known_modes_are_not_explored() {
        let mut seen = BTreeMap::from([(Mode::Ar, 1.0), (Mode::Sd, 1.9), (Mode::Pearl, 2.0)]);
        let taken = run(&mut AutoMode::default(), &mut seen, 60, 1, [1.0, 1.9, 2.0]);
        assert_eq!(taken, [(Mode::Pearl, 60)].into());
    }
}
