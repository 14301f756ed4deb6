//! The state machines that decode, driven by an acceptance process instead of models.

use fathom_model::Result;

use crate::{
    Completion, Drafted, EndRules, Judge, Mode, Pearl, Proposal, Purpose, RequestRng, Runs,
    Verdict, ar, sd,
};

/// How much is simulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protocol {
    /// Independent sequences.
    pub sequences: usize,
    /// Steps each sequence makes after its first token; no text ends before.
    pub steps: usize,
    /// Key of the randomness.
    pub seed: u64,
}

/// What came out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Simulated {
    /// Tokens of verified text per step, the first token not counted.
    pub tokens_per_step: f64,
    /// The same as the published benchmark counts: with the first token, and with the drafts that
    /// wait unverified when the last step ends.
    pub published_tokens_per_step: f64,
    /// Mean accepted tokens: mean run length of each sequence, averaged over sequences.
    pub mat: f64,
}

/// Seconds (or any unit) that the parts of a step take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepCosts {
    /// The draft drafting one token.
    pub draft: f64,
    /// A pass of the target over one token: a step of autoregressive decoding.
    pub target: f64,
    /// A pass of the target over what a step verifies.
    pub verify: f64,
}

impl StepCosts {
    /// Speed relative to autoregressive decoding, draft and target each having their own resources and
    /// autoregressive decoding having the target's.
    pub fn speedup(&self, mode: Mode, gamma: usize, tokens_per_step: f64) -> f64 {
        let draft = gamma as f64 * self.draft;
        let step = match mode {
            Mode::Ar => self.target,
            Mode::Sd => draft + self.verify,
            Mode::Pearl => draft.max(self.verify),
        };
        tokens_per_step * self.target / step
    }
}

/// Runs `protocol` with every draft accepted with probability `acceptance`, independently of the others.
///
/// # Errors
/// None of its own; it passes on what the state machines return.
pub fn run(mode: Mode, gamma: usize, acceptance: f64, protocol: Protocol) -> Result<Simulated> {
    let (mut verified, mut published, mut mats) = (0, 0, 0.0);
    for request in 0..protocol.sequences {
        let rng = RequestRng::new(protocol.seed, request as u64);
        let end = EndRules { max_tokens: usize::MAX, ..EndRules::default() };
        let mut text = Completion::new(Vec::new(), end);
        let mut pearl = Pearl::new();
        let mut runs = Runs::default();
        let mut judge = BernoulliJudge { acceptance, rng, position: 0 };
        ar::step(&mut text, &mut judge)?;
        for _ in 0..protocol.steps {
            judge.position = text.tokens().len();
            let chunk: Proposal = vec![Drafted { token: DRAFTED, q: None }; gamma];
            let outcome = match mode {
                Mode::Ar => ar::step(&mut text, &mut judge)?,
                Mode::Sd => sd::step(&mut text, &chunk, &mut judge)?,
                Mode::Pearl => pearl.step(&mut text, chunk, &mut judge)?,
            };
            runs.record(&outcome);
        }
        let tokens = text.generated().len();
        verified += tokens - 1;
        published += tokens + pearl.pending().len();
        mats += runs.mean().unwrap_or(0.0);
    }
    let steps = (protocol.sequences * protocol.steps) as f64;
    Ok(Simulated {
        tokens_per_step: verified as f64 / steps,
        published_tokens_per_step: published as f64 / steps,
        mat: mats / protocol.sequences as f64,
    })
}

/// What is drafted, and what stands in the text where the target put its own.
const DRAFTED: u32 = 0;
const CORRECTED: u32 = 1;

/// A target that accepts each draft with one probability.
struct BernoulliJudge {
    acceptance: f64,
    rng: RequestRng,
    position: usize,
}

impl Judge for BernoulliJudge {
    fn judge(&mut self, row: usize, _draft: &Drafted) -> Result<Verdict> {
        let u = self.rng.uniform(self.position + row, Purpose::Accept);
        Ok(if u < self.acceptance { Verdict::Accept } else { Verdict::Reject(CORRECTED) })
    }

    fn sample(&mut self, _row: usize) -> Result<u32> {
        Ok(CORRECTED)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const LONG: Protocol = Protocol { sequences: 20, steps: 5_000, seed: 3 };

    fn simulate(mode: Mode, gamma: usize, acceptance: f64) -> Simulated {
        run(mode, gamma, acceptance, LONG).unwrap()
    }

    #[test]
    fn certain_drafts_give_gamma_tokens_a_step() {
        for gamma in [1, 2, 5, 9] {
            // The first step is a pre-verify, which commits one token.
            let tokens = ((LONG.steps - 1) * gamma + 1) as f64 / LONG.steps as f64;
            assert_eq!(simulate(Mode::Pearl, gamma, 1.0).tokens_per_step, tokens);
            assert_eq!(simulate(Mode::Sd, gamma, 1.0).tokens_per_step, gamma as f64 + 1.0);
        }
        assert_eq!(simulate(Mode::Ar, 1, 0.5).tokens_per_step, 1.0);
    }

    #[test]
    fn hopeless_drafts_give_one_token_a_step() {
        for mode in Mode::ALL {
            let simulated = simulate(mode, 5, 0.0);
            assert_eq!((simulated.tokens_per_step, simulated.mat), (1.0, 1.0));
        }
    }

    /// Leviathan et al. (2023) eq. 1: (1 - α^(γ+1)) / (1 - α) tokens a step. PEARL: a run of mean
    /// 1/(1-α) tokens takes one pre-verify step and, if that accepts, α/(1-α^γ) post-verify steps.
    /// 100 000 steps: the standard error is below 0.4 % in every case here.
    #[test]
    fn rates_are_those_of_the_closed_formulas() {
        for gamma in [1, 3, 8] {
            for alpha in [0.3_f64, 0.7, 0.9] {
                let close = |got: f64, expected: f64| (got / expected - 1.0).abs() < 0.016;
                let run = 1.0 / (1.0 - alpha);
                let a_gamma = alpha.powi(gamma as i32);
                let sd = simulate(Mode::Sd, gamma, alpha);
                assert!(close(sd.tokens_per_step, (1.0 - alpha * a_gamma) * run), "{sd:?}");
                let pearl = simulate(Mode::Pearl, gamma, alpha);
                let steps = 1.0 + alpha / (1.0 - a_gamma);
                assert!(close(pearl.tokens_per_step, run / steps), "{gamma} {alpha} {pearl:?}");
                assert!(close(pearl.mat, run), "{gamma} {alpha} {pearl:?}");
            }
        }
    }

    #[test]
    fn speedup_is_the_ratio_of_throughputs() {
        let costs = StepCosts { draft: 0.2, target: 1.0, verify: 1.25 };
        assert_eq!(costs.speedup(Mode::Ar, 5, 1.0), 1.0);
        assert_eq!(costs.speedup(Mode::Sd, 5, 4.5), 2.0); // 5 · 0.2 + 1.25 a step
        assert_eq!(costs.speedup(Mode::Pearl, 5, 5.0), 4.0); // max(1, 1.25) a step
        assert_eq!(costs.speedup(Mode::Pearl, 10, 5.0), 2.5); // max(2, 1.25) a step
    }
}
