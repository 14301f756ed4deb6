//! γ that adapts: the draft length, and the way of decoding, that measured costs say are fastest.

use std::collections::BTreeMap;

use crate::Mode;

/// What an observation weighs beside the one after it.
const DECAY: f64 = 0.95;
/// A plan is left only for one that is predicted to be faster by this factor: measured costs are noisy.
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
#[derive(Clone, Debug, Default)]
struct Costs {
    /// Seconds in which the draft drafts one token for every sequence.
    draft: Mean,
    /// Seconds of a pass of the target, by the rows it scores.
    target: Line,
    /// The plan in force: mode and γ.
    current: Option<(Mode, usize)>,
}

/// A way of decoding, and how fast it is predicted to be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    /// The way.
    pub mode: Mode,
    /// The draft length; 0 for [`Mode::Ar`].
    pub gamma: usize,
    /// Predicted tokens per second, all sequences of the batch together.
    pub tokens_per_second: f64,
}

impl AdaptiveGamma {
    /// γ within `limits`, adapted.
    pub fn new(limits: GammaLimits) -> AdaptiveGamma {
        AdaptiveGamma { limits, fixed: None, costs: BTreeMap::new(), accepted: Mean::default() }
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

    /// γ for the next step of `mode` with `batch` sequences: the fastest, by what has been measured.
    pub fn gamma(&mut self, mode: Mode, batch: usize) -> usize {
        match self.fixed {
            Some(gamma) => gamma,
            None => self.plan(&[mode], batch).map_or(self.limits.start, |plan| plan.gamma),
        }
    }

    /// The fastest of `modes` for `batch` sequences, with its γ. A plan holds until another is predicted to
    /// be clearly faster, plain decoding, where it is among `modes`, being the first. `None` until both models' costs and the acceptance have been measured.
    pub fn plan(&mut self, modes: &[Mode], batch: usize) -> Option<Plan> {
        let best = modes
            .iter()
            .flat_map(|&mode| {
                let gammas = match (mode, self.fixed) {
                    (Mode::Ar, _) => 0..=0,
                    (_, Some(gamma)) => gamma..=gamma,
                    (_, None) => 1..=self.limits.max,
                };
                gammas.map(move |gamma| (mode, gamma))
            })
            .filter_map(|(mode, gamma)| self.predict(mode, gamma, batch))
            .max_by(|a, b| a.tokens_per_second.total_cmp(&b.tokens_per_second))?;
        let (mode, gamma) = self.costs.get(&batch)?.current.unwrap_or((Mode::Ar, 0));
        let kept = self
            .predict(mode, gamma, batch)
            .filter(|_| modes.contains(&mode))
            .filter(|plan| best.tokens_per_second < plan.tokens_per_second * WORTH_CHANGING);
        let plan = kept.unwrap_or(best);
        self.costs.entry(batch).or_default().current = Some((plan.mode, plan.gamma));
        Some(plan)
    }

    /// Tokens per second from the closed formulas for independent acceptance α.
    ///
    /// A PEARL run of 1/(1-α) tokens takes one pre-verify step, scoring one token, and α/(1-α^γ)
    /// post-verify steps, scoring γ. A step of SD makes (1-α^(γ+1))/(1-α) tokens and scores γ+1.
    pub fn predict(&self, mode: Mode, gamma: usize, batch: usize) -> Option<Plan> {
        let costs = self.costs.get(&batch)?;
        let sequences = batch as f64;
        let target = |rows: f64| costs.target.at(rows * sequences);
        let (tokens, seconds) = if mode == Mode::Ar {
            (1.0, target(1.0)?)
        } else {
            let alpha = self.acceptance()?.clamp(0.0, 0.999);
            let a_gamma = alpha.powi(gamma as i32);
            let run = 1.0 / (1.0 - alpha);
            let draft = gamma as f64 * costs.draft.value()?;
            if mode == Mode::Sd {
                ((1.0 - alpha * a_gamma) * run, draft + target(gamma as f64 + 1.0)?)
            } else {
                let post = alpha / (1.0 - a_gamma);
                let rows = (1.0 + post * gamma as f64) / (1.0 + post);
                (run / (1.0 + post), draft.max(target(rows)?))
            }
        };
        Some(Plan { mode, gamma, tokens_per_second: sequences * tokens / seconds })
    }
}

/// A running mean that forgets.
#[derive(Clone, Copy, Debug, Default)]
struct Mean {
    weight: f64,
    sum: f64,
}

impl Mean {
    fn record(&mut self, x: f64) {
        self.weight = self.weight * DECAY + 1.0;
        self.sum = self.sum * DECAY + x;
    }

    fn value(&self) -> Option<f64> {
        (self.weight > 0.0).then(|| self.sum / self.weight)
    }
}

/// A running least-squares line y = a + b·x, b ≥ 0, that forgets.
#[derive(Clone, Copy, Debug, Default)]
struct Line {
    x: Mean,
    y: Mean,
    xx: Mean,
    xy: Mean,
}

impl Line {
    fn record(&mut self, x: f64, y: f64) {
        self.x.record(x);
        self.y.record(y);
        self.xx.record(x * x);
        self.xy.record(x * y);
    }

    fn at(&self, at: f64) -> Option<f64> {
        let (x, y) = (self.x.value()?, self.y.value()?);
        let variance = self.xx.value()? - x * x;
        let covariance = self.xy.value()? - x * y;
        // Without spread in x there is no slope to be seen; a pass over more rows is never cheaper.
        let slope = if variance > 1e-6 * x * x { (covariance / variance).max(0.0) } else { 0.0 };
        // Nor does a pass cost less than a token's share of the mean one.
        Some((y + slope * (at - x)).max(y * (at / x).min(1.0)))
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
        assert_eq!(adaptive.plan(&Mode::ALL, 4), None);
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
            let plan = adaptive.predict(mode, gamma, 1).unwrap();
            let relative = plan.tokens_per_second / speedup;
            assert!((relative - 1.0).abs() < 0.03, "{mode} {gamma}: {relative}");
        }
    }

    #[test]
    fn plain_decoding_is_chosen_where_speculation_does_not_pay() {
        let mut dear_draft = measured(1.5, 1.0, 0.0, 0.9, 1);
        assert_eq!(dear_draft.plan(&Mode::ALL, 1).unwrap().mode, Mode::Ar);
        let mut no_agreement = measured(0.2, 1.0, 0.05, 0.1, 1);
        assert_eq!(no_agreement.plan(&Mode::ALL, 1).unwrap().mode, Mode::Ar);
        // Every row costs as much as a pass: the target is compute-bound.
        let mut full = measured(0.3, 0.0, 0.1, 0.5, 16);
        assert_eq!(full.plan(&Mode::ALL, 16).unwrap().mode, Mode::Ar);
        let mut pays = measured(0.2, 1.0, 0.0, 0.9, 1);
        assert_eq!(pays.plan(&Mode::ALL, 1).unwrap().mode, Mode::Pearl);
    }

    #[test]
    fn a_plan_follows_costs_that_drift_and_holds_against_noise() {
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
