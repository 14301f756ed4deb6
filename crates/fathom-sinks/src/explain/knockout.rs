//! What happens if later tokens do not see a sink: "Knock-out" (docs/definitions.md).

use std::collections::BTreeMap;
use std::ops::Range;

use fathom_backend::{Backend, KeyMask};
use fathom_model::{Change, Edit, Edits, ModelConfig, Positions, Result, Site};
use serde::{Deserialize, Serialize};

use super::analysis::Analyzer;
use super::batch::EditedPass;
use super::compensation::Hidden;
use super::edited::{Outcome, Passes, SinkChanges};
use super::intervention::Intervention;
use super::keys::KeyPolicy;
use super::parts::{decode, encode};
use super::pass::Observer;
use super::scanned::{Others, ScannedRun, ScannedTrace, Token};
use super::statistics::Mean;
use super::{
    Analysis, AnalysisResult, Compensation, ExplainOptions, ExplainProgress, Inputs, KnockoutBy,
    LevelChange, Receiver, Share, Summary,
};
use crate::Class;

/// The run's traces with chosen keys knocked out, next to a plain pass.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Knockout {
    /// How keys were knocked out.
    pub by: KnockoutBy,
    /// The layers at which they were, ascending.
    pub layers: Vec<usize>,
    /// Each choice of keys, over all traces.
    pub variants: Vec<KnockoutVariant>,
    /// Each choice of keys in each trace, trace by trace.
    pub traces: Vec<TraceKnockout>,
}

/// The keys of a trace that a pass knocks out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "keys", rename_all = "snake_case")]
pub enum KnockedKeys {
    /// The reference, which is BOS unless another candidate was given to the scan.
    Bos,
    /// All primary sinks, and the reference.
    Primary,
    /// All secondary sinks.
    Secondary,
    /// The secondary sinks of one level.
    Level {
        /// First layer.
        l_start: usize,
        /// Number of layers.
        lifetime: usize,
    },
    /// All primary and secondary sinks.
    Both,
    /// As many tokens that are not sinks as there are secondary sinks, of the same ids if possible.
    Random {
        /// 0-based number of the draw.
        draw: usize,
    },
}

/// One choice of keys, over all traces that have such keys.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KnockoutVariant {
    /// The keys.
    #[serde(flatten)]
    pub keys: KnockedKeys,
    /// Traces that have such keys, and tokens after them.
    pub traces: usize,
    /// Keys knocked out.
    pub knocked: usize,
    /// How many of them have the id of a secondary sink of their trace.
    pub of_same_ids: usize,
    /// KL(plain ‖ this) of the next-token distributions in nats, over the positions after the first
    /// knocked-out key.
    pub kl: Option<Summary>,
    /// Mean negative log-likelihood of the traces' tokens there in nats, in the plain pass.
    pub nll_before: f64,
    /// The same, with the keys knocked out.
    pub nll_after: f64,
    /// Positions there at which the most likely next token stays the same.
    pub top1: Share,
    /// Where the attention of the knocked-out keys goes: the mean over those positions.
    pub attention: Compensation,
    /// What became of the secondary sinks, by level.
    pub levels: Vec<LevelChange>,
    /// Secondary sinks that were not sinks before.
    pub appeared: usize,
}

/// One choice of keys in one trace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TraceKnockout {
    /// 0-based number of the trace in the run.
    pub trace: usize,
    /// The trace's own index.
    pub sample_index: u64,
    /// The keys.
    #[serde(flatten)]
    pub keys: KnockedKeys,
    /// Their positions, ascending.
    pub knocked: Vec<usize>,
    /// How many of them have the id of a secondary sink.
    pub of_same_ids: usize,
    /// Positions after the first of them.
    pub positions: usize,
    /// Mean KL there, as in [`KnockoutVariant::kl`].
    pub kl: f64,
    /// As in [`KnockoutVariant::nll_before`].
    pub nll_before: f64,
    /// As in [`KnockoutVariant::nll_after`].
    pub nll_after: f64,
    /// Positions at which the most likely next token stays the same.
    pub top1: usize,
    /// Where the attention of the knocked-out keys goes.
    pub attention: Compensation,
    /// The other tokens that receive the most of it, at most [`Receiver::MOST`].
    pub receivers: Vec<Receiver>,
}

