//! Simulation of the decoding state machines without models: with a random acceptance process, or
//! with the verdicts of an earlier run.

mod recorded;

use fathom_model::Result;

use crate::{
    AcceptedRuns, Branch, Completion, Drafted, EndRules, Judge, Lengths, Mode, Outcome, Pearl,
    Proposal, Purpose, RequestRng, Verdict, ar, sd,
};
pub use recorded::SpeculationRecord;

/// Size of a simulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protocol {
    /// Independent sequences.
    pub sequences: usize,
    /// Sequences per batch.
    pub batch: usize,
    /// Steps of each sequence after its first token. No text ends earlier.
    pub steps: usize,
    /// Seed of the random numbers.
    pub seed: u64,
}

/// Results of a simulation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Simulated {
    /// Verified tokens per step of a sequence, without the first token.
    pub tokens_per_step: f64,
    /// Tokens per step as the published benchmark counts them: including the first token and the
    /// drafts that are pending after the last step.
    pub published_tokens_per_step: f64,
    /// Mean accepted tokens: mean run length of each sequence, averaged over sequences.
    pub mat: f64,
    /// Verified tokens of a batch per second (or per unit of the costs).
    pub tokens_per_second: f64,
}

/// Costs of the parts of a step, in seconds or any other unit.
#[derive(Clone, Copy, Debug)]
pub struct StepCosts<Pass> {
    draft: f64,
    pass: Pass,
}

impl<Pass: Fn(f64) -> f64> StepCosts<Pass> {
    /// `draft`: drafting one token for every sequence of a batch, and for its branches.
    /// `pass(rows)`: a target pass over `rows` tokens of all sequences together. For PEARL, the
    /// costs while both models run.
    pub fn new(draft: f64, pass: Pass) -> StepCosts<Pass> {
        StepCosts { draft, pass }
    }

    /// A step that drafts `gamma` tokens for every sequence and scores `rows` tokens in total.
    fn step(&self, mode: Mode, gamma: usize, rows: usize) -> f64 {
        seconds(mode, gamma as f64 * self.draft, (self.pass)(rows as f64))
    }
}

/// Seconds of a step from those of drafting and of the target pass: `pass` for `ar` and `suffix`,
/// whose guesses are free, the sum for `sd`, the maximum for `pearl` and `forked`.
pub(crate) fn seconds(mode: Mode, draft: f64, pass: f64) -> f64 {
    match mode {
        Mode::Ar | Mode::Suffix => pass,
        Mode::Sd => draft + pass,
        Mode::Pearl | Mode::Forked => draft.max(pass),
    }
}

/// What happens at random in a simulation, independently from token to token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Chances {
    /// A draft is accepted.
    pub acceptance: f64,
    /// A rejection is one that the draft prepared a branch for, in `forked`.
    pub branch: f64,
}

impl Chances {
    /// Drafts that are accepted with this probability, without branches.
    pub fn acceptance(acceptance: f64) -> Chances {
        Chances { acceptance, branch: 0.0 }
    }
}

/// A simulated sequence.
pub(crate) struct Simulation<J = BernoulliJudge> {
    text: Completion,
    pub(crate) pearl: Pearl,
    pub(crate) runs: AcceptedRuns,
    judge: J,
}

impl Simulation {
    /// A sequence whose drafts are accepted at random.
    pub(crate) fn new(chances: Chances, rng: RequestRng) -> Result<Simulation> {
        Simulation::with_judge(BernoulliJudge { chances, rng, position: 0 })
    }

    pub(crate) fn step(&mut self, mode: Mode, gamma: usize) -> Result<Outcome> {
        self.judge.position = self.text.tokens().len();
        self.judged_step(mode, gamma)
    }
}

impl<J: Judge> Simulation<J> {
    /// A sequence with its first token, which is the target's own.
    fn with_judge(mut judge: J) -> Result<Simulation<J>> {
        let end = EndRules { max_tokens: usize::MAX, ..EndRules::default() };
        let mut text = Completion::new(Vec::new(), end);
        ar::step(&mut text, &mut judge)?;
        Ok(Simulation { text, pearl: Pearl::new(), runs: AcceptedRuns::default(), judge })
    }

    /// Tokens that the target scores in the next step.
    pub(crate) fn rows(&self, mode: Mode, gamma: usize) -> usize {
        1 + match mode {
            Mode::Ar => 0,
            Mode::Sd | Mode::Suffix => gamma,
            Mode::Pearl | Mode::Forked => self.pearl.pending().len(),
        }
    }

