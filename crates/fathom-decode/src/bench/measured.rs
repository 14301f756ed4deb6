//! What was measured, and what the simulator expects of it.

use fathom_model::Result;

use crate::Mode;
use crate::engine::{EngineMetrics, ModeChoice};
use crate::simulate::{self, StepCosts};

/// One way of decoding on one benchmark at one batch size.
#[derive(Clone, Debug)]
pub struct Measured {
    /// The way.
    pub mode: ModeChoice,
    /// Seconds of decoding; those of prefill are in `metrics`.
    pub seconds: f64,
    /// Steps of the batches.
    pub steps: usize,
    /// Steps of the sequences: a step counts for each sequence that was in it.
    pub sequence_steps: usize,
    /// Mean γ of the steps.
    pub gamma: f64,
    /// Mean accepted tokens: the mean over sequences of each one's mean run.
    pub mat: f64,
    /// The tokens of every prompt's text.
    pub texts: Vec<Vec<u32>>,
    /// The engine's account.
    pub metrics: EngineMetrics,
}

impl Default for Measured {
    fn default() -> Measured {
        Measured {
            mode: ModeChoice::Always(Mode::Ar),
            seconds: 0.0,
            steps: 0,
            sequence_steps: 0,
            gamma: 0.0,
            mat: 0.0,
            texts: Vec::new(),
            metrics: EngineMetrics::default(),
        }
    }
}

impl Measured {
    /// Tokens of all texts.
    pub fn tokens(&self) -> usize {
        self.texts.iter().map(Vec::len).sum()
    }

    /// Tokens per second.
    pub fn throughput(&self) -> f64 {
        self.tokens() as f64 / self.seconds
    }

    /// Tokens a sequence gets from a step.
    pub fn tokens_per_step(&self) -> f64 {
        self.tokens() as f64 / self.sequence_steps.max(1) as f64
    }

    /// The speedup over plain decoding that the simulator expects, given what a drafted token, a pass over
    /// a chunk and `ar`'s pass over one token cost here and which share of drafts was accepted. `None`
    /// where there are no drafts, or no one way of decoding.
    ///
    /// # Errors
    /// None of its own; see [`simulate::run`].
    pub fn predicted_speedup(&self, ar: &Measured) -> Result<Option<f64>> {
        let (ModeChoice::Always(mode), Some(acceptance)) =
            (self.mode, self.metrics.acceptance.rate())
        else {
            return Ok(None);
        };
        let steps = self.steps as f64;
        let costs = StepCosts {
            draft: self.metrics.draft_seconds / (steps * self.gamma),
            target: ar.metrics.verify_seconds / ar.steps as f64,
            verify: self.metrics.verify_seconds / steps,
        };
        let gamma = self.gamma.round().max(1.0) as usize;
        let protocol = simulate::Protocol { sequences: 200, steps: 100, seed: 0 };
        let simulated = simulate::run(mode, gamma, acceptance, protocol)?;
        Ok(Some(costs.speedup(mode, gamma, simulated.tokens_per_step)))
    }
}

/// The first prompt whose texts differ where both have a token, and the position in it.
pub fn first_difference(left: &[Vec<u32>], right: &[Vec<u32>]) -> Option<(usize, usize)> {
    let differ = |(left, right): (&Vec<u32>, &Vec<u32>)| {
        left.iter().zip(right).position(|(left, right)| left != right)
    };
    let positions = left.iter().zip(right).map(differ);
    positions.enumerate().find_map(|(prompt, position)| Some((prompt, position?)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{Acceptance, Outcome};

    #[test]
    fn texts_are_compared_as_far_as_both_go() {
        let texts = |texts: &[&[u32]]| texts.iter().map(|text| text.to_vec()).collect::<Vec<_>>();
        let left = texts(&[&[1, 2, 3], &[4, 5]]);
        assert_eq!(first_difference(&left, &texts(&[&[1, 2], &[4, 5, 6]])), None);
        assert_eq!(first_difference(&left, &texts(&[&[1, 2, 3], &[4, 6]])), Some((1, 1)));
    }

    /// Nine drafts in ten accepted, five drafted in the time of one pass: the closed formula gives
    /// 1/(1-α) tokens in 1 + α/(1-α^5) steps.
    #[test]
    fn a_prediction_is_made_of_measured_costs() {
        let mut acceptance = Acceptance::default();
        let step = Outcome { judged: 10, accepted: 9, committed: 10, wasted: 1, ends_run: true };
        acceptance.record(&step);
        let metrics = |verify_seconds, draft_seconds| EngineMetrics {
            verify_seconds,
            draft_seconds,
            acceptance: acceptance.clone(),
            ..EngineMetrics::default()
        };
        let ar = Measured { steps: 200, metrics: metrics(20.0, 0.0), ..Measured::default() };
        let pearl = Measured {
            mode: ModeChoice::Always(Mode::Pearl),
            steps: 100,
            gamma: 5.0,
            metrics: metrics(10.0, 10.0),
            ..Measured::default()
        };
        let expected = 10.0 / (1.0 + 0.9 / (1.0 - 0.9_f64.powi(5)));
        let predicted = pearl.predicted_speedup(&ar).unwrap().unwrap();
        assert!((predicted / expected - 1.0).abs() < 0.03, "{predicted} {expected}");
        let auto = Measured { mode: ModeChoice::Auto, ..pearl };
        assert_eq!(auto.predicted_speedup(&ar).unwrap(), None);
    }
}
