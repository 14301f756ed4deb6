//! What the model predicts and writes if keys are dropped from the cache: "Eviction"
//! (docs/definitions.md).

use std::collections::{BTreeMap, BTreeSet, HashSet};

use fathom_backend::{Backend, KeyMask};
use fathom_model::{ModelConfig, Result};
use serde::{Deserialize, Serialize};

use super::analysis::Analyzer;
use super::batch::EditedPass;
use super::edited::{Outcome, Passes};
use super::intervention::Intervention;
use super::keys::{CHUNK, KeyPolicy};
use super::parts::{decode, encode};
use super::pass::Observer;
use super::scanned::{ScannedRun, ScannedTrace, shuffle_key};
use super::statistics::Mean;
use super::{Analysis, AnalysisResult, ExplainOptions, ExplainProgress, Inputs, Share, Summary};

/// The run's traces under policies that keep a limited number of keys, next to a plain pass.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evict {
    /// The first keys that are always kept.
    pub first: usize,
    /// Heavy hitters are chosen anew at multiples of this many tokens.
    pub chunk: usize,
    /// Tokens of the texts in which repetition is measured.
    pub written: usize,
    /// Each policy with each budget, over all traces that are longer than the budget.
    pub policies: Vec<Evicted>,
    /// Budgets for which every trace is too short.
    pub skipped: Vec<usize>,
    /// Each policy with each budget in each trace, trace by trace.
    pub traces: Vec<TraceEviction>,
}

/// Which keys are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EvictionPolicy {
    /// The first keys and a window: StreamingLLM (Xiao et al. 2023, arXiv:2309.17453).
    Window,
    /// The first keys, the secondary sinks, and a window.
    Secondary,
    /// The keys that have received the most attention, and a window: H2O (Zhang et al. 2023,
    /// arXiv:2306.14048).
    HeavyHitters,
    /// The first keys, and random ones.
    Random,
}

impl EvictionPolicy {
    /// All policies.
    pub const ALL: [EvictionPolicy; 4] = [
        EvictionPolicy::Window,
        EvictionPolicy::Secondary,
        EvictionPolicy::HeavyHitters,
        EvictionPolicy::Random,
    ];
}

/// One policy with one budget, over several traces.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evicted {
    /// The policy.
    pub policy: EvictionPolicy,
    /// Maximum number of keys that a query sees.
    pub budget: usize,
    /// Traces that are longer.
    pub traces: usize,
    /// KL(plain ‖ this) of the next-token distributions in nats, over the positions from the first
    /// on that does not see all keys.
    pub kl: Option<Summary>,
    /// Mean negative log-likelihood of the traces' tokens there in nats, in the plain pass.
    pub nll_before: f64,
    /// The same, under the policy.
    pub nll_after: f64,
    /// Positions there at which the most likely next token stays the same.
    pub top1: Share,
    /// Mean repetition of the texts that the model writes in the plain pass; absent if no trace is
    /// long enough to write after its first half.
    pub repetition_before: Option<f64>,
    /// The same, under the policy.
    pub repetition_after: Option<f64>,
}

/// One policy with one budget in one trace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TraceEviction {
    /// 0-based number of the trace in the run.
    pub trace: usize,
    /// The trace's own index.
    pub sample_index: u64,
    /// The policy.
    pub policy: EvictionPolicy,
    /// Its budget.
    pub budget: usize,
    /// Positions from the first on that does not see all keys.
    pub positions: usize,
    /// Mean KL there, as in [`Evicted::kl`].
    pub kl: f64,
    /// As in [`Evicted::nll_before`].
    pub nll_before: f64,
    /// As in [`Evicted::nll_after`].
    pub nll_after: f64,
    /// Positions at which the most likely next token stays the same.
    pub top1: usize,
    /// Repetition of the text written in the plain pass: the share of its 4-grams that occur
    /// earlier in it. Absent if the budget reaches to the middle of the trace, where it begins.
    pub repetition_before: Option<f64>,
    /// The same, under the policy.
    pub repetition_after: Option<f64>,
}

impl AnalysisResult for Evict {
    const ANALYSIS: Analysis = Analysis::Evict;
    const HIDES_KEYS: bool = true;
}