    /// A step in which `judge` decides about a chunk of γ drafts.
    fn judged_step(&mut self, mode: Mode, gamma: usize) -> Result<Outcome> {
        let chunk: Proposal = vec![Drafted { token: DRAFTED, q: None }; gamma];
        let outcome = match mode {
            Mode::Ar => ar::step(&mut self.text, &mut self.judge)?,
            Mode::Sd | Mode::Suffix => sd::step(&mut self.text, &chunk, &mut self.judge)?,
            Mode::Pearl => self.pearl.step(&mut self.text, chunk, &mut self.judge)?,
            Mode::Forked => self.forked_step(chunk)?,
        };
        self.runs.record(&outcome);
        Ok(outcome)
    }

    /// A step in which a branch is prepared behind every draft, for the correction [`PREPARED`].
    fn forked_step(&mut self, chunk: Proposal) -> Result<Outcome> {
        let drafts = chunk.get(1..).unwrap_or_default();
        let branch = |after| Branch { after, token: PREPARED, drafts: drafts.to_vec() };
        let branches: Vec<Branch> = (0..=self.pearl.pending().len()).map(branch).collect();
        let Simulation { text, pearl, judge, .. } = self;
        pearl.step_with_branches(text, chunk, &[], &branches, judge).map(|(outcome, _)| outcome)
    }
}

/// Simulates `protocol` with the state machines of the engine. A step costs what `costs` states for
/// its mode, γ and rows.
///
/// # Errors
/// Errors of the state machines.
pub fn run(
    mode: Mode,
    lengths: Lengths,
    chances: Chances,
    protocol: Protocol,
    costs: &StepCosts<impl Fn(f64) -> f64>,
) -> Result<Simulated> {
    let (mut verified, mut published, mut mats, mut seconds) = (0, 0, 0.0, 0.0);
    let requests: Vec<u64> = (0..protocol.sequences as u64).collect();
    for batch in requests.chunks(protocol.batch.max(1)) {
        let new =
            |request: &u64| Simulation::new(chances, RequestRng::new(protocol.seed, *request));
        let mut batch = batch.iter().map(new).collect::<Result<Vec<_>>>()?;
        for _ in 0..protocol.steps {
            let gamma = match mode.is_parallel() {
                true => lengths.of_step(batch.iter().map(|one| one.pearl.phase())),
                false => lengths.post_verify,
            };
            let rows = batch.iter().map(|sequence| sequence.rows(mode, gamma)).sum();
            seconds += costs.step(mode, gamma, rows);
            for sequence in &mut batch {
                sequence.step(mode, gamma)?;
            }
        }
        for sequence in batch {
            let tokens = sequence.text.generated().len();
            verified += tokens - 1;
            published += tokens + sequence.pearl.pending().len();
            mats += sequence.runs.mean().unwrap_or(0.0);
        }
    }
    let steps = (protocol.sequences * protocol.steps) as f64;
    Ok(Simulated {
        tokens_per_step: verified as f64 / steps,
        published_tokens_per_step: published as f64 / steps,
        mat: mats / protocol.sequences as f64,
        tokens_per_second: verified as f64 / seconds,
    })
}

/// The token of every draft.
const DRAFTED: u32 = 0;
/// The target's own token, after a rejected draft or without a draft.
const CORRECTED: u32 = 1;
/// The target's own token, if the draft has a branch behind it.
const PREPARED: u32 = 2;

/// A target that accepts each draft with the same probability, and whose corrections are prepared
/// for with the same probability.
pub(crate) struct BernoulliJudge {
    chances: Chances,
    rng: RequestRng,
    position: usize,
}

impl Judge for BernoulliJudge {
    fn judge(&mut self, row: usize, _draft: &Drafted) -> Result<Verdict> {
        let happens =
            |purpose, chance: f64| self.rng.uniform(self.position + row, purpose) < chance;
        Ok(match happens(Purpose::Accept, self.chances.acceptance) {
            true => Verdict::Accept,
            false if happens(Purpose::Residual, self.chances.branch) => Verdict::Reject(PREPARED),
            false => Verdict::Reject(CORRECTED),
        })
    }

