//! γ that adapts: the draft length that measured costs and acceptance say is fastest.

use std::collections::BTreeMap;

use crate::Mode;
use crate::running::{Line, Mean};

/// What an observed cost weighs beside the one after it: the last 20 or so count.
const COST_DECAY: f64 = 0.95;
/// The same for judged drafts, each of which says little: the last 200.
const ACCEPTANCE_DECAY: f64 = 0.995;
/// γ is left only for one that is predicted to be faster by this factor: measured costs are noisy.
const WORTH_CHANGING: f64 = 1.03;

/// What γ may be.
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

/// Chooses γ for a batch size from the running costs of both models and the running acceptance.
#[derive(Clone, Debug)]
pub struct AdaptiveGamma {
    limits: GammaLimits,
    fixed: Option<usize>,
    costs: BTreeMap<usize, Costs>,
    accepted: Mean,
}

/// Measured costs at one batch size.
#[derive(Clone, Debug)]
struct Costs {
    /// Seconds in which the draft drafts one token for every sequence.
    draft: Mean,
    /// Seconds of a pass of the target, by the rows it scores.
    target: Line,
    /// γ in force.
    current: BTreeMap<Mode, usize>,
}

impl Default for Costs {
    fn default() -> Costs {
        let (draft, target) = (Mean::new(COST_DECAY), Line::new(COST_DECAY));
        Costs { draft, target, current: BTreeMap::new() }
    }
}

impl AdaptiveGamma {
    /// γ within `limits`, adapted.
    pub fn new(limits: GammaLimits) -> AdaptiveGamma {
        let accepted = Mean::new(ACCEPTANCE_DECAY);
        AdaptiveGamma { limits, fixed: None, costs: BTreeMap::new(), accepted }
    }

    /// One γ, at least 1, whatever is measured.
    pub fn fixed(gamma: usize) -> AdaptiveGamma {
        let limits = GammaLimits { start: gamma, max: gamma };
        AdaptiveGamma { fixed: Some(gamma), ..AdaptiveGamma::new(limits) }
    }

    /// Counts that the draft drafted `tokens` for each of `batch` sequences in `seconds`.
    pub fn record_draft(&mut self, batch: usize, tokens: usize, seconds: f64) {
        if tokens > 0 {
            self.costs.entry(batch).or_default().draft.record(seconds / tokens as f64);
        }
    }

    /// Counts a pass of the target over `rows` tokens of `batch` sequences in `seconds`.
    pub fn record_target(&mut self, batch: usize, rows: usize, seconds: f64) {
        self.costs.entry(batch).or_default().target.record(rows as f64, seconds);
    }

    /// Counts judged drafts.
    pub fn record_acceptance(&mut self, judged: usize, accepted: usize) {
        for i in 0..judged {
            self.accepted.record(if i < accepted { 1.0 } else { 0.0 });
        }
    }

    /// Running share of judged drafts that were accepted.
    pub fn acceptance(&self) -> Option<f64> {
        self.accepted.value()
    }

    /// γ for the next step of `mode`, which drafts, with `batch` sequences: what is predicted to be
    /// fastest. One γ holds until another is clearly faster.
    pub fn gamma(&mut self, mode: Mode, batch: usize) -> usize {
        if let Some(gamma) = self.fixed {
            return gamma;
        }
        let predict = |gamma| Some((gamma, self.tokens_per_second(mode, gamma, batch)?));
        // Of equally fast ones the shortest: `max_by` takes the last.
        let all = (1..=self.limits.max).rev().filter_map(predict);
        let Some((best, speed)) = all.max_by(|a, b| a.1.total_cmp(&b.1)) else {
            return self.limits.start;
        };
        let current = self.costs.get(&batch).and_then(|costs| costs.current.get(&mode).copied());
        let holds =
            current.and_then(predict).is_some_and(|(_, current)| speed < current * WORTH_CHANGING);
        let gamma = current.filter(|_| holds).unwrap_or(best);
        self.costs.entry(batch).or_default().current.insert(mode, gamma);
        gamma
    }

    /// Predicted tokens per second of a batch. `None` until both models' costs and the acceptance have
    /// been measured.
    pub fn tokens_per_second(&self, mode: Mode, gamma: usize, batch: usize) -> Option<f64> {
        let costs = self.costs.get(&batch)?;
        let sequences = batch as f64;
        let target = |rows: f64| costs.target.at(rows * sequences);
        let draft = || Some(gamma as f64 * costs.draft.value()?);
        let seconds = match mode {
            Mode::Ar => target(1.0)?,
            Mode::Sd => draft()? + target(gamma as f64 + 1.0)?,
            Mode::Pearl => {
                // One pre-verify step a run, scoring one token; the others score γ.
                let post = self.post_verify_steps(gamma)?;
                let rows = (1.0 + post * gamma as f64) / (1.0 + post);
                draft()?.max(target(rows)?)
            }
        };
        Some(sequences * self.tokens_per_step(mode, gamma)? / seconds)
    }