/// The first keys that [`EvictionPolicy::Window`], `Secondary` and `Random` always keep.
const FIRST: usize = 4;
/// Tokens that are written to measure repetition.
const WRITTEN: usize = 64;
/// Length of the n-grams that repetition counts.
const NGRAM: usize = 4;

/// Runs the traces under each policy with each budget.
pub(super) struct EvictAnalyzer {
    options: ExplainOptions,
    /// Layers of the model.
    layers: usize,
    budgets: Vec<usize>,
    skipped: Vec<usize>,
    sums: BTreeMap<(EvictionPolicy, usize), PolicySum>,
    traces: Vec<TraceEviction>,
}

/// One policy with one budget, over the traces so far.
#[derive(Default)]
struct PolicySum {
    traces: usize,
    kl: Vec<f64>,
    nll: [Mean; 2],
    top1: usize,
    repetition: Option<[Mean; 2]>,
}

/// What one policy with one budget in one trace adds.
#[derive(Serialize, Deserialize)]
struct PolicyPart {
    trace: TraceEviction,
    kl: Vec<f64>,
    nll: [Mean; 2],
}

impl Analyzer for EvictAnalyzer {
    type Output = Evict;
    const HELP: &'static str =
        "Drop keys from the cache by StreamingLLM, H2O and other policies: predictions, repetition";
    /// Up to 17 caches and passes per trace.
    const BY_DEFAULT: bool = false;
    const EXTRA_TOKENS: Option<&'static str> =
        Some("half of each trace and 64 written tokens once more per policy and budget");

    fn edited_passes(run: &ScannedRun<'_>) -> usize {
        let budgets = run.options.keys.budgets();
        let longest = run.traces.iter().map(ScannedTrace::tokens).max().unwrap_or(0);
        EvictionPolicy::ALL.len() * budgets.iter().filter(|budget| **budget < longest).count()
    }

    fn from_scan(run: &ScannedRun<'_>) -> Option<Evict> {
        match EvictAnalyzer::edited_passes(run) {
            0 => Some(EvictAnalyzer::new(run).evict()),
            _ => None,
        }
    }

    fn new(run: &ScannedRun<'_>) -> EvictAnalyzer {
        let budgets: BTreeSet<usize> = run.options.keys.budgets().into_iter().collect();
        let longest = run.traces.iter().map(ScannedTrace::tokens).max().unwrap_or(0);
        let (budgets, skipped) = budgets.into_iter().partition(|budget| *budget < longest);
        let options = run.options.clone();
        let (layers, sums, traces) = (run.layers, BTreeMap::new(), Vec::new());
        EvictAnalyzer { options, layers, budgets, skipped, sums, traces }
    }

    fn observers<B: Backend>(&mut self) -> Vec<&mut dyn Observer<B>> {
        Vec::new()
    }

    fn interventions<B: Backend>(
        &mut self,
        _: &Inputs<'_, B>,
    ) -> Result<Vec<&mut dyn Intervention<B>>> {
        Ok(vec![self])
    }

    fn finish<B: Backend>(self, _: &Inputs<'_, B>, _: &mut dyn ExplainProgress) -> Result<Evict> {
        Ok(self.evict())
    }
}

impl EvictAnalyzer {
    fn evict(self) -> Evict {
        let policies = self.sums.into_iter();
        Evict {
            first: FIRST,
            chunk: CHUNK,
            written: WRITTEN,
            policies: policies.map(|((policy, budget), sum)| sum.finish(policy, budget)).collect(),
            skipped: self.skipped,
            traces: self.traces,
        }
    }

    /// The policies and budgets that drop keys of a trace.
    fn choices(&self, trace: &ScannedTrace<'_>) -> Vec<(EvictionPolicy, usize)> {
        let budgets = self.budgets.iter().filter(|budget| **budget < trace.tokens());
        budgets.flat_map(|budget| EvictionPolicy::ALL.map(|policy| (policy, *budget))).collect()
    }

    /// What a policy with a budget hides in a trace, and in what is written after it.
    fn policy(&self, trace: &ScannedTrace<'_>, policy: EvictionPolicy, budget: usize) -> KeyPolicy {
        let tokens = trace.ids.len() + WRITTEN;
        let until = match policy {
            EvictionPolicy::Window => window(tokens, budget, &BTreeSet::new()),
            EvictionPolicy::Secondary => window(tokens, budget, &lasting(trace, budget)),
            EvictionPolicy::HeavyHitters => return KeyPolicy::HeavyHitters { budget },
            EvictionPolicy::Random => {
                random(tokens, budget, &|key| shuffle_key(self.options.seed, (trace.number, key)))
            }
        };
        KeyPolicy::Mask(KeyMask::new(vec![until; self.layers]))
    }
}

