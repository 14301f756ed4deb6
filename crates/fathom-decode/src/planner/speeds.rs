//! What every mode is expected to make of the next steps, from what was measured.

use std::collections::BTreeMap;

use super::pass_cost::PassCost;
use super::run_acceptance::{Remaining, RunAcceptance, Survival, same_chances};
use super::running::Mean;
use crate::{Lengths, Mode};

/// What an observed cost weighs beside the one after it: the last 20 or so count.
const COST_DECAY: f64 = 0.95;
/// An observation counts at most as so many times what was expected: a step that another program
/// interrupted says nothing about the next.
const OUTLIER: f64 = 2.0;

/// Measured costs and acceptance. Batch sizes are told apart by powers of two, and a model that
/// runs alone from one that runs at the same time as the other (co-running, `beside`).
#[derive(Clone, Debug, Default)]
pub struct Speeds {
    costs: BTreeMap<(usize, bool), Costs>,
    overheads: BTreeMap<(usize, Mode), Mean>,
    acceptance: RunAcceptance,
}

/// Seconds of each model's work.
#[derive(Clone, Copy, Debug)]
struct Costs {
    /// The draft drafting one token for every sequence.
    draft: Mean,
    /// A pass of the target, by the rows it scores.
    target: PassCost,
}

/// Batch sizes whose costs are taken together.
pub(crate) fn size_class(batch: usize) -> usize {
    batch.next_power_of_two()
}

impl Speeds {
    /// Counts that the draft drafted `tokens` for each of `batch` sequences in `seconds`:
    /// co-running with the target (`beside`), or while that waited.
    pub fn record_draft(&mut self, batch: usize, beside: bool, tokens: usize, seconds: f64) {
        if tokens > 0 {
            let draft = &mut self.costs(batch, beside).draft;
            let seconds = plausible(seconds / tokens as f64, draft.value());
            draft.record(seconds);
        }
    }

    /// Counts a pass of the target over `rows` tokens of `batch` sequences in `seconds`.
    pub fn record_target(&mut self, batch: usize, beside: bool, rows: usize, seconds: f64) {
        self.costs(batch, beside).target.record(rows as f64, seconds);
    }

    /// Counts what a step took beyond the models' work: judging, sampling, handing over.
    pub fn record_overhead(&mut self, batch: usize, mode: Mode, seconds: f64) {
        let key = (size_class(batch), mode);
        let overhead = self.overheads.entry(key).or_insert_with(|| Mean::new(COST_DECAY));
        overhead.record(plausible(seconds.max(0.0), overhead.value()));
    }

    /// Counts `judged` drafts, of which the first `accepted` were, after `before` tokens of the
    /// same run.
    pub fn record_acceptance(&mut self, before: usize, judged: usize, accepted: usize) {
        self.acceptance.record(before, judged, accepted);
    }

    /// Running share of judged drafts that were accepted; `None` before the first.
    #[cfg(test)]
    pub fn acceptance(&self) -> Option<f64> {
        self.acceptance.overall()
    }

    /// What is expected of `mode` with sequences whose runs have so many tokens by now, and `plain`
    /// others, for which nothing is drafted; `None` until its costs, and for a mode that drafts the
    /// acceptance, have been measured.
    pub fn forecast(&self, mode: Mode, runs: &[usize], plain: usize) -> Option<Forecast> {
        let class = size_class(runs.len() + plain);
        let costs = |batch: usize| self.costs.get(&(size_class(batch), mode == Mode::Pearl));
        let target = costs(runs.len() + plain)?.target;
        target.at(1.0)?;
        let (draft, survival) = match mode {
            Mode::Ar => (0.0, None),
            _ => (costs(runs.len())?.draft.value()?, Some(self.acceptance.survival()?)),
        };
        let overhead = self.overheads.get(&(class, mode)).and_then(Mean::value).unwrap_or(0.0);
        let mut places = BTreeMap::new();
        for &run in runs {
            *places.entry(same_chances(run)).or_default() += 1;
        }
        Some(Forecast {
            mode,
            batch: runs.len(),
            plain,
            places,
            draft,
            target,
            pass_seconds: PassCost::at,
            overhead,
            survival,
        })
    }

