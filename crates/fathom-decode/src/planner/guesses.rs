//! Free guesses: their acceptance by what is known of them, and how many are worth verifying.

use std::collections::BTreeMap;

use super::StepPlan;
use super::running::Mean;
use super::speeds::{Speeds, size_class};
use crate::{Guess, Lengths, Mode};

/// Exponential decay of acceptance per observation, as of drafts.
const DECAY: f64 = 0.997;
/// Weight, in observations, of what the counts alone say.
const PRIOR: f64 = 4.0;
/// Exponential decay of throughput per step: an effective window of 50.
const RATE_DECAY: f64 = 0.98;
/// Guesses are verified only if they are expected to gain this share of a step.
const WORTH_VERIFYING: f64 = 0.02;
/// Classes of contexts: of 1, 2, 3–4, 5–8, 9–16 and more tokens.
const CONTEXTS: usize = 6;
/// Classes of counts: see [`counts_class`].
const COUNTS: usize = 4;

/// Measured acceptance of guesses, and the throughput of the steps that verify them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Guessing {
    acceptance: GuessAcceptance,
    /// By batch size class.
    throughput: BTreeMap<usize, Throughput>,
}

/// The guesses for a sequence beside the drafts of a model.
#[derive(Clone, Debug)]
pub(crate) struct Guessed {
    /// Tokens of its current run.
    pub run: usize,
    /// Pending drafts, which the guesses follow.
    pub pending: usize,
    pub guesses: Vec<Guess>,
}

/// Running acceptance probabilities of a guess after accepted ones, by the length of its context
/// and by the counts of the tokens that followed it.
#[derive(Clone, Debug)]
struct GuessAcceptance {
    by_class: [[Mean; COUNTS]; CONTEXTS],
}

/// Expected tokens and seconds of steps.
#[derive(Clone, Copy, Debug)]
struct Throughput {
    tokens: Mean,
    seconds: Mean,
}

impl Default for GuessAcceptance {
    fn default() -> GuessAcceptance {
        GuessAcceptance { by_class: [[Mean::new(DECAY); COUNTS]; CONTEXTS] }
    }
}

impl Default for Throughput {
    fn default() -> Throughput {
        Throughput { tokens: Mean::new(RATE_DECAY), seconds: Mean::new(RATE_DECAY) }
    }
}

impl Throughput {
    fn value(&self) -> Option<f64> {
        Some(self.tokens.value()? / self.seconds.value()?)
    }
}

impl GuessAcceptance {
    /// The probability that a guess is accepted if all before it are.
    fn chance(&self, guess: &Guess) -> f64 {
        let (count, total) = (guess.count as f64, guess.total as f64);
        let context = guess.context as f64;
        // Half an occurrence for a token never seen here; longer contexts say more.
        let prior = count / (total + 0.5) * context / (context + 1.0);
        self.by_class[context_class(guess)][counts_class(guess)].value_after(prior, PRIOR)
    }

    fn record(&mut self, guess: &Guess, accepted: bool) {
        let class = &mut self.by_class[context_class(guess)][counts_class(guess)];
        class.record(if accepted { 1.0 } else { 0.0 });
    }

    /// S(k) for k = 1, 2, …: the probability that the first k guesses are all accepted.
    fn survival(&self, guesses: &[Guess]) -> Vec<f64> {
        let alive = guesses.iter().scan(1.0, |alive, guess| {
            *alive *= self.chance(guess);
            Some(*alive)
        });
        alive.collect()
    }
}

fn context_class(guess: &Guess) -> usize {
    (guess.context.next_power_of_two().ilog2() as usize).min(CONTEXTS - 1)
}

/// Others followed the context as often; others followed it, but less often; only this token, once;
/// only this token, several times.
fn counts_class(guess: &Guess) -> usize {
    match (guess.count, guess.total) {
        (count, total) if 2 * count <= total => 0,
        (count, total) if count < total => 1,
        (1, _) => 2,
        _ => 3,
    }
}

impl Guessing {
    /// Records the tokens that followed a text for which `guesses` were made, verified or not.
    pub fn record(&mut self, guesses: &[Guess], followed: &[u32]) {
        for (guess, &token) in guesses.iter().zip(followed) {
            self.acceptance.record(guess, guess.token == token);
            if guess.token != token {
                break;
            }
        }
    }

    /// Expected tokens per second of a batch in `suffix`, over the last steps that were planned.
    /// `None` before the cost of a pass was measured.
    pub fn tokens_per_second(&self, batch: usize) -> Option<f64> {
        self.throughput.get(&size_class(batch))?.value()
    }

