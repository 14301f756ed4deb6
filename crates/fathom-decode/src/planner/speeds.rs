//! Measured costs and acceptance.

use std::collections::BTreeMap;

use super::branches::BranchHits;
use super::forecast::Forecast;
use super::free_tokens::{FreeTokens, Gain};
use super::pass_cost::PassCost;
use super::run_acceptance::{RunAcceptance, Survival, bounded_position};
use super::running::Mean;
use crate::{Mode, Phase};

/// Decay of measured costs per observation: an effective window of 20.
const COST_DECAY: f64 = 0.95;
/// Observations are clipped to this multiple of the expected value: an interruption by another
/// program says nothing about the next step.
const OUTLIER: f64 = 2.0;

/// Measured costs and acceptance. Costs are kept apart by batch size, rounded up to a power of two,
/// and by whether the other model runs at the same time (`co_running`).
#[derive(Clone, Debug, Default)]
pub struct Speeds {
    /// By size class and co-running.
    costs: BTreeMap<(usize, bool), Costs>,
    /// Seconds of a step outside the models, by size class and mode.
    overheads: BTreeMap<(usize, Mode), Mean>,
    acceptance: RunAcceptance,
    /// How often the draft prepared for a rejection.
    pub branch_hits: BranchHits,
    /// What free guesses add to the steps of `pearl` and `forked`.
    pub free_tokens: FreeTokens,
}

/// Seconds of each model's work.
#[derive(Clone, Debug)]
struct Costs {
    /// The draft drafts one token for every sequence.
    draft: Mean,
    /// The same while the target runs, by the number of sequences and branches together.
    drafting: PassCost,
    /// A pass of the target, by its rows.
    target: PassCost,
}

/// Batch sizes of one class share their measurements.
pub(crate) fn size_class(batch: usize) -> usize {
    batch.next_power_of_two()
}

impl Speeds {
    /// Records that the draft drafted `tokens` for each of `batch` sequences in `seconds`,
    /// co-running with the target or not.
    pub fn record_draft(&mut self, batch: usize, co_running: bool, tokens: usize, seconds: f64) {
        if tokens > 0 {
            let draft = &mut self.costs(batch, co_running).draft;
            let seconds = clip(seconds / tokens as f64, draft.value());
            draft.record(seconds);
            if co_running {
                self.record_branching(batch, batch, seconds);
            }
        }
    }

    /// Records that the draft drafted one token for each of `rows` sequences and branches of a
    /// batch in `seconds`, while the target ran.
    pub fn record_branching(&mut self, batch: usize, rows: usize, seconds: f64) {
        self.costs(batch, true).drafting.record(rows as f64, seconds);
    }

    /// Records a pass of the target over `rows` tokens of `batch` sequences in `seconds`.
    pub fn record_target(&mut self, batch: usize, co_running: bool, rows: usize, seconds: f64) {
        self.costs(batch, co_running).target.record(rows as f64, seconds);
    }

    /// Records the seconds of a step outside the models: judging, sampling, channels.
    pub fn record_overhead(&mut self, batch: usize, mode: Mode, seconds: f64) {
        let key = (size_class(batch), mode);
        let overhead = self.overheads.entry(key).or_insert_with(|| Mean::new(COST_DECAY));
        overhead.record(clip(seconds.max(0.0), overhead.value()));
    }

    /// Records `judged` drafts, the first `accepted` of them accepted, after `before` tokens of the
    /// same run.
    pub fn record_acceptance(&mut self, before: usize, judged: usize, accepted: usize) {
        self.acceptance.record(before, judged, accepted);
    }

    /// The measured cost of a pass of the target over `batch` sequences. `None` before the first.
    pub fn pass_cost(&self, batch: usize, co_running: bool) -> Option<&PassCost> {
        let costs = self.costs.get(&(size_class(batch), co_running))?;
        costs.target.at(1.0).map(|_| &costs.target)
    }

    /// The survival function of a run of drafts. `None` before a draft has been judged.
    pub fn survival(&self) -> Option<Survival> {
        self.acceptance.survival()
    }

    /// Seconds of a step of `mode` outside the models; 0 before the first.
    pub fn overhead(&self, batch: usize, mode: Mode) -> f64 {
        self.overheads.get(&(size_class(batch), mode)).and_then(Mean::value).unwrap_or(0.0)
    }

    /// Running share of judged drafts that were accepted. `None` before the first.
    #[cfg(test)]
    pub fn acceptance(&self) -> Option<f64> {
        self.acceptance.overall()
    }