    fn costs(&mut self, batch: usize, beside: bool) -> &mut Costs {
        let new = || Costs { draft: Mean::new(COST_DECAY), target: PassCost::default() };
        self.costs.entry((size_class(batch), beside)).or_insert_with(new)
    }
}

fn plausible(seconds: f64, expected: Option<f64>) -> f64 {
    expected.map_or(seconds, |expected| seconds.min(OUTLIER * expected))
}

/// Steps that a forecast looks ahead: so far, where in a run a sequence is matters.
const HORIZON: f64 = 32.0;

/// What is expected of a way of decoding, by the length of its chunks.
#[derive(Clone, Debug)]
pub struct Forecast {
    mode: Mode,
    /// Sequences that speculate.
    batch: usize,
    /// Sequences that get the target's next token in every step, whatever the way.
    plain: usize,
    /// How many sequences are at which place of a run.
    places: BTreeMap<usize, usize>,
    draft: f64,
    target: PassCost,
    /// What is said of a pass of the target by its rows.
    pass_seconds: fn(&PassCost, f64) -> Option<f64>,
    overhead: f64,
    /// `None` for a way that does not draft.
    survival: Option<Survival>,
}

/// What is expected of one sequence's run, or of the mean step of all sequences.
#[derive(Clone, Copy, Debug, Default)]
struct Yield {
    tokens: f64,
    steps: f64,
    /// Steps in pre-verify among them.
    pre_verify: f64,
    /// Seconds where it is the only sequence.
    seconds: f64,
}

impl Yield {
    fn plus(self, weight: f64, other: Yield) -> Yield {
        Yield {
            tokens: self.tokens + weight * other.tokens,
            steps: self.steps + weight * other.steps,
            pre_verify: self.pre_verify + weight * other.pre_verify,
            seconds: self.seconds + weight * other.seconds,
        }
    }
}

impl Forecast {
    /// The same, optimistic about passes over other numbers of rows than were made last.
    pub fn hopeful(self) -> Forecast {
        Forecast { pass_seconds: PassCost::hopeful, ..self }
    }

    /// Expected tokens per second of the whole batch.
    pub fn tokens_per_second(&self, lengths: Lengths) -> f64 {
        let step = self.step(lengths);
        let tokens = self.batch as f64 * step.tokens + self.plain as f64;
        tokens / (self.seconds(step, lengths) + self.overhead)
    }

    /// Expected tokens per step of a sequence that speculates.
    #[cfg(test)]
    pub fn tokens_per_step(&self, lengths: Lengths) -> f64 {
        self.step(lengths).tokens
    }

    /// The mean step of the next [`HORIZON`]: each sequence goes on with the run it is in, then
    /// come new ones.
    fn step(&self, lengths: Lengths) -> Yield {
        let Some(survival) = &self.survival else {
            return Yield { tokens: 1.0, steps: 1.0, ..Yield::default() };
        };
        let new = self.run(survival, 0, lengths);
        let mut mean = Yield::default();
        for (&place, &sequences) in &self.places {
            let run = if place == 0 { new } else { self.run(survival, place, lengths) };
            let others = ((HORIZON - run.steps) / new.steps).max(0.0);
            let all = run.plus(others, new);
            mean = mean.plus(sequences as f64 / self.batch as f64 / all.steps, all);
        }
        mean
    }

    /// What is left of a run that has `place` tokens.
    fn run(&self, survival: &Survival, place: usize, lengths: Lengths) -> Yield {
        match self.mode {
            Mode::Pearl => self.pearl(survival.after(place), place == 0, lengths),
            _ => self.sd(survival.after(place), lengths.post_verify),
        }
    }