    /// How many guesses for each sequence to verify in a pass of the target.
    ///
    /// n guesses of all sequences together cost T(B + n) instead of T(B), and are expected to give
    /// G(n) = ΣS(k) tokens. Over many steps the throughput is highest if each step maximises
    /// tokens - λ·seconds, where λ is that throughput (Dinkelbach 1967). S(k) falls with k, so the
    /// best n guesses are those with the largest S.
    pub fn plan(
        &mut self,
        guesses: &[&[Guess]],
        fixed: Option<usize>,
        speeds: &Speeds,
    ) -> Vec<usize> {
        let batch = guesses.len();
        let survivals = guesses.iter().map(|guesses| self.acceptance.survival(guesses));
        let survivals: Vec<Vec<f64>> = survivals.collect();
        let overhead = speeds.overhead(batch, Mode::Suffix);
        let pass = |guesses: usize| {
            let seconds = speeds.pass_cost(batch, false)?.optimistic((batch + guesses) as f64);
            seconds.map(|seconds| seconds + overhead)
        };
        // Without guesses first: the cost of more rows says nothing if that of fewer is unknown.
        let plain = speeds.pass_cost(batch, false).filter(|cost| cost.has_measured(batch as f64));
        let lengths = match (fixed, plain.and(pass(0))) {
            (Some(fixed), _) => survivals.iter().map(|alive| alive.len().min(fixed)).collect(),
            (None, None) => vec![0; batch],
            (None, Some(step)) => {
                let measured = self.tokens_per_second(batch).unwrap_or(0.0);
                let rate = measured.max(batch as f64 / step);
                let worth = |n| pass(n).map_or(f64::INFINITY, |seconds| rate * (seconds - step));
                most_worth(&survivals, worth, WORTH_VERIFYING * batch as f64)
            }
        };
        let chosen = survivals.iter().zip(&lengths).flat_map(|(alive, n)| alive.iter().take(*n));
        let tokens = batch as f64 + chosen.sum::<f64>();
        if let Some(seconds) = pass(lengths.iter().sum()) {
            let throughput = self.throughput.entry(size_class(batch)).or_default();
            throughput.tokens.record(tokens);
            throughput.seconds.record(seconds);
        }
        lengths
    }
}

impl Guessing {
    /// How many guesses to verify after the pending drafts in a step of `pearl` or `forked`.
    ///
    /// Guesses that agree with the draft gain nothing: the chunk goes on to the same token. A guess
    /// gains a token if the pending drafts are accepted and the draft then errs. It is counted if
    /// one of the first two tokens of the chunk is rejected, which makes the gain fall with k as
    /// [`most_worth`] needs. Its price is the time by which its row makes the step longer, at the
    /// throughput of the mode.
    pub fn beside_pearl(&self, guessed: &[Guessed], plan: StepPlan, speeds: &Speeds) -> Vec<usize> {
        let StepPlan { mode, gamma, branches } = plan;
        let batch = guessed.len();
        let rows: usize = guessed.iter().map(|one| 1 + one.pending).sum();
        let runs: Vec<usize> = guessed.iter().map(|one| one.run).collect();
        let (Some(pass), Some(forecast), Some(survival)) =
            (speeds.pass_cost(batch, true), speeds.forecast(mode, &runs, 0), speeds.survival())
        else {
            return vec![0; batch];
        };
        let rate = forecast.tokens_per_second(Lengths { branches, ..Lengths::same(gamma) });
        let drafting = forecast.chunk(gamma, branches);
        let step = |guesses: usize| {
            let pass = pass.optimistic((rows + guesses) as f64).unwrap_or(f64::INFINITY);
            pass.max(drafting)
        };
        let gains = guessed.iter().map(|one| {
            let run = survival.after(one.run);
            let errs = run.at(one.pending) - run.at(one.pending + 2);
            let alive = self.acceptance.survival(&one.guesses);
            alive.into_iter().map(|alive| alive * errs).collect()
        });
        let gains: Vec<Vec<f64>> = gains.collect();
        most_worth(&gains, |n| rate * (step(n) - step(0)), WORTH_VERIFYING * batch as f64)
    }