    /// The forecast of `mode`. `runs` holds the length in tokens of the current run of each
    /// sequence that speculates; `plain` more sequences have no drafts. `None` until the mode's
    /// costs, and for `sd` and `pearl` the acceptance, have been measured. That of `suffix` is
    /// without guesses, whose throughput is that of `guesses.rs`.
    pub fn forecast(&self, mode: Mode, runs: &[usize], plain: usize) -> Option<Forecast> {
        let costs = |batch: usize| self.costs.get(&(size_class(batch), mode.is_parallel()));
        let target = costs(runs.len() + plain)?.target.clone();
        target.at(1.0)?;
        let (draft, survival) = match mode {
            Mode::Ar | Mode::Suffix => (0.0, None),
            _ => (costs(runs.len())?.draft.value()?, Some(self.acceptance.survival()?)),
        };
        let branching = match mode {
            Mode::Forked => Some((costs(runs.len())?.drafting.clone(), self.branch_hits.clone())),
            _ => None,
        };
        let overhead = self.overhead(runs.len() + plain, mode);
        let guessed = |phase| match mode.is_parallel() {
            true => self.free_tokens.gain(runs.len(), phase),
            false => Gain::default(),
        };
        let mut positions = BTreeMap::new();
        for &run in runs {
            *positions.entry(bounded_position(run)).or_default() += 1;
        }
        Some(Forecast {
            mode,
            batch: runs.len(),
            plain,
            positions,
            draft,
            branching,
            guessed: (guessed(Phase::PreVerify), guessed(Phase::PostVerify)),
            target,
            pass_seconds: PassCost::at,
            overhead,
            survival,
        })
    }

    fn costs(&mut self, batch: usize, co_running: bool) -> &mut Costs {
        let new = || Costs {
            draft: Mean::new(COST_DECAY),
            drafting: PassCost::default(),
            target: PassCost::default(),
        };
        self.costs.entry((size_class(batch), co_running)).or_insert_with(new)
    }
}

