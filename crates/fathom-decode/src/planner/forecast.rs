//! The forecast of a mode: expected tokens and seconds, as functions of γ and the number of
//! branches.

use std::collections::BTreeMap;

use super::branches::BranchHits;
use super::free_tokens::Gain;
use super::pass_cost::PassCost;
use super::run_acceptance::{Remaining, Survival};
use crate::{Lengths, Mode};

/// H: steps over which a forecast averages, starting from the current runs.
const HORIZON: f64 = 32.0;

/// Expected tokens and seconds of a mode, as functions of γ.
#[derive(Clone, Debug)]
pub struct Forecast {
    pub(super) mode: Mode,
    /// Sequences that speculate.
    pub(super) batch: usize,
    /// Sequences without drafts: one token in every step, in every mode.
    pub(super) plain: usize,
    /// Number of sequences at each position of their run.
    pub(super) positions: BTreeMap<usize, usize>,
    /// Seconds per drafted token.
    pub(super) draft: f64,
    /// In `forked`: seconds of drafting one token by the number of sequences and branches, and how
    /// often a branch is taken.
    pub(super) branching: Option<(PassCost, BranchHits)>,
    /// What free guesses add to a step in pre-verify and to one in post-verify.
    pub(super) guessed: (Gain, Gain),
    pub(super) target: PassCost,
    /// [`PassCost::at`] or [`PassCost::optimistic`].
    pub(super) pass_seconds: fn(&PassCost, f64) -> Option<f64>,
    /// Seconds of a step outside the models.
    pub(super) overhead: f64,
    /// `None` for `ar`.
    pub(super) survival: Option<Survival>,
}

