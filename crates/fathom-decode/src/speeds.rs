//! What every way of decoding is expected to make of the next steps, from what was measured.

use std::collections::BTreeMap;

use crate::run_acceptance::{RunAcceptance, Survival};
use crate::running::{Line, Mean};
use crate::{Lengths, Mode};

/// What an observed cost weighs beside the one after it: the last 20 or so count.
const COST_DECAY: f64 = 0.95;
/// An observation counts at most as so many times what was expected: a step that another program
/// interrupted says nothing about the next.
const OUTLIER: f64 = 2.0;

/// Measured costs and acceptance. Batch sizes are told apart by powers of two, and a model that has the
/// machine for itself from one that works beside the other.
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
    target: Line,
}

/// Batch sizes whose costs are taken together.
pub(crate) fn size_class(batch: usize) -> usize {
    batch.next_power_of_two()
}

impl Speeds {
    /// Counts that the draft drafted `tokens` for each of `batch` sequences in `seconds`, `beside` the
    /// target or while that waited.
    pub fn record_draft(&mut self, batch: usize, beside: bool, tokens: usize, seconds: f64) {
        if tokens > 0 {
            let draft = &mut self.costs(batch, beside).draft;
            let seconds = plausible(seconds / tokens as f64, draft.value());
            draft.record(seconds);
        }
    }

    /// Counts a pass of the target over `rows` tokens of `batch` sequences in `seconds`.
    pub fn record_target(&mut self, batch: usize, beside: bool, rows: usize, seconds: f64) {
        let target = &mut self.costs(batch, beside).target;
        let rows = rows as f64;
        target.record(rows, plausible(seconds, target.at(rows)));
    }

    /// Counts what a step took beyond the models' work: judging, sampling, handing over.
    pub fn record_overhead(&mut self, batch: usize, mode: Mode, seconds: f64) {
        let key = (size_class(batch), mode);
        let overhead = self.overheads.entry(key).or_insert_with(|| Mean::new(COST_DECAY));
        overhead.record(plausible(seconds.max(0.0), overhead.value()));
    }

    /// Counts `judged` drafts, of which the first `accepted` were, after `before` tokens of the same run.
    pub fn record_acceptance(&mut self, before: usize, judged: usize, accepted: usize) {
        self.acceptance.record(before, judged, accepted);
    }

    /// Running share of judged drafts that were accepted; `None` before the first.
    pub fn acceptance(&self) -> Option<f64> {
        self.acceptance.overall()
    }

    /// What is expected of `mode` with `batch` sequences; `None` until its costs, and for a mode that
    /// drafts the acceptance, have been measured.
    pub fn forecast(&self, mode: Mode, batch: usize) -> Option<Forecast> {
        let costs = self.costs.get(&(size_class(batch), mode == Mode::Pearl))?;
        costs.target.at(1.0)?;
        let (draft, survival) = match mode {
            Mode::Ar => (0.0, None),
            _ => (costs.draft.value()?, Some(self.acceptance.survival()?)),
        };
        let overhead = self.overheads.get(&(size_class(batch), mode)).and_then(Mean::value);
        let overhead = overhead.unwrap_or(0.0);
        Some(Forecast { mode, batch, draft, target: costs.target, overhead, survival })
    }

    fn costs(&mut self, batch: usize, beside: bool) -> &mut Costs {
        let new = || Costs { draft: Mean::new(COST_DECAY), target: Line::new(COST_DECAY) };
        self.costs.entry((size_class(batch), beside)).or_insert_with(new)
    }
}

fn plausible(seconds: f64, expected: Option<f64>) -> f64 {
    expected.map_or(seconds, |expected| seconds.min(OUTLIER * expected))
}

/// What is expected of a way of decoding, by the length of its chunks.
#[derive(Clone, Debug)]
pub struct Forecast {
    mode: Mode,
    batch: usize,
    draft: f64,
    target: Line,
    overhead: f64,
    /// `None` for a way that does not draft.
    survival: Option<Survival>,
}

/// Expected tokens of one sequence and seconds of the batch, over the same steps.
#[derive(Clone, Copy, Debug)]
struct Yield {
    tokens: f64,
    steps: f64,
    seconds: f64,
}

