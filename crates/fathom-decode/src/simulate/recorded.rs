//! Simulation with the verdicts of recorded texts.
//!
//! A greedy draft depends on the text before it alone. So whether the draft of a position is
//! accepted does not depend on the mode or on γ, and the verdicts of one run give the steps of
//! another.

use fathom_model::Result;

use super::{CORRECTED, PREPARED, Simulation};
use crate::{Drafted, Judge, Mode, Outcome, Phase, Verdict};

/// How speculation went for one text.
#[derive(Clone, Debug, Default)]
pub struct SpeculationRecord {
    /// Of all judged drafts, in the order of the text.
    verdicts: Vec<Verdict>,
    tokens: usize,
    pre_verify: PhaseRecord,
    post_verify: PhaseRecord,
    /// Drafts that the next step judges.
    pending: usize,
}

/// Sums over the steps of a text in one phase. All steps of `sd` and `suffix` are in pre-verify.
#[derive(Clone, Copy, Debug, Default)]
struct PhaseRecord {
    steps: usize,
    gamma: usize,
    /// Tokens that free guesses added.
    free: usize,
    /// Steps that free guesses saved.
    early: usize,
}

impl PhaseRecord {
    fn plus(self, other: PhaseRecord) -> PhaseRecord {
        PhaseRecord {
            steps: self.steps + other.steps,
            gamma: self.gamma + other.gamma,
            free: self.free + other.free,
            early: self.early + other.early,
        }
    }

    /// The mean γ.
    fn gamma(&self) -> Option<f64> {
        (self.steps > 0).then(|| self.gamma as f64 / self.steps as f64)
    }

    /// A sum over the phase's steps for another number of steps.
    fn scaled(&self, sum: usize, steps: usize) -> f64 {
        sum as f64 * steps as f64 / self.steps.max(1) as f64
    }
}

impl SpeculationRecord {
    /// Records a step of the text, with drafts of γ tokens.
    pub fn record(&mut self, outcome: &Outcome, gamma: usize) {
        let phase = match self.phase() {
            Phase::PreVerify => &mut self.pre_verify,
            Phase::PostVerify => &mut self.post_verify,
        };
        let Outcome { judged, accepted, free, is_early, pending, committed, .. } = *outcome;
        let early = usize::from(is_early);
        *phase = phase.plus(PhaseRecord { steps: 1, gamma, free, early });
        self.verdicts.extend(std::iter::repeat_n(Verdict::Accept, accepted));
        if judged > accepted {
            let correction = if pending > 0 { PREPARED } else { CORRECTED };
            self.verdicts.push(Verdict::Reject(correction));
        }
        self.tokens += committed;
        self.pending = pending;
    }

    fn phase(&self) -> Phase {
        if self.pending == 0 { Phase::PreVerify } else { Phase::PostVerify }
    }

    fn steps(&self) -> usize {
        self.pre_verify.steps + self.post_verify.steps
    }

    /// Tokens per step of some texts. `None` without steps.
    pub fn tokens_per_step(records: &[&SpeculationRecord]) -> Option<f64> {
        let steps: usize = records.iter().map(|record| record.steps()).sum();
        let tokens: usize = records.iter().map(|record| record.tokens).sum();
        (steps > 0).then(|| tokens as f64 / steps as f64)
    }

    /// Tokens per step of `mode` that these texts let expect for others, at their mean γ. `suffix`
    /// has no drafts of a model to replay, and the expectation is the mean. `None` without steps.
    ///
    /// # Errors
    /// Errors of the state machines.
    pub fn expected_tokens_per_step(
        records: &[&SpeculationRecord],
        mode: Mode,
    ) -> Result<Option<f64>> {
        if !mode.needs_draft_model() {
            return Ok(SpeculationRecord::tokens_per_step(records));
        }
        let (pre, post) = SpeculationRecord::sums(records);
        let gamma = [pre.gamma().or(post.gamma()), post.gamma().or(pre.gamma())];
        let gamma = gamma.map(|mean| mean.unwrap_or(1.0));
        SpeculationRecord::replayed_tokens_per_step(records, mode, gamma)
    }

    /// Tokens per step of `mode`, which drafts with a model: those of its state machine with the
    /// verdicts of the texts, and with what free guesses added to their steps. `gamma` holds the
    /// mean γ in pre-verify and in post-verify; all steps of `sd` count as pre-verify. `None`
    /// without steps.
    ///
    /// # Errors
    /// Errors of the state machines.
    pub fn replayed_tokens_per_step(
        records: &[&SpeculationRecord],
        mode: Mode,
        gamma: [f64; 2],
    ) -> Result<Option<f64>> {
        let (pre, post) = SpeculationRecord::sums(records);
        let (mut tokens, mut steps) = (0.0, 0.0);
        for record in records {
            let replayed = replay(mode, gamma, &record.verdicts)?;
            tokens += replayed.tokens as f64;
            for (phase, replayed) in [(&pre, replayed.in_pre), (&post, replayed.in_post)] {
                tokens += phase.scaled(phase.free, replayed);
                steps += replayed as f64 - phase.scaled(phase.early, replayed);
            }
        }
        Ok((steps > 0.0).then(|| tokens / steps))
    }

    /// The steps of all texts in pre-verify and in post-verify.
    fn sums(records: &[&SpeculationRecord]) -> (PhaseRecord, PhaseRecord) {
        let sum = |phase: fn(&SpeculationRecord) -> PhaseRecord| {
            let each = records.iter().map(|record| phase(record));
            each.fold(PhaseRecord::default(), PhaseRecord::plus)
        };
        (sum(|record| record.pre_verify), sum(|record| record.post_verify))
    }
}