/// Expected totals of one sequence's run, or of the mean step of all sequences.
#[derive(Clone, Copy, Debug, Default)]
struct Yield {
    tokens: f64,
    steps: f64,
    /// Of these steps, the ones in pre-verify.
    pre_verify: f64,
    /// Seconds of PEARL's steps if this is the only sequence.
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
    /// The forecast, with the optimistic cost for numbers of rows not run recently.
    pub fn optimistic(self) -> Forecast {
        Forecast { pass_seconds: PassCost::optimistic, ..self }
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

    /// The mean step over the next [`HORIZON`] steps: each sequence finishes its current run, then
    /// starts new ones.
    fn step(&self, lengths: Lengths) -> Yield {
        let Some(survival) = &self.survival else {
            return Yield { tokens: 1.0, steps: 1.0, ..Yield::default() };
        };
        let new = self.run(survival, 0, lengths);
        let mut mean = Yield::default();
        for (&position, &sequences) in &self.positions {
            let run = if position == 0 { new } else { self.run(survival, position, lengths) };
            let others = ((HORIZON - run.steps) / new.steps).max(0.0);
            let all = run.plus(others, new);
            mean = mean.plus(sequences as f64 / self.batch as f64 / all.steps, all);
        }
        mean
    }

    /// The rest of a run that has `position` tokens.
    fn run(&self, survival: &Survival, position: usize, lengths: Lengths) -> Yield {
        match self.mode {
            Mode::Pearl => self.pearl(survival.after(position), position == 0, lengths),
            Mode::Forked => self.forked(survival.after(position), position == 0, lengths),
            _ => self.sd(survival.after(position), lengths.post_verify),
        }
    }

    /// `sd`: chunks of γ drafts, each followed by one token of the target. That token's position
    /// counts as a draft that would have been accepted.
    fn sd(&self, run: Remaining<'_>, gamma: usize) -> Yield {
        // `alive`: probability that the run reaches position k.
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

    /// `pearl`: a new run has one pre-verify step. If its draft is accepted, a post-verify step
    /// judges the rest of the first chunk, then one step judges each further chunk until a
    /// rejection. A run in progress is in post-verify. Free guesses add tokens and save steps.
    fn pearl(&self, run: Remaining<'_>, is_new: bool, lengths: Lengths) -> Yield {
        let Lengths { pre_verify: pre, post_verify: post, .. } = lengths;
        let first = if is_new { run.at(1) } else { 0.0 };
        let mut others = 0.0;
        let mut k = if is_new { 1 + pre } else { 0 };
        while run.at(k) > 1e-3 {
            others += run.at(k);
            k += post;
        }
        let pre_verify = if is_new { 1.0 } else { 0.0 };
        let post_verify = first + others;
        let (in_pre, in_post) = self.guessed;
        let saved = (pre_verify * in_pre.steps + post_verify * in_post.steps).min(post_verify);
        let needed = if post_verify > 0.0 { 1.0 - saved / post_verify } else { 1.0 };
        let co_running = |gamma: usize, rows: usize, guessed: Gain| {
            self.co_running(gamma, lengths.branches, rows as f64 + guessed.rows)
        };
        Yield {
            tokens: run.tokens() + pre_verify * in_pre.tokens + post_verify * in_post.tokens,
            steps: pre_verify + needed * post_verify,
            pre_verify,
            seconds: pre_verify * co_running(pre, 1, in_pre)
                + needed * first * co_running(post, pre, in_post)
                + needed * others * co_running(post, post, in_post),
        }
    }

    /// `forked`: if the rejection before a new run was prepared for, a whole chunk is pending, and
    /// the run has no pre-verify step.
    fn forked(&self, run: Remaining<'_>, is_new: bool, lengths: Lengths) -> Yield {
        let prepared = self.pearl(run, false, lengths);
        let hits = self.branching.as_ref().filter(|_| is_new);
        let Some((_, hits)) = hits else { return prepared };
        let chance = hits.chance(lengths.branches);
        let unprepared = self.pearl(run, true, lengths);
        Yield::default().plus(1.0 - chance, unprepared).plus(chance, prepared)
    }

    /// Seconds of the models' work in the mean step.
    fn seconds(&self, step: Yield, lengths: Lengths) -> f64 {
        let gamma = lengths.post_verify;
        match self.mode {
            Mode::Ar | Mode::Suffix => self.target(1.0),
            Mode::Sd => self.chunk(gamma, 0) + self.target(gamma as f64 + 1.0),
            Mode::Pearl | Mode::Forked if self.batch == 1 => step.seconds,
            Mode::Pearl | Mode::Forked => self.mixed(step.pre_verify, lengths),
        }
    }

    /// Seconds of a PEARL step of a batch. Each sequence is independently in pre-verify with
    /// probability `pre` and scores one token, or γ tokens otherwise: the mean over the binomial
    /// number of sequences in pre-verify.
    fn mixed(&self, pre: f64, lengths: Lengths) -> f64 {
        let Lengths { post_verify: gamma, branches, .. } = lengths;
        let (n, pre) = (self.batch as f64, pre.min(0.99));
        let (rows_pre, rows_post) = (1.0 + self.guessed.0.rows, gamma as f64 + self.guessed.1.rows);
        let rows_each = |in_pre: f64| (in_pre * rows_pre + (n - in_pre) * rows_post) / n;
        if self.batch > 64 {
            return self.co_running(gamma, branches, rows_each(n * pre)); // the number hardly varies
        }
        let mut chance = (1.0 - pre).powi(self.batch as i32); // of none in pre-verify
        let mut seconds = 0.0;
        for in_pre in 0..=self.batch {
            let k = in_pre as f64;
            seconds += chance * self.co_running(gamma, branches, rows_each(k));
            chance *= (n - k) / (k + 1.0) * pre / (1.0 - pre);
        }
        seconds
    }

    /// Seconds of a PEARL step: the longer of drafting and the target pass.
    fn co_running(&self, gamma: usize, branches: usize, rows_each: f64) -> f64 {
        self.chunk(gamma, branches).max(self.target(rows_each))
    }

    /// Seconds of drafting γ tokens for every sequence, and all but the first for `branches` of
    /// each.
    pub(super) fn chunk(&self, gamma: usize, branches: usize) -> f64 {
        let Some((drafting, _)) = self.branching.as_ref().filter(|_| branches > 0) else {
            return gamma as f64 * self.draft;
        };
        let round = |rows: usize| (self.pass_seconds)(drafting, rows as f64).unwrap_or(self.draft);
        round(self.batch) + (gamma - 1) as f64 * round(self.batch * (1 + branches))
    }

    /// Seconds of a target pass over `rows_each` tokens of every sequence that speculates and one
    /// token of every other.
    fn target(&self, rows_each: f64) -> f64 {
        let rows = rows_each * self.batch as f64 + self.plain as f64;
        let seconds = (self.pass_seconds)(&self.target, rows);
        seconds.unwrap_or(f64::INFINITY)
    }
}