impl AnalysisResult for Knockout {
    const ANALYSIS: Analysis = Analysis::Knockout;
    const HIDES_KEYS: bool = true;
}

/// Maximum number of levels that are knocked out separately.
const LEVELS: usize = 3;

/// Knocks out each choice of keys.
pub(super) struct KnockoutAnalyzer {
    options: ExplainOptions,
    /// Layers of the model.
    layers: usize,
    /// The largest levels as (l_start, lifetime), ascending, if there are several.
    levels: Vec<(usize, usize)>,
    sums: BTreeMap<KnockedKeys, VariantSum>,
    traces: Vec<TraceKnockout>,
}

/// One choice of keys, over the traces so far.
#[derive(Default)]
struct VariantSum {
    traces: usize,
    knocked: usize,
    of_same_ids: usize,
    kl: Vec<f64>,
    nll: [Mean; 2],
    top1: usize,
    attention: Vec<(usize, Compensation)>,
    changes: SinkChanges,
}

/// What one choice of keys in one trace adds.
#[derive(Serialize, Deserialize)]
struct VariantPart {
    trace: TraceKnockout,
    kl: Vec<f64>,
    nll: [Mean; 2],
    changes: SinkChanges,
}

/// Keys of one trace.
struct Chosen {
    keys: KnockedKeys,
    /// Ascending, not empty.
    positions: Vec<usize>,
    of_same_ids: usize,
}

impl Analyzer for KnockoutAnalyzer {
    type Output = Knockout;
    const HELP: &'static str =
        "Hide sinks from later tokens: predictions, perplexity, where the attention goes";

    fn edited_passes(run: &ScannedRun<'_>) -> usize {
        let analyzer = KnockoutAnalyzer::new(run);
        let passes = |trace: &ScannedTrace<'_>| {
            let random =
                if trace.secondary().next().is_some() { run.options.keys.draws } else { 0 };
            analyzer.sinks(trace).len() + random
        };
        run.traces.iter().map(passes).max().unwrap_or(0)
    }

    fn new(run: &ScannedRun<'_>) -> KnockoutAnalyzer {
        KnockoutAnalyzer {
            options: run.options.clone(),
            layers: run.layers,
            levels: largest_levels(&run.traces),
            sums: BTreeMap::new(),
            traces: Vec::new(),
        }
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

    fn finish<B: Backend>(
        self,
        _: &Inputs<'_, B>,
        _: &mut dyn ExplainProgress,
    ) -> Result<Knockout> {
        let layers = self.acted_layers().collect();
        let variants = self.sums.into_iter().map(|(keys, sum)| sum.finish(keys)).collect();
        let by = self.options.keys.knockout_by;
        Ok(Knockout { by, layers, variants, traces: self.traces })
    }
}

impl KnockoutAnalyzer {
    fn acted_layers(&self) -> impl Iterator<Item = usize> {
        (0..self.layers).filter(|layer| self.options.keys.acts_at(*layer))
    }