    /// The sequences whose guesses are expected to be right for longer than a chunk of γ drafts,
    /// which they replace in `sd`: the number of their guesses, and 0 for all others.
    pub fn instead_of_drafts(
        &self,
        guessed: &[Guessed],
        gamma: usize,
        speeds: &Speeds,
    ) -> Vec<usize> {
        let Some(survival) = speeds.survival() else { return vec![0; guessed.len()] };
        let length = |one: &Guessed| {
            let run = survival.after(one.run);
            let drafts: f64 = (1..=gamma).map(|k| run.at(k)).sum();
            let guesses: f64 = self.acceptance.survival(&one.guesses).iter().sum();
            if guesses > drafts { one.guesses.len() } else { 0 }
        };
        guessed.iter().map(length).collect()
    }
}

/// The numbers of guesses of each sequence that maximise expected tokens - `price`(n), where n is
/// their sum. None if the best gain is below `least`.
fn most_worth(survivals: &[Vec<f64>], price: impl Fn(usize) -> f64, least: f64) -> Vec<usize> {
    let sequence = |(i, alive): (usize, &Vec<f64>)| alive.iter().map(move |&s| (i, s)).collect();
    let all = survivals.iter().enumerate().map(sequence);
    let mut all: Vec<(usize, f64)> = all.collect::<Vec<Vec<_>>>().concat();
    all.sort_by(|a, b| b.1.total_cmp(&a.1)); // stable: of one sequence, the earlier guess first
    let (mut tokens, mut best) = (0.0, (least, 0));
    for (n, &(_, alive)) in (1..).zip(&all) {
        tokens += alive;
        let gain = tokens - price(n);
        if gain > best.0 {
            best = (gain, n);
        }
    }
    let mut lengths = vec![0; survivals.len()];
    all[..best.1].iter().for_each(|&(i, _)| lengths[i] += 1);
    lengths
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::planner::speeds::tests::measured;
    use crate::{Purpose, RequestRng};

    fn guess(context: usize, count: usize, total: usize) -> Guess {
        Guess { token: 7, context, count, total }
    }

    /// What is recorded of one kind of guess decides about it, and not about another kind.
    #[test]
    fn acceptance_is_learned_by_context_and_counts() {
        let mut guessing = Guessing::default();
        let (long, short) = (guess(12, 1, 1), guess(1, 1, 3));
        let chance = |guessing: &Guessing, guess| guessing.acceptance.chance(guess);
        assert!(chance(&guessing, &long) > 0.5 && chance(&guessing, &short) < 0.2);
        for _ in 0..400 {
            guessing.record(&[long], &[8]);
            guessing.record(&[short], &[7]);
        }
        assert!(chance(&guessing, &long) < 0.05 && chance(&guessing, &short) > 0.95);
        assert!(chance(&guessing, &guess(12, 2, 2)) > 0.5);
    }

    /// Guesses after a wrong one say nothing about acceptance.
    #[test]
    fn guesses_are_recorded_up_to_the_first_wrong_one() {
        let mut guessing = Guessing::default();
        let guesses = [guess(1, 1, 1), guess(2, 1, 1), guess(3, 1, 1)];
        guessing.record(&guesses, &[7, 9, 7]);
        let seen = |context: usize| guessing.acceptance.by_class[context][2].value();
        assert_eq!((seen(0), seen(1), seen(2)), (Some(1.0), Some(0.0), None));
    }

    /// Rows that make the step no longer are filled if the draft may err; a pass that is already
    /// the longer part of the step is not made longer for guesses that gain little.
    #[test]
    fn guesses_fill_a_pass_that_waits_for_the_draft() {
        const PLAN: StepPlan = StepPlan { mode: Mode::Pearl, gamma: 6, branches: 0 };
        let guessed = |run| Guessed {
            run,
            pending: 0,
            guesses: (0..5).map(|k| guess(8 + k, 1, 1)).collect(),
        };
        let lengths = |acceptance, row, run| {
            let speeds = measured(0.25, 0.5, row, acceptance, 1);
            Guessing::default().beside_pearl(&[guessed(run)], PLAN, &speeds)
        };
        assert_eq!(lengths(0.5, 0.0, 0), [5], "rows are free");
        assert_eq!(lengths(0.5, 0.1, 0), [5], "the draft takes as long");
        assert_eq!(lengths(0.5, 3.0, 0), [0], "a row costs more than a token");
        let none = Guessing::default().beside_pearl(&[guessed(0)], PLAN, &Speeds::default());
        assert_eq!(none, [0], "nothing is measured");
    }

    /// Guesses replace drafts only where they are expected to be right for longer.
    #[test]
    fn a_long_match_replaces_a_weak_draft() {
        let mut guessing = Guessing::default();
        let guesses: Vec<Guess> = (0..4).map(|k| guess(20 + k, 1, 1)).collect();
        (0..50).for_each(|_| guessing.record(&guesses, &[7; 4]));
        let lengths = |guessing: &Guessing, acceptance| {
            let speeds = measured(0.1, 1.0, 0.0, acceptance, 1);
            let one = Guessed { run: 0, pending: 0, guesses: guesses.clone() };
            guessing.instead_of_drafts(&[one], 4, &speeds)
        };
        assert_eq!(lengths(&guessing, 0.5), [4]);
        assert_eq!(lengths(&guessing, 1.0), [0], "the draft is never rejected");
        assert_eq!(lengths(&Guessing::default(), 0.9), [0], "guesses are not known to be right");
    }

    proptest! {
        /// No other numbers of guesses are worth more.
        #[test]
        fn the_most_worth_is_found(
            chances in prop::collection::vec(prop::collection::vec(0.0..1.0_f64, 0..4), 1..4),
            steps in prop::collection::vec(0.0..0.5_f64, 12),
        ) {
            let survivals: Vec<Vec<f64>> = chances
                .iter()
                .map(|all| all.iter().scan(1.0, |s, x| { *s *= x; Some(*s) }).collect())
                .collect();
            let price = |n: usize| steps[..n].iter().sum::<f64>();
            let worth = |lengths: &[usize]| {
                let each = survivals.iter().zip(lengths);
                let tokens = each.map(|(alive, &n)| alive[..n].iter().sum::<f64>()).sum::<f64>();
                tokens - price(lengths.iter().sum())
            };
            let found = worth(&most_worth(&survivals, price, 0.0));
            let mut every = vec![Vec::new()];
            for alive in &survivals {
                every = every
                    .into_iter()
                    .flat_map(|lengths: Vec<usize>| {
                        (0..=alive.len()).map(move |n| [&lengths[..], &[n]].concat())
                    })
                    .collect();
            }
            let best = every.iter().map(|lengths| worth(lengths)).fold(f64::MIN, f64::max);
            prop_assert!((found - best).abs() < 1e-12, "{} {}", found, best);
        }
    }

    /// Tokens per second of a text in which a share of the steps has guesses of ten tokens, each
    /// accepted with probability `chance`. A pass costs 1 + `row` for each further row.
    fn throughput(chance: f64, share: f64, row: f64, fixed: Option<usize>) -> f64 {
        let (mut guessing, mut speeds) = (Guessing::default(), Speeds::default());
        let rng = RequestRng::new(3, 3);
        let (mut tokens, mut seconds, mut position) = (0, 0.0, 0);
        for _ in 0..4000 {
            let mut uniform = |purpose| {
                position += 1;
                rng.uniform(position, purpose)
            };
            let guessed = uniform(Purpose::Draft) < share;
            let guesses: Vec<Guess> =
                (0..if guessed { 10 } else { 0 }).map(|k| guess(8 + k, 1, 1)).collect();
            let length = guessing.plan(&[&guesses], fixed, &speeds)[0];
            let right = (0..guesses.len()).take_while(|_| uniform(Purpose::Accept) < chance);
            let right = right.count();
            // The text: the accepted guesses, and the target's own token.
            let accepted = right.min(length);
            let own = if right > accepted { 7 } else { 8 };
            guessing.record(&guesses, &[vec![7; accepted], vec![own]].concat());
            let cost = 1.0 + row * length as f64;
            speeds.record_target(1, false, 1 + length, cost);
            (tokens, seconds) = (tokens + accepted + 1, seconds + cost);
        }
        tokens as f64 / seconds
    }

    /// Adaptive lengths are as fast as the best fixed length, and never slower than no guesses.
    #[test]
    fn planned_guesses_keep_up_with_the_best_length() {
        for row in [0.0, 0.02, 0.1, 0.3] {
            for (chance, share) in [(0.02, 1.0), (0.3, 1.0), (0.8, 0.3), (0.97, 0.5), (0.97, 1.0)] {
                let speed = |fixed| throughput(chance, share, row, fixed);
                let best = (0..=10).map(|length| speed(Some(length))).fold(0.0, f64::max);
                let relative = speed(None) / best;
                assert!(relative > 0.96, "{chance} {share} {row}: {relative:.3}");
                assert!(speed(None) > 0.97, "{chance} {share} {row}: {}", speed(None));
            }
        }
    }
}