    fn sample(&mut self, _row: usize) -> Result<u32> {
        Ok(CORRECTED)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const LONG: Protocol = Protocol { sequences: 20, batch: 1, steps: 5_000, seed: 3 };

    fn simulate(mode: Mode, gamma: usize, acceptance: f64) -> Simulated {
        let chances = Chances::acceptance(acceptance);
        run(mode, Lengths::same(gamma), chances, LONG, &StepCosts::new(0.0, |_| 1.0)).unwrap()
    }

    #[test]
    fn certain_drafts_give_gamma_tokens_a_step() {
        for gamma in [1, 2, 5, 9] {
            // The first step is a pre-verify, which commits one token.
            let tokens = ((LONG.steps - 1) * gamma + 1) as f64 / LONG.steps as f64;
            for mode in [Mode::Pearl, Mode::Forked] {
                assert_eq!(simulate(mode, gamma, 1.0).tokens_per_step, tokens);
            }
            for mode in [Mode::Sd, Mode::Suffix] {
                assert_eq!(simulate(mode, gamma, 1.0).tokens_per_step, gamma as f64 + 1.0);
            }
        }
        assert_eq!(simulate(Mode::Ar, 1, 0.5).tokens_per_step, 1.0);
    }

    #[test]
    fn rejected_drafts_give_one_token_a_step() {
        for mode in Mode::ALL {
            let simulated = simulate(mode, 5, 0.0);
            assert_eq!((simulated.tokens_per_step, simulated.mat), (1.0, 1.0));
        }
    }

    /// Leviathan et al. (2023) eq. 1: (1 - α^(γ+1)) / (1 - α) tokens a step. PEARL: a run of mean
    /// 1/(1-α) tokens takes one pre-verify step and, if that accepts, α/(1-α^γ) post-verify steps.
    /// With 100 000 steps the standard error is below 0.4 % in every case.
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

    /// A run after a prepared rejection has γ - 1 pending drafts, so 1/(1-α) tokens take
    /// 1/(1-α^γ) steps; after another it begins with a pre-verify step, like PEARL's.
    #[test]
    fn a_branch_saves_the_step_after_a_rejection() {
        for (gamma, alpha, branch) in
            [(2, 0.6_f64, 0.5), (8, 0.8, 0.7), (8, 0.9, 1.0), (4, 0.7, 0.0)]
        {
            let chances = Chances { acceptance: alpha, branch };
            let free = StepCosts::new(0.0, |_| 1.0);
            let forked = run(Mode::Forked, Lengths::same(gamma), chances, LONG, &free).unwrap();
            let all_accepted = alpha.powi(gamma as i32);
            let prepared = 1.0 / (1.0 - all_accepted);
            let unprepared = 1.0 + alpha / (1.0 - all_accepted);
            let steps = branch * prepared + (1.0 - branch) * unprepared;
            let expected = 1.0 / (1.0 - alpha) / steps;
            let error = forked.tokens_per_step / expected - 1.0;
            assert!(error.abs() < 0.016, "{gamma} {alpha} {branch}: {error}");
        }
    }

    /// All drafts accepted: every SD step takes 5 · 0.2 + 1.25, every PEARL step the longer of
    /// draft and pass.
    #[test]
    fn a_step_costs_its_own_work() {
        let speed = |mode, gamma, draft, verify| {
            let pass = |rows: f64| if rows > 1.0 { verify } else { 1.0 };
            let costs = StepCosts::new(draft, pass);
            let certain = Chances::acceptance(1.0);
            run(mode, Lengths::same(gamma), certain, LONG, &costs).unwrap().tokens_per_second
        };
        let close = |got: f64, expected: f64| (got / expected - 1.0).abs() < 1e-3;
        assert_eq!(speed(Mode::Ar, 5, 0.2, 1.25), 1.0);
        assert!(close(speed(Mode::Sd, 5, 0.2, 1.25), 6.0 / 2.25));
        assert!(close(speed(Mode::Suffix, 5, 0.2, 1.25), 6.0 / 1.25));
        assert!(close(speed(Mode::Pearl, 5, 0.2, 1.25), 5.0 / 1.25));
        assert!(close(speed(Mode::Pearl, 10, 0.2, 1.25), 10.0 / 2.0));
    }

    /// All drafts rejected: all steps are pre-verify and take the longer of the pre-verify chunk
    /// and a pass over one token.
    #[test]
    fn pre_verify_has_its_own_length() {
        let costs = StepCosts::new(0.2, |rows| 0.9 + 0.1 * rows);
        for (batch, pass) in [(1, 1.0), (4, 1.3)] {
            let protocol = Protocol { batch, ..LONG };
            for (pre_verify, seconds) in [(3, pass), (9, 1.8)] {
                let lengths = Lengths { pre_verify, ..Lengths::same(50) };
                let never = Chances::acceptance(0.0);
                let simulated = run(Mode::Pearl, lengths, never, protocol, &costs).unwrap();
                let expected = batch as f64 / seconds;
                assert!((simulated.tokens_per_second / expected - 1.0).abs() < 1e-9);
            }
        }
    }
}