    /// The choices among a trace's sinks.
    fn sinks(&self, trace: &ScannedTrace<'_>) -> Vec<Chosen> {
        let primary = || trace.detection.of_class(Class::Primary).map(|sink| sink.position);
        let secondary = || trace.secondary().map(|sink| sink.position);
        let of_level = |(l_start, lifetime): &(usize, usize)| {
            let level = (*l_start, *lifetime);
            let sinks = trace.secondary().filter(|sink| (sink.l_start(), sink.lifetime()) == level);
            let keys = KnockedKeys::Level { l_start: *l_start, lifetime: *lifetime };
            (keys, sinks.map(|sink| sink.position).collect())
        };
        let mut choices: Vec<(KnockedKeys, Vec<usize>)> = vec![
            (KnockedKeys::Bos, vec![trace.reference]),
            (KnockedKeys::Primary, primary().chain([trace.reference]).collect()),
            (KnockedKeys::Secondary, secondary().collect()),
        ];
        choices.extend(self.levels.iter().map(of_level));
        if secondary().next().is_some() {
            let both = primary().chain([trace.reference]).chain(secondary()).collect();
            choices.push((KnockedKeys::Both, both));
        }
        let chosen = |(keys, mut positions): (KnockedKeys, Vec<usize>)| {
            positions.sort_unstable();
            positions.dedup();
            // Only keys that a later token could see.
            positions.retain(|position| position + 1 < trace.tokens());
            let of_same_ids = positions.len();
            (!positions.is_empty()).then_some(Chosen { keys, positions, of_same_ids })
        };
        choices.into_iter().filter_map(chosen).collect()
    }

    /// All choices for a trace.
    fn choices(&self, trace: &ScannedTrace<'_>) -> Vec<Chosen> {
        let mut choices = self.sinks(trace);
        let secondary = choices.iter().find(|chosen| chosen.keys == KnockedKeys::Secondary);
        let token = |position: &usize| (trace.number, *position);
        let sinks: Vec<Token> =
            secondary.map_or(Vec::new(), |chosen| chosen.positions.iter().map(token).collect());
        for draw in 0..self.options.keys.draws {
            // Not the seed with which other analyses choose tokens.
            let seed = self.options.seed.wrapping_add(1 + draw as u64);
            let Others { tokens, of_same_ids } =
                Others::of(std::slice::from_ref(trace), &sinks, seed);
            let positions: Vec<usize> = tokens.into_iter().map(|(_, position)| position).collect();
            if positions.first().is_some_and(|first| first + 1 < trace.tokens()) {
                choices.push(Chosen { keys: KnockedKeys::Random { draw }, positions, of_same_ids });
            }
        }
        choices
    }

    /// The pass that knocks out these keys.
    fn pass(&self, positions: &[usize], config: &ModelConfig) -> Result<EditedPass> {
        let mut pass = match self.options.keys.knockout_by {
            KnockoutBy::Hide => {
                let mut mask = KeyMask::default();
                for layer in self.acted_layers() {
                    positions.iter().for_each(|key| mask.hide(layer, *key, key + 1));
                }
                EditedPass::hiding(KeyPolicy::Mask(mask))
            }
            KnockoutBy::Zero => {
                let ranges: Vec<Range<usize>> = positions.iter().map(|p| *p..p + 1).collect();
                let edit = |layer| {
                    Edit::new(Site::V, layer, Positions::These(ranges.clone()), Change::Zero)
                };
                let edits = self.acted_layers().map(edit).collect();
                EditedPass::of(Edits::new(edits, config, None)?)
            }
        };
        pass.attention = true;
        Ok(pass)
    }

    fn part_of(
        &self,
        trace: &ScannedTrace<'_>,
        chosen: Chosen,
        before: &Outcome,
        after: &Outcome,
    ) -> VariantPart {
        let Chosen { keys, positions: knocked, of_same_ids } = chosen;
        let from = knocked[0] + 1;
        let layers: Vec<usize> = self.acted_layers().collect();
        let hidden = Hidden { keys: &knocked, from, layers: &layers };
        let (attention, receivers) = hidden.compensation(trace, before, after);
        let kl = after.kl[from..].to_vec();
        let mut nll = [Mean::default(); 2];
        for (nll, outcome) in nll.iter_mut().zip([before, after]) {
            nll.add(&outcome.nll[from..]);
        }
        let trace_result = TraceKnockout {
            trace: trace.number,
            sample_index: trace.detection.sample_index,
            keys,
            knocked,
            of_same_ids,
            positions: kl.len(),
            kl: kl.iter().sum::<f64>() / kl.len() as f64,
            nll_before: nll[0].get(),
            nll_after: nll[1].get(),
            top1: after.agrees[from..].iter().filter(|agrees| **agrees).count(),
            attention,
            receivers,
        };
        let changes = SinkChanges::of(trace, &after.detection);
        VariantPart { trace: trace_result, kl, nll, changes }
    }
}

