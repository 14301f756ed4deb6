#![doc = include_str!("planner/README.md")]

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod ablation;
mod auto_mode;
mod branches;
mod forecast;
mod free_tokens;
mod gamma;
mod guesses;
mod pass_cost;
mod run_acceptance;
mod running;
mod speeds;

use std::collections::BTreeMap;

use crate::engine::{Gamma, ModeChoice};
use crate::{Guess, Mode, Phase};
use auto_mode::AutoMode;
use gamma::AdaptiveGamma;
pub use gamma::{GammaLimits, Lengths};
pub(crate) use guesses::{Guessed, Guessing};
pub use running::{Line, Mean};
use speeds::Speeds;

/// What the next step does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepPlan {
    /// The mode.
    pub mode: Mode,
    /// The length of a chunk; 0 in `ar`.
    pub gamma: usize,
    /// Branches of every sequence; 0 except in `forked`.
    pub branches: usize,
}

/// Chooses the mode, γ and branches of every step from the measured costs and acceptance of
/// earlier steps.
#[derive(Clone, Debug, Default)]
pub struct Planner {
    /// Measured costs and acceptance.
    pub(crate) speeds: Speeds,
    gamma: AdaptiveGamma,
    auto: AutoMode,
    /// Acceptance of free guesses, and the throughput they give.
    pub(crate) guessing: Guessing,
}

impl Planner {
    /// A planner without measurements.
    pub fn new(gamma: Gamma) -> Planner {
        let gamma = adaptive(gamma);
        Planner { gamma, speeds: Speeds::default(), ..Planner::default() }
    }

    /// Changes how γ is chosen. The measurements are kept.
    pub fn set_gamma(&mut self, gamma: Gamma) {
        self.gamma = adaptive(gamma);
    }

    /// How many of the guesses for each sequence of a batch are worth verifying in one pass of
    /// `suffix`. `auto` compares the throughput that this gives with that of other modes.
    pub fn plan_guesses(&mut self, guesses: &[&[Guess]]) -> Vec<usize> {
        self.guessing.plan(guesses, self.gamma.fixed_length(), &self.speeds)
    }

    /// How many guesses for each sequence to verify beside the drafts of a model, in a step of
    /// `pearl`, `forked` or `sd`.
    pub fn plan_guesses_beside_drafts(&self, plan: StepPlan, guessed: &[Guessed]) -> Vec<usize> {
        match plan.mode.is_parallel() {
            true => self.guessing.beside_pearl(guessed, plan, &self.speeds),
            false => self.guessing.instead_of_drafts(guessed, plan.gamma, &self.speeds),
        }
    }

    /// The longest chunk of drafts or guesses.
    pub fn longest(&self) -> usize {
        self.gamma.longest()
    }

    /// The next step: γ is 0 for `ar` and `suffix`. `auto` chooses one of `modes`.
    ///
    /// `runs` holds the length in tokens of the current run of each sequence that speculates, and
    /// `phases` their PEARL phases. `plain` is the number of other sequences in the batch, which
    /// have no drafts of a model.
    pub fn plan(
        &mut self,
        choice: ModeChoice,
        modes: &[Mode],
        runs: &[usize],
        plain: usize,
        phases: impl Iterator<Item = Phase>,
    ) -> StepPlan {
        let Planner { speeds, gamma, auto, guessing } = self;
        let mut lengths = |mode| match mode {
            Mode::Ar | Mode::Suffix => Lengths::same(0),
            mode => gamma.lengths(mode, runs, plain, speeds),
        };
        let (mode, lengths) = match choice {
            ModeChoice::Always(mode) => (mode, lengths(mode)),
            ModeChoice::Auto => {
                let lengths = modes.iter().map(|&mode| (mode, lengths(mode)));
                let lengths: BTreeMap<Mode, Lengths> = lengths.collect();
                let expected = lengths.iter().map(|(&mode, &lengths)| {
                    let forecast = || speeds.forecast(mode, runs, plain);
                    let speed = match mode {
                        Mode::Suffix => guessing.tokens_per_second(runs.len() + plain),
                        _ => forecast().map(|forecast| forecast.tokens_per_second(lengths)),
                    };
                    (mode, speed)
                });
                let expected: BTreeMap<Mode, Option<f64>> = expected.collect();
                let mode = auto.choose(modes, runs.len(), plain, |mode| expected[&mode]);
                (mode, lengths[&mode])
            }
        };
        let gamma = match mode.is_parallel() {
            true => lengths.of_step(phases),
            false => lengths.post_verify,
        };
        StepPlan { mode, gamma, branches: lengths.branches }
    }
}

