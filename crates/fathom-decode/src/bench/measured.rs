//! Results of the benchmark, and the speedup predicted by the simulator.

use fathom_model::Result;

use crate::engine::{EngineMetrics, ModeChoice};
use crate::simulate::{self, Chances, SpeculationRecord, StepCosts};
use crate::{Lengths, Mean, Mode};

/// Results of one mode on one benchmark at one batch size.
#[derive(Clone, Debug)]
pub struct BenchResult {
    /// The mode.
    pub mode: ModeChoice,
    /// Seconds of decoding. `metrics` has those of prefill.
    pub seconds: f64,
    /// Steps of the batches.
    pub steps: usize,
    /// Steps × sequences in each step.
    pub sequence_steps: usize,
    /// Mean γ of the steps.
    pub gamma: f64,
    /// Mean accepted tokens: the mean run length of each sequence, averaged over sequences.
    pub mat: f64,
    /// The tokens of every prompt's text.
    pub texts: Vec<Vec<u32>>,
    /// How speculation went for every prompt's text.
    pub records: Vec<SpeculationRecord>,
    /// The engine's metrics.
    pub metrics: EngineMetrics,
}

impl Default for BenchResult {
    fn default() -> BenchResult {
        BenchResult {
            mode: ModeChoice::Always(Mode::Ar),
            seconds: 0.0,
            steps: 0,
            sequence_steps: 0,
            gamma: 0.0,
            mat: 0.0,
            texts: Vec::new(),
            records: Vec::new(),
            metrics: EngineMetrics::default(),
        }
    }
}

impl BenchResult {
    /// Tokens of all texts.
    pub fn tokens(&self) -> usize {
        self.texts.iter().map(Vec::len).sum()
    }

    /// Tokens per second.
    pub fn throughput(&self) -> f64 {
        self.tokens() as f64 / self.seconds
    }

    /// Tokens per step of a sequence.
    pub fn tokens_per_step(&self) -> f64 {
        self.tokens() as f64 / self.sequence_steps.max(1) as f64
    }

    /// The speedup over `ar` predicted by the simulator from the measured costs of a drafted token
    /// and of a target pass by its rows, the measured acceptance rate, and γ. A simulated step
    /// costs only the models' passes, not the engine's overhead. `None` without drafts, for `auto`,
    /// with free guesses, and for texts that the draft could not follow to their end.
    ///
    /// # Errors
    /// See [`simulate::run`].
    pub fn predicted_speedup(&self, ar: &BenchResult) -> Result<Option<f64>> {
        let metrics = &self.metrics;
        let (ModeChoice::Always(mode), Some(acceptance), Some(draft)) =
            (self.mode, metrics.acceptance.rate(), metrics.draft_cost.value())
        else {
            return Ok(None);
        };
        if metrics.steps_without_draft > 0 || metrics.guesses > 0 {
            return Ok(None);
        }
        let pass = |rows| metrics.pass_cost.at(rows).unwrap_or(0.0);
        let gamma = |mean: &Mean| mean.value().unwrap_or(self.gamma).round().max(1.0) as usize;
        let lengths = Lengths {
            pre_verify: gamma(&metrics.gamma_pre_verify),
            post_verify: gamma(&metrics.gamma_post_verify),
            branches: 0, // their costs are in that of drafting, and their chance is measured
        };
        let batch = self.sequence_steps.div_ceil(self.steps.max(1));
        let protocol = simulate::Protocol {
            sequences: 200_usize.next_multiple_of(batch),
            batch,
            steps: 100,
            seed: 0,
        };
        let costs = StepCosts::new(draft, pass);
        let chances = Chances { acceptance, branch: metrics.branches.rate() };
        let simulated = simulate::run(mode, lengths, chances, protocol, &costs)?;
        let ar_step = ar.metrics.verify_seconds / ar.steps as f64;
        Ok(Some(simulated.tokens_per_second * ar_step / batch as f64))
    }
}

/// The first prompt and position at which both texts have a token and the tokens differ.
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
    use crate::Outcome;

    #[test]
    fn texts_are_compared_up_to_the_shorter_one() {
        let texts = |texts: &[&[u32]]| texts.iter().map(|text| text.to_vec()).collect::<Vec<_>>();
        let left = texts(&[&[1, 2, 3], &[4, 5]]);
        assert_eq!(first_difference(&left, &texts(&[&[1, 2], &[4, 5, 6]])), None);
        assert_eq!(first_difference(&left, &texts(&[&[1, 2, 3], &[4, 6]])), Some((1, 1)));
    }

    /// α = 0.9 and five drafts per pass: the closed formula gives 1/(1-α) tokens in 1 + α/(1-α^5)
    /// steps.
    #[test]
    fn a_prediction_follows_from_measured_costs() {
        let mut metrics = EngineMetrics::default();
        let step = Outcome {
            judged: 10,
            accepted: 9,
            committed: 10,
            wasted: 1,
            ends_run: true,
            ..Outcome::default()
        };
        metrics.acceptance.record(&step);
        metrics.draft_cost.record(0.02);
        metrics.pass_cost.record(5.0, 0.1);
        let mut ar = BenchResult { steps: 200, ..BenchResult::default() };
        ar.metrics.verify_seconds = 20.0;
        let mut pearl = BenchResult {
            mode: ModeChoice::Always(Mode::Pearl),
            steps: 100,
            sequence_steps: 100,
            gamma: 5.0,
            metrics,
            ..BenchResult::default()
        };
        let expected = 10.0 / (1.0 + 0.9 / (1.0 - 0.9_f64.powi(5)));
        let predicted = pearl.predicted_speedup(&ar).unwrap().unwrap();
        assert!((predicted / expected - 1.0).abs() < 0.03, "{predicted} {expected}");
        // A batch of four runs the same steps.
        pearl.sequence_steps = 400;
        let of_four = pearl.predicted_speedup(&ar).unwrap().unwrap();
        assert!((of_four / expected - 1.0).abs() < 0.03, "{of_four} {expected}");
        // There is no prediction for texts that the draft cannot follow.
        let mut beyond = pearl.clone();
        beyond.metrics.steps_without_draft = 1;
        assert_eq!(beyond.predicted_speedup(&ar).unwrap(), None);
        let auto = BenchResult { mode: ModeChoice::Auto, ..pearl };
        assert_eq!(auto.predicted_speedup(&ar).unwrap(), None);
    }
}