/// Counts of a replayed text.
#[derive(Clone, Copy, Debug, Default)]
struct Replayed {
    tokens: usize,
    in_pre: usize,
    in_post: usize,
}

/// Runs the state machine until every verdict was given. The γ of a step are the two integers next
/// to the mean, as often as the mean says.
fn replay(mode: Mode, mean_gamma: [f64; 2], verdicts: &[Verdict]) -> Result<Replayed> {
    let mut due = [0.5; 2];
    let mut simulation = Simulation::with_judge(RecordedJudge { verdicts, given: 0 })?;
    let mut replayed = Replayed::default();
    while simulation.judge.given < verdicts.len() {
        let phase = simulation.pearl.phase();
        match phase {
            Phase::PreVerify => replayed.in_pre += 1,
            Phase::PostVerify => replayed.in_post += 1,
        }
        let due = &mut due[phase as usize];
        *due += mean_gamma[phase as usize];
        let gamma = due.floor().max(1.0);
        *due -= gamma;
        let outcome = simulation.judged_step(mode, gamma as usize)?;
        // The text ended at the last verdict; what the judge accepted after it does not count.
        let beyond = simulation.judge.given.saturating_sub(verdicts.len());
        replayed.tokens += outcome.committed.saturating_sub(beyond);
    }
    Ok(replayed)
}

/// A target that gives recorded verdicts, one after another, and then accepts.
struct RecordedJudge<'a> {
    verdicts: &'a [Verdict],
    given: usize,
}

impl Judge for RecordedJudge<'_> {
    fn judge(&mut self, _row: usize, _draft: &Drafted) -> Result<Verdict> {
        self.given += 1;
        Ok(self.verdicts.get(self.given - 1).copied().unwrap_or(Verdict::Accept))
    }

    fn sample(&mut self, _row: usize) -> Result<u32> {
        Ok(CORRECTED)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::RequestRng;
    use crate::simulate::Chances;

    /// Records of simulated texts.
    fn records(mode: Mode, gamma: usize, chances: Chances, seeds: u64) -> Vec<SpeculationRecord> {
        let record = |seed| {
            let mut simulation = Simulation::new(chances, RequestRng::new(11, seed)).unwrap();
            let mut record = SpeculationRecord::default();
            (0..400).for_each(|_| record.record(&simulation.step(mode, gamma).unwrap(), gamma));
            record
        };
        (0..seeds).map(record).collect()
    }

    /// The texts that a prediction is made from have exactly the predicted tokens per step.
    #[test]
    fn a_replay_is_the_recorded_run() {
        let chances = Chances { acceptance: 0.8, branch: 0.5 };
        for mode in [Mode::Sd, Mode::Pearl, Mode::Forked] {
            for gamma in [1, 4, 9] {
                let all = records(mode, gamma, chances, 4);
                let all: Vec<_> = all.iter().collect();
                let measured = SpeculationRecord::tokens_per_step(&all).unwrap();
                let expected = SpeculationRecord::expected_tokens_per_step(&all, mode);
                let expected = expected.unwrap().unwrap();
                assert!((measured / expected - 1.0).abs() < 1e-3, "{mode} {gamma}");
            }
        }
    }

    /// The verdicts of one mode give the steps of another, and of another γ.
    #[test]
    fn one_mode_predicts_another() {
        let chances = Chances { acceptance: 0.8, branch: 0.5 };
        let verdicts = records(Mode::Forked, 3, chances, 1)[0].verdicts.clone();
        for (mode, gamma, alpha) in [(Mode::Pearl, 6, 0.8_f64), (Mode::Sd, 4, 0.8)] {
            let replayed = replay(mode, [gamma as f64; 2], &verdicts).unwrap();
            let steps = replayed.in_pre + replayed.in_post;
            let run = 1.0 / (1.0 - alpha);
            let expected = match mode {
                Mode::Sd => (1.0 - alpha.powi(gamma + 1)) * run,
                _ => run / (1.0 + alpha / (1.0 - alpha.powi(gamma))),
            };
            let error = replayed.tokens as f64 / steps as f64 / expected - 1.0;
            assert!(error.abs() < 0.1, "{mode}: {error}");
        }
    }

    /// Free tokens and saved steps are those per step of the phase.
    #[test]
    fn free_guesses_are_added() {
        let mut record = SpeculationRecord::default();
        let rejected =
            Outcome { judged: 1, committed: 3, free: 2, ends_run: true, ..Outcome::default() };
        (0..10).for_each(|_| record.record(&rejected, 4));
        let expected = SpeculationRecord::expected_tokens_per_step(&[&record], Mode::Pearl);
        assert_eq!(expected.unwrap(), Some(3.0));
        let early = Outcome { judged: 2, accepted: 1, committed: 4, is_early: true, ..rejected };
        (0..10).for_each(|_| record.record(&early, 4));
        let expected = SpeculationRecord::expected_tokens_per_step(&[&record], Mode::Pearl);
        assert_eq!(expected.unwrap(), Some(3.5), "ten steps of post-verify are saved");
        assert_eq!(SpeculationRecord::tokens_per_step(&[&record]), Some(3.5));
        assert_eq!(SpeculationRecord::tokens_per_step(&[]), None);
    }
}