fn adaptive(gamma: Gamma) -> AdaptiveGamma {
    match gamma {
        Gamma::Fixed(gamma) => AdaptiveGamma::fixed(gamma),
        Gamma::Adaptive(limits) => AdaptiveGamma::new(limits),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::simulate::{self, Chances, Simulation};
    use crate::{GammaLimits, Purpose, RequestRng};

    /// The modes of an engine with a draft model and without guesses.
    const MODES: [Mode; 3] = [Mode::Ar, Mode::Sd, Mode::Pearl];
    /// Warm-up steps of each mode, as in the benchmark.
    const WARM_UP: usize = 20;
    /// Measured steps × batch size.
    const STEPS: usize = 3000;

    /// True costs, in units of the constant part of a target pass. The planner sees them with
    /// noise.
    #[derive(Clone, Copy, Debug)]
    struct TrueCosts {
        /// One drafted token.
        draft: f64,
        /// One row of a target pass.
        row: f64,
        /// Factor by which co-running models slow each other down.
        slowdown: f64,
    }

    impl TrueCosts {
        /// Costs of drafting a chunk and of a target pass.
        fn costs(self, mode: Mode, gamma: usize, rows: usize) -> (f64, f64) {
            let slower = if mode == Mode::Pearl { self.slowdown } else { 1.0 };
            (slower * self.draft * gamma as f64, slower * (1.0 + self.row * rows as f64))
        }
    }

    /// Approximately log-normal factor with median 1. Its logarithm has standard deviation `share`.
    fn noise(rng: &RequestRng, at: usize, share: f64) -> f64 {
        let centred = |purpose| rng.uniform(at, purpose) - 0.5;
        // The sum of two uniform numbers has variance 1/6.
        let normal = (centred(Purpose::Accept) + centred(Purpose::Draft)) * 6.0_f64.sqrt();
        (share * normal).exp()
    }

    /// Tokens per second of `choice` by the true costs, after a warm-up of every mode. The measured
    /// times have a random-walk speed factor and independent noise.
    fn speed(
        machine: TrueCosts,
        acceptance: f64,
        batch: usize,
        choice: ModeChoice,
        gamma: Gamma,
    ) -> f64 {
        let mut planner = Planner::new(gamma);
        let rng = RequestRng::new(9, 9);
        let (mut step, mut slowness) = (0, 1.0_f64);
        let mut tokens_per_second = |choice, steps| {
            let chances = Chances::acceptance(acceptance);
            let new = |request| Simulation::new(chances, RequestRng::new(5, request)).unwrap();
            let mut all: Vec<_> = (0..batch as u64).map(new).collect();
            let (mut tokens, mut seconds) = (0, 0.0);
            for _ in 0..steps {
                step += 3;
                slowness = (slowness * noise(&rng, step, 0.02)).clamp(0.7, 1.4);
                let runs: Vec<usize> = all.iter().map(|one| one.runs.open()).collect();
                let phases = all.iter().map(|one| one.pearl.phase());
                let StepPlan { mode, gamma, .. } = planner.plan(choice, &MODES, &runs, 0, phases);
                if mode != Mode::Pearl {
                    all.iter_mut().for_each(|one| _ = one.pearl.clear());
                }
                let rows = all.iter().map(|one| one.rows(mode, gamma)).sum();
                let (draft, pass) = machine.costs(mode, gamma, rows);
                seconds += simulate::seconds(mode, draft, pass);
                let (speeds, co_running) = (&mut planner.speeds, mode == Mode::Pearl);
                let seen = |at| slowness * noise(&rng, step + at, 0.08);
                speeds.record_target(batch, co_running, rows, seen(1) * pass);
                speeds.record_draft(batch, co_running, gamma, seen(2) * draft);
                for one in &mut all {
                    let run = one.runs.open();
                    let outcome = one.step(mode, gamma).unwrap();
                    speeds.record_acceptance(run, outcome.judged, outcome.accepted);
                    tokens += outcome.committed;
                }
            }
            tokens as f64 / seconds
        };
        for mode in MODES {
            tokens_per_second(ModeChoice::Always(mode), WARM_UP);
        }
        tokens_per_second(choice, STEPS / batch)
    }

    const ADAPTIVE: Gamma = Gamma::Adaptive(GammaLimits { start: 4, max: 16 });

    /// `auto` reaches at least 0.97 of the best mode's throughput, explorations included.
    #[test]
    fn auto_keeps_up_with_the_best_mode_on_any_machine() {
        for batch in [1, 4, 8, 16] {
            for (draft, row) in [(0.05, 0.005), (0.12, 0.02), (0.12, 0.06), (0.3, 0.02)] {
                for acceptance in [0.6, 0.85, 0.97] {
                    for slowdown in [1.0, 1.6] {
                        let machine = TrueCosts { draft, row, slowdown };
                        let speed = |choice| speed(machine, acceptance, batch, choice, ADAPTIVE);
                        let fixed = MODES.map(|mode| speed(ModeChoice::Always(mode)));
                        let best = fixed.into_iter().fold(0.0, f64::max);
                        let share = speed(ModeChoice::Auto) / best;
                        assert!(share > 0.97, "{batch} {machine:?} {acceptance}: {share:.3}");
                    }
                }
            }
        }
    }

    /// Adaptive γ reaches at least 0.97 of the throughput of the best fixed γ.
    #[test]
    fn gamma_keeps_up_with_the_best_fixed_one() {
        for (batch, draft, row) in [(1, 0.1, 0.005), (4, 0.12, 0.02), (8, 0.12, 0.06)] {
            for acceptance in [0.7, 0.93] {
                for mode in [Mode::Sd, Mode::Pearl] {
                    let machine = TrueCosts { draft, row, slowdown: 1.2 };
                    let choice = ModeChoice::Always(mode);
                    let speed = |gamma| speed(machine, acceptance, batch, choice, gamma);
                    let fixed = (1..=16).map(|gamma| speed(Gamma::Fixed(gamma)));
                    let share = speed(ADAPTIVE) / fixed.fold(0.0, f64::max);
                    assert!(share > 0.97, "{mode} {batch} {machine:?} {acceptance}: {share:.3}");
                }
            }
        }
    }
}