/// Until when each of `tokens` keys is visible if queries see the first keys, the keys `kept` and a
/// window, at most `budget` keys together.
fn window(tokens: usize, budget: usize, kept: &BTreeSet<usize>) -> Vec<usize> {
    let window = budget - FIRST - kept.len();
    let until = |key: usize| match key < FIRST || kept.contains(&key) {
        true => KeyMask::NEVER,
        false => key + window,
    };
    (0..tokens).map(until).collect()
}

/// The secondary sinks that a budget keeps: those of the longest lifetime, at most half of what the
/// first keys leave.
fn lasting(trace: &ScannedTrace<'_>, budget: usize) -> BTreeSet<usize> {
    let mut sinks: Vec<_> = trace.secondary().filter(|sink| sink.position >= FIRST).collect();
    sinks.sort_by_key(|sink| std::cmp::Reverse(sink.lifetime())); // stable: earlier ones first
    sinks.iter().take((budget - FIRST) / 2).map(|sink| sink.position).collect()
}

/// Until when each of `tokens` keys is visible if a random one after the first is dropped whenever
/// there are more than `budget`: of any set of keys, the ones with the least `hash` are dropped.
fn random(tokens: usize, budget: usize, hash: &dyn Fn(usize) -> u64) -> Vec<usize> {
    let mut until = vec![KeyMask::NEVER; tokens];
    let mut kept = BTreeSet::new();
    for key in FIRST..tokens {
        // The query at `key` sees its own key too.
        if FIRST + kept.len() + 1 > budget
            && let Some((_, dropped)) = kept.pop_first()
        {
            until[dropped] = key;
        }
        kept.insert((hash(key), key));
    }
    until
}

/// The share of a text's 4-grams that occur earlier in it.
fn repetition(ids: &[u32]) -> f64 {
    let ngrams = ids.windows(NGRAM);
    let (all, distinct) = (ngrams.len(), ngrams.collect::<HashSet<_>>().len());
    (all - distinct) as f64 / all.max(1) as f64
}

impl<B: Backend> Intervention<B> for EvictAnalyzer {
    fn name(&self) -> &'static str {
        Analysis::Evict.name()
    }

    fn settings(&self) -> Result<Vec<u8>> {
        encode(&self.budgets)
    }

    fn passes(&self, trace: &ScannedTrace<'_>) -> usize {
        self.choices(trace).len()
    }

    fn edits(&self, trace: &ScannedTrace<'_>, _: &ModelConfig) -> Result<Vec<EditedPass>> {
        let choices = self.choices(trace).into_iter();
        let pass = |(policy, budget)| EditedPass::hiding(self.policy(trace, policy, budget));
        Ok(choices.map(pass).collect())
    }

    fn part(
        &self,
        trace: &ScannedTrace<'_>,
        passes: Passes<'_, B>,
        _: &dyn Fn(&[u32]) -> Option<String>,
    ) -> Result<Vec<u8>> {
        let choices = self.choices(trace);
        let middle = trace.ids.len() / 2;
        let writes = |pass: &usize| choices[*pass].1 < middle;
        let writing: Vec<usize> = (0..choices.len()).filter(writes).collect();
        let repetitions: Vec<f64> = match writing.is_empty() {
            true => Vec::new(),
            false => {
                let written = passes.write_anew(middle, WRITTEN, &writing)?;
                written.iter().map(|ids| repetition(ids)).collect()
            }
        };
        let part = |(pass, (policy, budget)): (usize, &(EvictionPolicy, usize))| {
            let place = writing.iter().position(|other| *other == pass);
            let repetition = place.map(|place| [repetitions[0], repetitions[1 + place]]);
            let (before, after) = (passes.plain, &passes.edited[pass]);
            PolicyPart::of(trace, (*policy, *budget), before, after, repetition)
        };
        encode(&choices.iter().enumerate().map(part).collect::<Vec<PolicyPart>>())
    }

    fn add(&mut self, part: &[u8]) -> bool {
        let Some(policies) = decode::<Vec<PolicyPart>>(part) else { return false };
        for PolicyPart { trace, kl, nll } in policies {
            self.sums.entry((trace.policy, trace.budget)).or_default().add(&trace, kl, &nll);
            self.traces.push(trace);
        }
        true
    }
}