    /// Expected tokens per step of one sequence, for independent acceptance α: 1, (1-α^(γ+1))/(1-α) for
    /// SD (Leviathan et al. 2023, eq. 1), and for PEARL the run of 1/(1-α) tokens over its steps.
    /// `None` until a draft has been judged.
    pub fn tokens_per_step(&self, mode: Mode, gamma: usize) -> Option<f64> {
        if mode == Mode::Ar {
            return Some(1.0);
        }
        let alpha = self.alpha()?;
        let run = 1.0 / (1.0 - alpha);
        Some(match mode {
            Mode::Sd => (1.0 - alpha.powi(gamma as i32 + 1)) * run,
            _ => run / (1.0 + self.post_verify_steps(gamma)?),
        })
    }

    /// Expected post-verify steps of a PEARL run: α/(1-α^γ).
    fn post_verify_steps(&self, gamma: usize) -> Option<f64> {
        let alpha = self.alpha()?;
        Some(alpha / (1.0 - alpha.powi(gamma as i32)))
    }

    /// The acceptance, short of certainty: the formulas divide by 1-α.
    fn alpha(&self) -> Option<f64> {
        Some(self.acceptance()?.min(0.999))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::simulate::{self, Protocol, StepCosts};

    /// A machine with known costs: per drafted token, per target pass and per target row.
    fn measured(draft: f64, pass: f64, row: f64, acceptance: f64, batch: usize) -> AdaptiveGamma {
        let mut adaptive = AdaptiveGamma::new(GammaLimits::default());
        for i in 0..200 {
            let rows = batch * (1 + i % 7);
            adaptive.record_draft(batch, 4, 4.0 * draft);
            adaptive.record_target(batch, rows, pass + row * rows as f64);
        }
        // Repeating blocks of ten, so that the running share is close to `acceptance`.
        for _ in 0..100 {
            for i in 0..10 {
                let accepted =
                    (f64::from(i + 1) * acceptance) as usize > (f64::from(i) * acceptance) as usize;
                adaptive.record_acceptance(1, usize::from(accepted));
            }
        }
        adaptive
    }

    #[test]
    fn before_anything_is_measured_gamma_is_the_start() {
        let mut adaptive = AdaptiveGamma::new(GammaLimits { start: 6, max: 9 });
        assert_eq!(adaptive.gamma(Mode::Pearl, 4), 6);
        assert_eq!(adaptive.tokens_per_second(Mode::Pearl, 4, 4), None);
        assert_eq!(AdaptiveGamma::fixed(1).gamma(Mode::Sd, 1), 1);
    }

    /// Published rule: γ = target cost / draft cost, where more would make the target wait.
    #[test]
    fn pearl_drafts_for_as_long_as_the_target_takes() {
        for (draft, gamma) in [(0.2, 5), (0.125, 8), (0.5, 2), (1.0, 1)] {
            let mut adaptive = measured(draft, 1.0, 0.0, 0.9, 1);
            assert_eq!(adaptive.gamma(Mode::Pearl, 1), gamma);
        }
    }

    /// The prediction is the simulator's answer: the state machine's, not only a formula's.
    #[test]
    fn predictions_agree_with_the_state_machine() {
        let (draft, pass, alpha) = (0.15, 1.0, 0.8);
        let adaptive = measured(draft, pass, 0.0, alpha, 1);
        let acceptance = adaptive.acceptance().unwrap();
        let protocol = Protocol { sequences: 20, steps: 2000, seed: 1 };
        let costs = StepCosts { draft, target: pass, verify: pass };
        for (mode, gamma) in [(Mode::Ar, 0), (Mode::Sd, 4), (Mode::Pearl, 4), (Mode::Pearl, 9)] {
            let simulated = simulate::run(mode, gamma, acceptance, protocol).unwrap();
            let speedup = costs.speedup(mode, gamma, simulated.tokens_per_step);
            let relative = adaptive.tokens_per_second(mode, gamma, 1).unwrap() / speedup;
            assert!((relative - 1.0).abs() < 0.03, "{mode} {gamma}: {relative}");
        }
    }

    #[test]
    fn gamma_follows_costs_that_drift_and_holds_against_noise() {
        let mut adaptive = measured(0.2, 1.0, 0.0, 0.9, 1);
        assert_eq!(adaptive.gamma(Mode::Pearl, 1), 5);
        for i in 0..100 {
            adaptive.record_target(1, 1 + i % 5, if i % 2 == 0 { 1.02 } else { 0.98 });
            assert_eq!(adaptive.gamma(Mode::Pearl, 1), 5);
        }
        for i in 0..200 {
            adaptive.record_target(1, 1 + i % 5, 2.0);
        }
        assert_eq!(adaptive.gamma(Mode::Pearl, 1), 10);
        // Another batch size has its own costs.
        assert_eq!(adaptive.gamma(Mode::Pearl, 8), GammaLimits::default().start);
    }
}