    /// In chunks of γ, after each of which one token is the target's own, whatever the draft would
    /// have said there.
    fn sd(&self, run: Remaining<'_>, gamma: usize) -> Yield {
        let (mut tokens, mut steps, mut alive, mut k) = (0.0, 0.0, 1.0, 0);
        while alive > 1e-3 && run.at(k) > 0.0 {
            let accepted = |m| run.at(k + m) / run.at(k);
            steps += alive;
            tokens += alive * (0..=gamma).map(accepted).sum::<f64>();
            alive *= accepted(gamma);
            k += gamma + 1;
        }
        Yield { tokens, steps, ..Yield::default() }
    }

    /// A new run has one pre-verify step; if the draft survives that, a post-verify step on what is
    /// left of the first chunk; then one for each chunk, as long as it survives. One under way is
    /// in post-verify.
    fn pearl(&self, run: Remaining<'_>, is_new: bool, lengths: Lengths) -> Yield {
        let Lengths { pre_verify: pre, post_verify: post } = lengths;
        let first = if is_new { run.at(1) } else { 0.0 };
        let mut others = 0.0;
        let mut k = if is_new { 1 + pre } else { 0 };
        while run.at(k) > 1e-3 {
            others += run.at(k);
            k += post;
        }
        let pre_verify = if is_new { 1.0 } else { 0.0 };
        let seconds = pre_verify * self.beside(pre, 1.0)
            + first * self.beside(post, pre as f64)
            + others * self.beside(post, post as f64);
        Yield { tokens: run.tokens(), steps: pre_verify + first + others, pre_verify, seconds }
    }

    /// Seconds of the models' work in the mean step.
    fn seconds(&self, step: Yield, lengths: Lengths) -> f64 {
        let gamma = lengths.post_verify;
        match self.mode {
            Mode::Ar => self.target(1.0),
            Mode::Sd => self.chunk(gamma) + self.target(gamma as f64 + 1.0),
            Mode::Pearl if self.batch == 1 => step.seconds,
            Mode::Pearl => self.mixed(step.pre_verify, gamma),
        }
    }

    /// A step of a batch in which each sequence is in pre-verify with chance `pre`, for itself, and
    /// scores γ tokens otherwise: the mean over how many are.
    fn mixed(&self, pre: f64, gamma: usize) -> f64 {
        let (n, pre) = (self.batch as f64, pre.min(0.99));
        let rows_each = |in_pre: f64| (in_pre + (n - in_pre) * gamma as f64) / n;
        if self.batch > 64 {
            return self.beside(gamma, rows_each(n * pre)); // it hardly varies
        }
        let mut chance = (1.0 - pre).powi(self.batch as i32); // of none
        let mut seconds = 0.0;
        for in_pre in 0..=self.batch {
            let k = in_pre as f64;
            seconds += chance * self.beside(gamma, rows_each(k));
            chance *= (n - k) / (k + 1.0) * pre / (1.0 - pre);
        }
        seconds
    }

    /// Seconds of a PEARL step: of whoever takes longer.
    fn beside(&self, gamma: usize, rows_each: f64) -> f64 {
        self.chunk(gamma).max(self.target(rows_each))
    }

    /// Seconds of drafting γ tokens for every sequence.
    fn chunk(&self, gamma: usize) -> f64 {
        gamma as f64 * self.draft
    }

