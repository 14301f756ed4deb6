//! Adaptive γ: the chunk length with the highest expected throughput.

use std::collections::BTreeMap;

use super::branches::{BRANCHES, FIXED_BRANCHES};
use super::forecast::Forecast;
use super::speeds::{Speeds, size_class};
use crate::{Mode, Phase};

/// γ changes only if the new one is expected to be faster by this factor: measured costs are
/// noisy.
const WORTH_CHANGING: f64 = 1.02;

/// Range of adaptive γ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GammaLimits {
    /// γ before anything has been measured, at least 1.
    pub start: usize,
    /// Largest γ, at least `start`.
    pub max: usize,
}

impl Default for GammaLimits {
    fn default() -> GammaLimits {
        GammaLimits { start: 4, max: 16 }
    }
}

/// γ of each phase, and branches.
///
/// In PEARL's pre-verify phase the target scores one token, which may take less time than a chunk.
/// The draft then has less time too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lengths {
    /// γ while every sequence is in pre-verify.
    pub pre_verify: usize,
    /// γ otherwise, and in `sd`.
    pub post_verify: usize,
    /// Branches of every sequence in `forked`; 0 in other modes.
    pub branches: usize,
}

impl Lengths {
    /// The same γ in both phases, without branches.
    pub fn same(gamma: usize) -> Lengths {
        Lengths { pre_verify: gamma, post_verify: gamma, branches: 0 }
    }

    /// γ of a step with sequences in these phases.
    pub fn of_step(self, mut phases: impl Iterator<Item = Phase>) -> usize {
        if phases.all(|phase| phase == Phase::PreVerify) {
            self.pre_verify
        } else {
            self.post_verify
        }
    }
}

/// Chooses γ for each batch size class and mode.
#[derive(Clone, Debug)]
pub struct AdaptiveGamma {
    limits: GammaLimits,
    fixed: Option<usize>,
    /// Current choice by batch size class and mode.
    current: BTreeMap<(usize, Mode), Lengths>,
}

impl Default for AdaptiveGamma {
    fn default() -> AdaptiveGamma {
        AdaptiveGamma::new(GammaLimits::default())
    }
}

impl AdaptiveGamma {
    /// Adaptive γ within `limits`.
    pub fn new(limits: GammaLimits) -> AdaptiveGamma {
        AdaptiveGamma { limits, fixed: None, current: BTreeMap::new() }
    }

    /// Fixed γ, at least 1.
    pub fn fixed(gamma: usize) -> AdaptiveGamma {
        let limits = GammaLimits { start: gamma, max: gamma };
        AdaptiveGamma { fixed: Some(gamma), ..AdaptiveGamma::new(limits) }
    }

    /// The fixed γ, if it is fixed.
    pub fn fixed_length(&self) -> Option<usize> {
        self.fixed
    }

    /// The largest γ.
    pub fn longest(&self) -> usize {
        self.limits.max
    }

    /// γ for the next step of `mode`, `sd` or `pearl`: the fastest by the optimistic forecast, so
    /// that a γ whose cost was measured long ago is tried again. The current γ stays until another
    /// is clearly faster. `runs` and `plain` are those of [`Speeds::forecast`].
    pub fn lengths(
        &mut self,
        mode: Mode,
        runs: &[usize],
        plain: usize,
        speeds: &Speeds,
    ) -> Lengths {
        if let Some(gamma) = self.fixed {
            let branches = if mode == Mode::Forked { FIXED_BRANCHES } else { 0 };
            return Lengths { branches, ..Lengths::same(gamma) };
        }
        let Some(forecast) = speeds.forecast(mode, runs, plain).map(Forecast::optimistic) else {
            return Lengths::same(self.limits.start);
        };
        let speed = |lengths| forecast.tokens_per_second(lengths);
        let current = self.current.get(&(size_class(runs.len()), mode));
        let branches = current.map_or(0, |lengths| lengths.branches);
        let mut best =
            self.fastest(&forecast, |gamma| Lengths { branches, ..Lengths::same(gamma) });
        if mode == Mode::Forked {
            // One after the other: γ for the current branches, then branches for that γ.
            // The fewest of those that are about as fast: the forecast overestimates branches,
            // because a rejection that has one is often one after which guesses are right too.
            let others = BRANCHES.map(|branches| Lengths { branches, ..best });
            let fastest = others.map(speed).into_iter().fold(0.0, f64::max);
            let fewest = others.into_iter().find(|l| speed(*l) * WORTH_CHANGING >= fastest);
            best = fewest.unwrap_or(best);
        }
        // In a batch, phases differ between sequences but chunks are drafted together: one γ.
        if mode.is_parallel() && runs.len() == 1 {
            best = self.fastest(&forecast, |pre_verify| Lengths { pre_verify, ..best });
        }
        let current = self.current.entry((size_class(runs.len()), mode)).or_insert(best);
        if speed(best) > speed(*current) * WORTH_CHANGING {
            *current = best;
        }
        *current
    }