fn clip(seconds: f64, expected: Option<f64>) -> f64 {
    expected.map_or(seconds, |expected| seconds.min(OUTLIER * expected))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests {
    use super::*;
    use crate::Lengths;
    use crate::simulate::{self, Chances, Protocol, StepCosts};

    /// Speeds that have measured these costs: seconds per drafted token, per target pass, and per
    /// row of a pass.
    pub(crate) fn measured(
        draft: f64,
        pass: f64,
        row: f64,
        acceptance: f64,
        batch: usize,
    ) -> Speeds {
        let mut speeds = Speeds::default();
        for i in 0..200 {
            let rows = batch * (1 + i % 7);
            for co_running in [false, true] {
                speeds.record_draft(batch, co_running, 4, 4.0 * draft);
                speeds.record_target(batch, co_running, rows, pass + row * rows as f64);
            }
        }
        // Repeating blocks of ten, so that the running share is close to `acceptance` at every
        // position.
        for before in (0..20).chain(0..20).chain(0..20) {
            for i in 0..10 {
                let accepted =
                    (f64::from(i + 1) * acceptance) as usize > (f64::from(i) * acceptance) as usize;
                speeds.record_acceptance(before, 1, usize::from(accepted));
            }
        }
        speeds
    }

    #[test]
    fn there_is_no_forecast_before_measurements() {
        let mut speeds = Speeds::default();
        speeds.record_target(3, false, 3, 1.0);
        assert!(speeds.forecast(Mode::Ar, &[0; 4], 0).is_some());
        assert!(speeds.forecast(Mode::Ar, &[0], 0).is_none());
        speeds.record_draft(4, false, 2, 1.0);
        assert!(speeds.forecast(Mode::Sd, &[0; 4], 0).is_none());
        speeds.record_acceptance(0, 1, 1);
        assert!(speeds.forecast(Mode::Sd, &[0; 4], 0).is_some());
        assert!(speeds.forecast(Mode::Pearl, &[0; 4], 0).is_none()); // no co-running costs yet
    }

    /// The closed formulas agree with a simulation of the state machines.
    #[test]
    fn forecasts_agree_with_the_state_machine() {
        let (draft, pass, row) = (0.15, 0.8, 0.05);
        for batch in [1, 4] {
            let mut speeds = measured(draft, pass, row, 0.8, batch);
            for i in 0..1000 {
                speeds.record_branching(batch, 5 * batch, draft);
                speeds.branch_hits.record((i % 5 < 3).then_some(i % 3));
            }
            let acceptance = speeds.acceptance().unwrap();
            let chances = Chances { acceptance, branch: speeds.branch_hits.chance(4) };
            let costs = StepCosts::new(draft, |rows| pass + row * rows);
            let protocol = Protocol { sequences: 40, batch, steps: 2000, seed: 1 };
            for (mode, pre, post) in [
                (Mode::Ar, 1, 1),
                (Mode::Sd, 1, 1),
                (Mode::Sd, 4, 4),
                (Mode::Pearl, 4, 4),
                (Mode::Pearl, 9, 9),
                (Mode::Pearl, 3, 7),
                (Mode::Forked, 4, 4),
                (Mode::Forked, 9, 9),
            ] {
                if pre != post && batch > 1 {
                    continue; // one length for all while phases are mixed
                }
                let branches = if mode == Mode::Forked { 4 } else { 0 };
                let lengths = Lengths { pre_verify: pre, post_verify: post, branches };
                let simulated = simulate::run(mode, lengths, chances, protocol, &costs).unwrap();
                let forecast = speeds.forecast(mode, &vec![0; batch], 0).unwrap();
                let relative = forecast.tokens_per_second(lengths) / simulated.tokens_per_second;
                assert!((relative - 1.0).abs() < 0.04, "{mode} {lengths:?} {batch}: {relative}");
                let relative = forecast.tokens_per_step(lengths) / simulated.tokens_per_step;
                assert!((relative - 1.0).abs() < 0.04, "{mode} {lengths:?} {batch}: {relative}");
            }
        }
    }

    #[test]
    fn an_interrupted_step_is_clipped() {
        let mut speeds = measured(0.1, 1.0, 0.0, 0.9, 1);
        let speed = |speeds: &Speeds| {
            speeds.forecast(Mode::Sd, &[0], 0).unwrap().tokens_per_second(Lengths::same(4))
        };
        let before = speed(&speeds);
        speeds.record_target(1, false, 5, 50.0);
        speeds.record_draft(1, false, 4, 50.0);
        assert!(speed(&speeds) > 0.9 * before);
        // A machine that stays slower is followed.
        for _ in 0..100 {
            speeds.record_target(1, false, 5, 5.0);
        }
        assert!(speed(&speeds) < 0.4 * before);
    }

    /// In half of the texts every draft is accepted and runs never end; in the others every second
    /// draft is rejected. Nearly all pooled runs are of the second kind.
    #[test]
    fn the_forecast_depends_on_the_current_runs() {
        let mut speeds = measured(0.1, 1.0, 0.0, 0.5, 4);
        for _ in 0..400 {
            speeds.record_acceptance(40, 8, 8);
            speeds.record_acceptance(0, 1, 0);
            speeds.record_acceptance(0, 2, 1);
        }
        for mode in [Mode::Sd, Mode::Pearl] {
            let tokens = |runs: &[usize]| {
                speeds.forecast(mode, runs, 0).unwrap().tokens_per_step(Lengths::same(6))
            };
            let (known, unknown, both) =
                (tokens(&[200; 4]), tokens(&[0; 4]), tokens(&[200, 0, 300, 0]));
            assert!(known > 5.0 && unknown < 2.5, "{mode}: {known} {unknown}");
            assert!((both - (known + unknown) / 2.0).abs() < 1e-9, "{mode}: {both}");
        }
    }

    /// Two sequences speculate and two cannot. The latter get one token per step and add one row to
    /// each pass; the draft drafts for two.
    #[test]
    fn sequences_that_do_not_speculate_are_counted() {
        let (draft, pass, row) = (0.1, 1.0, 0.05);
        let mut speeds = measured(draft, pass, row, 0.8, 4);
        let sd = |speeds: &Speeds, runs: &[usize], plain| speeds.forecast(Mode::Sd, runs, plain);
        assert!(sd(&speeds, &[0; 2], 2).is_none(), "drafting for two was never measured");
        (0..50).for_each(|_| speeds.record_draft(2, false, 4, 4.0 * draft / 2.0));
        let lengths = Lengths::same(3);
        let each = sd(&speeds, &[0; 4], 0).unwrap().tokens_per_step(lengths);
        let expected = (2.0 * each + 2.0) / (3.0 * draft / 2.0 + pass + row * (2.0 * 4.0 + 2.0));
        let forecast = sd(&speeds, &[0; 2], 2).unwrap().tokens_per_second(lengths);
        assert!((forecast / expected - 1.0).abs() < 0.01, "{forecast} {expected}");
        // `ar` is the same for both kinds.
        let ar = |runs: &[usize], plain| {
            let forecast = speeds.forecast(Mode::Ar, runs, plain).unwrap();
            forecast.tokens_per_second(Lengths::same(0))
        };
        assert_eq!(ar(&[0; 4], 0), ar(&[0], 3));
    }
}