    /// Seconds of a pass over so many tokens of every sequence that speculates, and one of every
    /// other.
    fn target(&self, rows_each: f64) -> f64 {
        let rows = rows_each * self.batch as f64 + self.plain as f64;
        let seconds = (self.pass_seconds)(&self.target, rows);
        seconds.unwrap_or(f64::INFINITY)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests {
    use super::*;
    use crate::simulate::{self, Protocol, StepCosts};

    /// A machine with known costs: per drafted token, per target pass and per target row.
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
            for beside in [false, true] {
                speeds.record_draft(batch, beside, 4, 4.0 * draft);
                speeds.record_target(batch, beside, rows, pass + row * rows as f64);
            }
        }
        // Repeating blocks of ten, so that the running share is close to `acceptance`, at every
        // place.
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
    fn nothing_is_expected_before_it_is_measured() {
        let mut speeds = Speeds::default();
        speeds.record_target(3, false, 3, 1.0);
        assert!(speeds.forecast(Mode::Ar, &[0; 4], 0).is_some());
        assert!(speeds.forecast(Mode::Ar, &[0], 0).is_none());
        speeds.record_draft(4, false, 2, 1.0);
        assert!(speeds.forecast(Mode::Sd, &[0; 4], 0).is_none());
        speeds.record_acceptance(0, 1, 1);
        assert!(speeds.forecast(Mode::Sd, &[0; 4], 0).is_some());
        assert!(speeds.forecast(Mode::Pearl, &[0; 4], 0).is_none()); // nothing worked beside anything yet
    }

    /// The forecast is the simulator's answer: the state machine's, not only a formula's.
    #[test]
    fn forecasts_agree_with_the_state_machine() {
        let (draft, pass, row) = (0.15, 0.8, 0.05);
        for batch in [1, 4] {
            let speeds = measured(draft, pass, row, 0.8, batch);
            let acceptance = speeds.acceptance().unwrap();
            let costs = StepCosts::new(draft, |rows| pass + row * rows);
            let protocol = Protocol { sequences: 40, batch, steps: 2000, seed: 1 };
            for (mode, pre, post) in [
                (Mode::Ar, 1, 1),
                (Mode::Sd, 1, 1),
                (Mode::Sd, 4, 4),
                (Mode::Pearl, 4, 4),
                (Mode::Pearl, 9, 9),
                (Mode::Pearl, 3, 7),
            ] {
                if pre != post && batch > 1 {
                    continue; // one length for all while phases are mixed
                }
                let lengths = Lengths { pre_verify: pre, post_verify: post };
                let simulated = simulate::run(mode, lengths, acceptance, protocol, &costs).unwrap();
                let forecast = speeds.forecast(mode, &vec![0; batch], 0).unwrap();
                let relative = forecast.tokens_per_second(lengths) / simulated.tokens_per_second;
                assert!((relative - 1.0).abs() < 0.04, "{mode} {lengths:?} {batch}: {relative}");
                let relative = forecast.tokens_per_step(lengths) / simulated.tokens_per_step;
                assert!((relative - 1.0).abs() < 0.04, "{mode} {lengths:?} {batch}: {relative}");
            }
        }
    }

    #[test]
    fn an_interrupted_step_does_not_count_for_what_it_took() {
        let mut speeds = measured(0.1, 1.0, 0.0, 0.9, 1);
        let speed = |speeds: &Speeds| {
            speeds.forecast(Mode::Sd, &[0], 0).unwrap().tokens_per_second(Lengths::same(4))
        };
        let before = speed(&speeds);
        speeds.record_target(1, false, 5, 50.0);
        speeds.record_draft(1, false, 4, 50.0);
        assert!(speed(&speeds) > 0.9 * before);
        // But a machine that has become slower is.
        for _ in 0..100 {
            speeds.record_target(1, false, 5, 5.0);
        }
        assert!(speed(&speeds) < 0.4 * before);
    }

    /// Half of the texts are known by heart and their runs never end; in the others every second
    /// draft is wrong. The pooled runs are nearly all of the second kind.
    #[test]
    fn texts_that_differ_are_expected_to_go_on_as_they_do() {
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

    /// Two sequences speculate beside two that cannot: these get a token of each step and add a row
    /// to each pass, and the draft's costs are those of drafting for two.
    #[test]
    fn sequences_that_do_not_speculate_are_reckoned_with() {
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
        // Plain decoding is the same for all.
        let ar = |runs: &[usize], plain| {
            let forecast = speeds.forecast(Mode::Ar, runs, plain).unwrap();
            forecast.tokens_per_second(Lengths::same(0))
        };
        assert_eq!(ar(&[0; 4], 0), ar(&[0], 3));
    }
}