    /// The fastest lengths. Ties go to the shortest.
    fn fastest(&self, forecast: &Forecast, lengths: impl Fn(usize) -> Lengths) -> Lengths {
        let speed = |gamma: usize| (gamma, forecast.tokens_per_second(lengths(gamma)));
        let longest_first = (1..=self.limits.max).rev().map(speed); // `max_by` takes the last
        let best = longest_first.max_by(|a, b| a.1.total_cmp(&b.1));
        lengths(best.map_or(self.limits.start, |(gamma, _)| gamma))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Outcome;
    use crate::planner::speeds::tests::measured;

    fn gamma(adaptive: &mut AdaptiveGamma, speeds: &Speeds) -> usize {
        adaptive.lengths(Mode::Pearl, &[0], 0, speeds).post_verify
    }

    #[test]
    fn before_anything_is_measured_gamma_is_the_start() {
        let speeds = Speeds::default();
        let mut adaptive = AdaptiveGamma::new(GammaLimits { start: 6, max: 9 });
        assert_eq!(adaptive.lengths(Mode::Pearl, &[0; 4], 0, &speeds), Lengths::same(6));
        let speeds = measured(0.1, 1.0, 0.0, 0.9, 1);
        assert_eq!(AdaptiveGamma::fixed(1).lengths(Mode::Sd, &[0], 0, &speeds), Lengths::same(1));
    }

    /// Published rule: γ = target cost / draft cost. More would make the target wait.
    #[test]
    fn pearl_drafts_for_as_long_as_the_target_takes() {
        for (draft, expected) in [(0.2, 5), (0.125, 8), (0.5, 2), (1.0, 1)] {
            let speeds = measured(draft, 1.0, 0.0, 0.9, 1);
            let mut adaptive = AdaptiveGamma::new(GammaLimits::default());
            assert_eq!(gamma(&mut adaptive, &speeds), expected);
        }
    }

    /// If a pass over a chunk costs more than one over a token, the draft has less time in
    /// pre-verify.
    #[test]
    fn chunks_are_shorter_in_pre_verify_if_rows_cost() {
        let speeds = measured(0.2, 1.0, 0.1, 0.9, 1);
        let mut adaptive = AdaptiveGamma::new(GammaLimits::default());
        let Lengths { pre_verify, post_verify, .. } =
            adaptive.lengths(Mode::Pearl, &[0], 0, &speeds);
        assert!(pre_verify == 5 && post_verify > 5, "{pre_verify} {post_verify}");
    }

    #[test]
    fn gamma_follows_drifting_costs_and_ignores_noise() {
        let mut speeds = measured(0.2, 1.0, 0.0, 0.9, 1);
        let mut adaptive = AdaptiveGamma::new(GammaLimits::default());
        assert_eq!(gamma(&mut adaptive, &speeds), 5);
        for i in 0..100 {
            let noise = if i % 2 == 0 { 1.02 } else { 0.98 };
            speeds.record_target(1, true, 1 + i % 5, noise);
            assert_eq!(gamma(&mut adaptive, &speeds), 5);
        }
        for i in 0..200 {
            speeds.record_target(1, true, 1 + i % 5, 2.0);
        }
        assert_eq!(gamma(&mut adaptive, &speeds), 10);
        // Another batch size has its own costs.
        let start = Lengths::same(GammaLimits::default().start);
        assert_eq!(adaptive.lengths(Mode::Pearl, &[0; 8], 0, &speeds), start);
    }

    /// Branches are drafted where rejections hit them, but not where guesses fill the steps that
    /// they would save.
    #[test]
    fn there_are_branches_where_they_gain() {
        let branches = |hits: bool, free: usize| {
            let mut speeds = measured(0.05, 1.0, 0.0, 0.8, 1);
            for i in 0..200 {
                speeds.record_branching(1, 1 + i % 33, 0.05);
                speeds.branch_hits.record(hits.then_some(i % 4));
                let outcome = Outcome { free, ..Outcome::default() };
                speeds.free_tokens.record(1, Phase::PreVerify, free, &outcome);
            }
            let mut adaptive = AdaptiveGamma::new(GammaLimits::default());
            adaptive.lengths(Mode::Forked, &[0], 0, &speeds).branches
        };
        assert_eq!(branches(true, 0), 4, "each of four ranks is hit");
        assert_eq!(branches(false, 0), 0, "no branch is ever taken");
        assert_eq!(branches(true, 6), 0, "a step without a branch gives more");
    }
}