impl PolicyPart {
    fn of(
        trace: &ScannedTrace<'_>,
        (policy, budget): (EvictionPolicy, usize),
        before: &Outcome,
        after: &Outcome,
        repetition: Option<[f64; 2]>,
    ) -> PolicyPart {
        let from = after.mask.first_query().min(trace.ids.len());
        let kl = after.kl[from..].to_vec();
        let mut nll = [Mean::default(); 2];
        for (nll, outcome) in nll.iter_mut().zip([before, after]) {
            nll.add(outcome.nll.get(from..).unwrap_or_default());
        }
        let trace = TraceEviction {
            trace: trace.number,
            sample_index: trace.detection.sample_index,
            policy,
            budget,
            positions: kl.len(),
            kl: kl.iter().sum::<f64>() / kl.len().max(1) as f64,
            nll_before: nll[0].get(),
            nll_after: nll[1].get(),
            top1: after.agrees[from..].iter().filter(|agrees| **agrees).count(),
            repetition_before: repetition.map(|[before, _]| before),
            repetition_after: repetition.map(|[_, after]| after),
        };
        PolicyPart { trace, kl, nll }
    }
}

impl PolicySum {
    fn add(&mut self, trace: &TraceEviction, kl: Vec<f64>, nll: &[Mean; 2]) {
        self.traces += 1;
        self.kl.extend(kl);
        self.nll.iter_mut().zip(nll).for_each(|(mean, more)| mean.merge(more));
        self.top1 += trace.top1;
        if let Some(repetition) = trace.repetition_before.zip(trace.repetition_after) {
            let [before, after] = self.repetition.get_or_insert_default();
            before.add(&[repetition.0]);
            after.add(&[repetition.1]);
        }
    }

    fn finish(self, policy: EvictionPolicy, budget: usize) -> Evicted {
        let [repetition_before, repetition_after] =
            [0, 1].map(|i| self.repetition.map(|means| means[i].get()));
        Evicted {
            policy,
            budget,
            traces: self.traces,
            top1: Share::of(self.top1, self.kl.len()),
            kl: Summary::of(self.kl),
            nll_before: self.nll[0].get(),
            nll_after: self.nll[1].get(),
            repetition_before,
            repetition_after,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The keys that the query at `position` sees.
    fn seen(until: &[usize], position: usize) -> Vec<usize> {
        (0..=position).filter(|key| *key == position || position < until[*key]).collect()
    }

    #[test]
    fn a_window_sees_the_first_keys_and_the_last() {
        let until = window(40, 9, &BTreeSet::new());
        assert_eq!(seen(&until, 8), (0..9).collect::<Vec<_>>());
        assert_eq!(seen(&until, 9), [0, 1, 2, 3, 5, 6, 7, 8, 9]);
        assert_eq!(seen(&until, 30), [0, 1, 2, 3, 26, 27, 28, 29, 30]);
        let until = window(40, 9, &BTreeSet::from([6, 20]));
        assert_eq!(seen(&until, 30), [0, 1, 2, 3, 6, 20, 28, 29, 30]);
    }

    #[test]
    fn random_eviction_keeps_the_budget_and_never_takes_a_key_back() {
        let until = random(200, 20, &|key| (key as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        for position in 0..200 {
            let seen = seen(&until, position);
            assert_eq!(seen.len(), 20.min(position + 1), "{position}");
            assert!(seen.iter().take(FIRST).copied().eq(0..FIRST.min(position + 1)));
        }
        let last = seen(&until, 199);
        assert!(last.iter().any(|key| (FIRST..100).contains(key)), "not a window: {last:?}");
    }

    #[test]
    fn repetition_counts_ngrams_that_occurred_before() {
        assert_eq!(repetition(&[1, 2, 3, 4, 5, 6, 7]), 0.0);
        assert_eq!(repetition(&[7; 7]), 0.75);
        assert_eq!(repetition(&[1, 2, 3, 4, 1, 2, 3, 4]), 0.2);
        assert_eq!(repetition(&[1, 2]), 0.0);
    }
}