impl<B: Backend> Intervention<B> for KnockoutAnalyzer {
    fn name(&self) -> &'static str {
        Analysis::Knockout.name()
    }

    fn settings(&self) -> Result<Vec<u8>> {
        let keys = &self.options.keys;
        encode(&(keys.knockout_by, &keys.knockout_layers, keys.draws))
    }

    fn passes(&self, trace: &ScannedTrace<'_>) -> usize {
        self.choices(trace).len()
    }

    fn edits(&self, trace: &ScannedTrace<'_>, config: &ModelConfig) -> Result<Vec<EditedPass>> {
        let choices = self.choices(trace);
        choices.iter().map(|chosen| self.pass(&chosen.positions, config)).collect()
    }

    fn part(
        &self,
        trace: &ScannedTrace<'_>,
        passes: Passes<'_, B>,
        _: &dyn Fn(&[u32]) -> Option<String>,
    ) -> Result<Vec<u8>> {
        let choices = self.choices(trace).into_iter().zip(passes.edited);
        let part = |(chosen, edited)| self.part_of(trace, chosen, passes.plain, edited);
        encode(&choices.map(part).collect::<Vec<VariantPart>>())
    }

    fn add(&mut self, part: &[u8]) -> bool {
        let Some(variants) = decode::<Vec<VariantPart>>(part) else { return false };
        for part in variants {
            let trace = part.trace.clone();
            self.sums.entry(trace.keys).or_default().add(part);
            self.traces.push(trace);
        }
        true
    }
}

impl VariantSum {
    fn add(&mut self, part: VariantPart) {
        let VariantPart { trace, kl, nll, changes } = part;
        self.changes.merge(changes);
        self.traces += 1;
        self.knocked += trace.knocked.len();
        self.of_same_ids += trace.of_same_ids;
        self.kl.extend(kl);
        self.nll.iter_mut().zip(&nll).for_each(|(mean, more)| mean.merge(more));
        self.top1 += trace.top1;
        self.attention.push((trace.positions, trace.attention));
    }

    fn finish(self, keys: KnockedKeys) -> KnockoutVariant {
        let (levels, appeared) = self.changes.finish();
        let positions = self.kl.len();
        KnockoutVariant {
            keys,
            traces: self.traces,
            knocked: self.knocked,
            of_same_ids: self.of_same_ids,
            top1: Share::of(self.top1, positions),
            attention: Compensation::mean(&self.attention),
            kl: Summary::of(self.kl),
            nll_before: self.nll[0].get(),
            nll_after: self.nll[1].get(),
            levels,
            appeared,
        }
    }
}

/// The levels with the most secondary sinks, ascending; none if there are fewer than two.
fn largest_levels(traces: &[ScannedTrace<'_>]) -> Vec<(usize, usize)> {
    let mut counts: BTreeMap<(usize, usize), usize> = BTreeMap::new();
    for sink in traces.iter().flat_map(ScannedTrace::secondary) {
        *counts.entry((sink.l_start(), sink.lifetime())).or_default() += 1;
    }
    if counts.len() < 2 {
        return Vec::new();
    }
    let mut levels: Vec<_> = counts.into_iter().collect();
    levels.sort_by_key(|(_, count)| std::cmp::Reverse(*count)); // stable: lower levels first
    let mut levels: Vec<_> = levels.into_iter().take(LEVELS).map(|(level, _)| level).collect();
    levels.sort_unstable();
    levels
}