impl Forecast {
    /// Expected tokens per second of the whole batch.
    pub fn tokens_per_second(&self, lengths: Lengths) -> f64 {
        let Yield { tokens, seconds, .. } = self.expected(lengths);
        self.batch as f64 * tokens / seconds
    }

    /// Expected tokens per step of one sequence.
    pub fn tokens_per_step(&self, lengths: Lengths) -> f64 {
        let Yield { tokens, steps, .. } = self.expected(lengths);
        tokens / steps
    }

    fn expected(&self, lengths: Lengths) -> Yield {
        match (&self.survival, self.mode) {
            (Some(survival), Mode::Sd) => self.sd(survival, lengths.post_verify),
            (Some(survival), Mode::Pearl) => self.pearl(survival, lengths),
            _ => Yield { tokens: 1.0, steps: 1.0, seconds: self.target(1.0) + self.overhead },
        }
    }

    /// A run in chunks of γ, after each of which one token is the target's own, whatever the draft
    /// would have said there.
    fn sd(&self, survival: &Survival, gamma: usize) -> Yield {
        let (mut tokens, mut steps, mut alive, mut k) = (0.0, 0.0, 1.0, 0);
        while alive > 1e-3 && survival.at(k) > 0.0 {
            let accepted = |m| survival.at(k + m) / survival.at(k);
            steps += alive;
            tokens += alive * (0..=gamma).map(accepted).sum::<f64>();
            alive *= accepted(gamma);
            k += gamma + 1;
        }
        let step = self.chunk(gamma) + self.target(gamma as f64 + 1.0) + self.overhead;
        Yield { tokens, steps, seconds: steps * step }
    }

    /// A run: one pre-verify step; if the draft survives that, a post-verify step on what is left of the
    /// first chunk; then one for each chunk, as long as it survives.
    fn pearl(&self, survival: &Survival, lengths: Lengths) -> Yield {
        let Lengths { pre_verify: pre, post_verify: post } = lengths;
        let first = survival.at(1);
        let mut others = 0.0;
        let mut k = 1 + pre;
        while survival.at(k) > 1e-3 {
            others += survival.at(k);
            k += post;
        }
        let steps = 1.0 + first + others;
        let seconds = if self.batch == 1 {
            self.beside(pre, 1.0)
                + first * self.beside(post, pre as f64)
                + others * self.beside(post, post as f64)
        } else {
            steps * self.mixed(1.0 / steps, post)
        };
        Yield { tokens: survival.run(), steps, seconds: seconds + steps * self.overhead }
    }

    /// A step of a batch in which each sequence is in pre-verify with chance `pre`, for itself, and scores
    /// γ tokens otherwise: the mean over how many are.
    fn mixed(&self, pre: f64, gamma: usize) -> f64 {
        let n = self.batch as f64;
        let mut chance = pre.powi(self.batch as i32); // of all in pre-verify
        let mut seconds = 0.0;
        for in_post in 0..=self.batch {
            let k = in_post as f64;
            seconds += chance * self.beside(gamma, (n - k + k * gamma as f64) / n);
            chance *= (n - k) / (k + 1.0) * (1.0 - pre) / pre;
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

    /// Seconds of a pass over so many tokens of every sequence.
    fn target(&self, rows_each: f64) -> f64 {
        self.target.at(rows_each * self.batch as f64).unwrap_or(f64::INFINITY)
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
        // Repeating blocks of ten, so that the running share is close to `acceptance`, at every place.
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
        assert!(speeds.forecast(Mode::Ar, 4).is_some());
        assert!(speeds.forecast(Mode::Ar, 1).is_none());
        speeds.record_draft(4, false, 2, 1.0);
        assert!(speeds.forecast(Mode::Sd, 4).is_none());
        speeds.record_acceptance(0, 1, 1);
        assert!(speeds.forecast(Mode::Sd, 4).is_some());
        assert!(speeds.forecast(Mode::Pearl, 4).is_none()); // nothing worked beside anything yet
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
                let forecast = speeds.forecast(mode, batch).unwrap();
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
            speeds.forecast(Mode::Sd, 1).unwrap().tokens_per_second(Lengths::same(4))
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
}
