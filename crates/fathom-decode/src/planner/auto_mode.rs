//! The mode that is fastest here and now: the fastest one known, and now and then an exploration of
//! the others.

use std::collections::BTreeMap;

use super::speeds::size_class;
use crate::Mode;

/// Steps of an exploration.
const LOOK: usize = 3;
/// Steps until a mode that was not the fastest may be explored again; doubled by every exploration
/// that changes nothing.
const FIRST_INTERVAL: usize = 64;
/// The most of that. After so many steps every mode is explored, however slow it seemed: it may
/// have been measured badly.
const LAST_INTERVAL: usize = 2048;
/// Optimism: a mode is worth exploring when it would be the fastest if it were faster than expected
/// by this factor.
const HOPE: f64 = 1.25;
/// The current mode is left only for one that is expected to be faster by this factor.
const WORTH_CHANGING: f64 = 1.02;

/// Chooses among all modes: tries each for a few steps, then takes the one that is expected to make
/// the most tokens a second, and explores the others now and then, less often while that changes
/// nothing. Batch sizes are told apart by powers of two.
#[derive(Clone, Debug, Default)]
pub struct AutoMode {
    /// By how many sequences speculate, and how many there are.
    sizes: BTreeMap<(usize, usize), Size>,
}

#[derive(Clone, Debug)]
struct Size {
    steps: usize,
    current: Mode,
    /// An exploration under way, and the steps left of it.
    look: Option<(Mode, usize)>,
    /// Step at which a mode was taken last.
    taken: BTreeMap<Mode, usize>,
    /// Steps between explorations.
    interval: usize,
}

impl Default for Size {
    fn default() -> Size {
        let interval = FIRST_INTERVAL;
        Size { steps: 0, current: Mode::Ar, look: None, taken: BTreeMap::new(), interval }
    }
}

impl AutoMode {
    /// The mode of the next step, with `batch` sequences and `plain` others, for which nothing is
    /// drafted. `speed` is what a mode is expected to make, in tokens per second; `None` where
    /// nothing is known.
    pub fn choose(
        &mut self,
        batch: usize,
        plain: usize,
        speed: impl Fn(Mode) -> Option<f64>,
    ) -> Mode {
        let sizes = (size_class(batch), size_class(batch + plain));
        let size = self.sizes.entry(sizes).or_default();
        let mode = size.choose(speed);
        size.taken.insert(mode, size.steps);
        size.steps += 1;
        mode
    }
}

impl Size {
    fn choose(&mut self, speed: impl Fn(Mode) -> Option<f64>) -> Mode {
        if let Some((mode, left)) = self.look.take().filter(|(_, left)| *left > 0) {
            self.look = Some((mode, left - 1));
            return mode;
        }
        let known = |mode: Mode| speed(mode).unwrap_or(0.0);
        // Of equally fast ones the simplest: `max_by` takes the last.
        let fastest = Mode::ALL.into_iter().rev().max_by(|a, b| known(*a).total_cmp(&known(*b)));
        let fastest = fastest.unwrap_or(Mode::Ar);
        if known(fastest) > WORTH_CHANGING * known(self.current) {
            self.current = fastest;
            self.interval = FIRST_INTERVAL;
        }
        let looked_at = Mode::ALL.into_iter().find(|&mode| {
            let hopeful = known(mode) * HOPE > known(self.current);
            let taken = self.taken.get(&mode);
            if speed(mode).is_none() {
                return taken.is_none_or(|step| self.steps - step > FIRST_INTERVAL);
            }
            // What is known though it was never taken was measured before: an exploration too.
            let age = self.steps - taken.copied().unwrap_or(0);
            age > LAST_INTERVAL || (hopeful && age > self.interval)
        });
        match looked_at.filter(|&mode| mode != self.current || speed(mode).is_none()) {
            Some(mode) => {
                self.look = Some((mode, LOOK - 1));
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

    /// Runs `steps` steps on a machine with known speeds, of which `auto` learns what it takes.
    fn run(
        auto: &mut AutoMode,
        seen: &mut BTreeMap<Mode, f64>,
        steps: usize,
        batch: usize,
        speeds: [f64; 3],
    ) -> BTreeMap<Mode, usize> {
        let mut taken = BTreeMap::new();
        for _ in 0..steps {
            let mode = auto.choose(batch, 0, |mode| seen.get(&mode).copied());
            seen.insert(mode, speeds[mode as usize]);
            *taken.entry(mode).or_default() += 1;
        }
        taken
    }

    fn first(steps: usize, speeds: [f64; 3]) -> BTreeMap<Mode, usize> {
        run(&mut AutoMode::default(), &mut BTreeMap::new(), steps, 4, speeds)
    }

    #[test]
    fn the_fastest_way_is_taken_but_for_a_few_looks() {
        for (speeds, fastest) in [
            ([1.0, 1.5, 2.3], Mode::Pearl),
            ([1.0, 1.5, 1.2], Mode::Sd),
            ([1.0, 0.8, 0.9], Mode::Ar),
        ] {
            assert_eq!(first(60, speeds)[&fastest], 60 - 2 * LOOK, "{speeds:?}");
            let taken = first(5000, speeds);
            assert!(taken[&fastest] > 4900, "{taken:?}");
        }
    }

    #[test]
    fn what_was_slow_is_looked_at_again() {
        let (mut auto, mut seen) = (AutoMode::default(), BTreeMap::new());
        run(&mut auto, &mut seen, 300, 1, [1.0, 0.5, 0.3]);
        let taken = run(&mut auto, &mut seen, 10_000, 1, [1.0, 0.5, 2.0]);
        assert!(taken[&Mode::Pearl] > 7000, "{taken:?}");
        // And what has become slow is left at once.
        let taken = run(&mut auto, &mut seen, 300, 1, [1.0, 0.5, 0.3]);
        assert!(taken[&Mode::Ar] > 280, "{taken:?}");
    }

    #[test]
    fn batch_sizes_are_measured_apart() {
        let mut auto = AutoMode::default();
        run(&mut auto, &mut BTreeMap::new(), 300, 1, [1.0, 0.5, 2.0]);
        let taken = run(&mut auto, &mut BTreeMap::new(), 60, 32, [1.0, 0.5, 0.6]);
        assert_eq!(taken[&Mode::Ar], 60 - 2 * LOOK);
    }

    /// What other runs of the same engine have measured need not be measured again.
    #[test]
    fn nothing_is_looked_at_that_is_known() {
        let mut seen = BTreeMap::from([(Mode::Ar, 1.0), (Mode::Sd, 1.9), (Mode::Pearl, 2.0)]);
        let taken = run(&mut AutoMode::default(), &mut seen, 60, 1, [1.0, 1.9, 2.0]);
        assert_eq!(taken, [(Mode::Pearl, 60)].into());
    }
}
