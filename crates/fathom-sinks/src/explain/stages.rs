//! Where in an MLP a token turns into a sink (definition 2.5, paper Fig. 3 right).

use std::collections::BTreeMap;

use fathom_backend::Backend;
use fathom_model::{Result, Site};
use serde::{Deserialize, Serialize};

use super::parts::{Learner, decode, encode};
use super::pass::{Observer, Rows};
use super::subjects::{Subject, sample};
use super::{Analysis, AnalysisResult, ExplainOptions, SinkNote, Summary};
use crate::Class;
use crate::vector::cosine_of;

/// A stage of an MLP at which a sink is compared with the reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Normed input.
    MlpIn,
    /// Gate.
    MlpGate,
    /// Up.
    MlpUp,
    /// silu(gate).
    MlpAct,
    /// silu(gate) · up.
    MlpElementwise,
    /// Down: what is added to the residual stream.
    MlpOut,
    /// The sink's `mlp_out` against the reference's `resid_post`, which is the sink direction
    /// whatever the layer's MLP makes of the reference itself.
    MlpOutToState,
}

impl Stage {
    /// All stages, in the order of the pass.
    pub const ALL: [Stage; 7] = [
        Stage::MlpIn,
        Stage::MlpGate,
        Stage::MlpUp,
        Stage::MlpAct,
        Stage::MlpElementwise,
        Stage::MlpOut,
        Stage::MlpOutToState,
    ];
}

/// Cosines with the reference at every stage, for each sink at its l_start and the layers beside
/// it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stages {
    /// Sinks, noise left out; at most [`super::ExplainOptions::max_sinks`], while the summaries are
    /// over all.
    pub sinks: Vec<SinkStages>,
    /// Over all sinks of an l_start, by l_start, layer, stage.
    pub summaries: Vec<StageSummary>,
}

/// One sink's cosines.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SinkStages {
    /// The sink.
    #[serde(flatten)]
    pub sink: SinkNote,
    /// l_start - 1, l_start and l_start + 1, those there are.
    pub layers: Vec<LayerStages>,
}

/// One layer's cosines.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerStages {
    /// The layer.
    pub layer: usize,
    /// In the order of [`Stage::ALL`].
    pub cosines: [f32; 7],
}

/// The cosines of all sinks of one l_start at one stage of one layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageSummary {
    /// First layer of the sinks.
    pub l_start: usize,
    /// The layer looked at.
    pub layer: usize,
    /// The stage.
    pub stage: Stage,
    /// Their cosines.
    pub cosine: Summary,
}

impl AnalysisResult for Stages {
    const ANALYSIS: Analysis = Analysis::Stages;
}

/// Compares every sink with its trace's reference as they pass.
pub(super) struct StagesObserver {
    max_sinks: usize,
    seed: u64,
    layers: usize,
    trace: Trace,
    sinks: Vec<SinkStages>,
}

/// What is known of the trace that is passing.
#[derive(Default)]
struct Trace {
    reference: usize,
    /// By position.
    sinks: Vec<SinkStages>,
    /// The reference's rows.
    references: BTreeMap<(Site, usize), Vec<f32>>,
    /// `mlp_out` of sinks by (layer, position), until the reference's state of that layer is known.
    pending: Vec<(usize, usize, Vec<f32>)>,
}

impl Stage {
    fn of(site: Site) -> Option<Stage> {
        match site {
            Site::MlpIn => Some(Stage::MlpIn),
            Site::MlpGate => Some(Stage::MlpGate),
            Site::MlpUp => Some(Stage::MlpUp),
            Site::MlpAct => Some(Stage::MlpAct),
            Site::MlpElementwise => Some(Stage::MlpElementwise),
            Site::MlpOut => Some(Stage::MlpOut),
            _ => None,
        }
    }
}

impl StagesObserver {
    pub fn new(layers: usize, options: ExplainOptions) -> StagesObserver {
        let ExplainOptions { seed, max_sinks } = options;
        StagesObserver { max_sinks, seed, layers, trace: Trace::default(), sinks: Vec::new() }
    }

    pub fn finish(self) -> Stages {
        let mut values: BTreeMap<(usize, usize, Stage), Vec<f64>> = BTreeMap::new();
        for SinkStages { sink, layers } in &self.sinks {
            for LayerStages { layer, cosines } in layers {
                for (stage, cosine) in Stage::ALL.into_iter().zip(cosines) {
                    let place = (sink.l_start, *layer, stage);
                    values.entry(place).or_default().push(f64::from(*cosine));
                }
            }
        }
        let summary = |((l_start, layer, stage), values)| {
            let cosine = Summary::of(values)?;
            Some(StageSummary { l_start, layer, stage, cosine })
        };
        let token = |sink: &SinkNote| (sink.trace, sink.position);
        let tokens = self.sinks.iter().map(|sink| token(&sink.sink));
        let listed = sample(tokens, self.max_sinks, self.seed);
        let mut sinks = self.sinks;
        sinks.retain(|sink| listed.binary_search(&token(&sink.sink)).is_ok());
        Stages { sinks, summaries: values.into_iter().filter_map(summary).collect() }
    }
}

impl<B: Backend> Observer<B> for StagesObserver {
    fn learner(&self) -> Learner {
        Learner::For(Analysis::Stages)
    }

    fn begin(&mut self, subject: &Subject<'_>) {
        self.trace = Trace { reference: subject.reference, ..Trace::default() };
        let sinks = subject.detection.sinks.iter();
        let looked_at =
            sinks.filter(|sink| sink.class != Class::Noise && sink.position != subject.reference);
        self.trace.sinks = looked_at
            .map(|sink| {
                let l_start = sink.l_start();
                let layers = l_start.saturating_sub(1)..(l_start + 2).min(self.layers);
                let layers = layers.map(|layer| LayerStages { layer, cosines: [0.0; 7] });
                SinkStages { sink: subject.note(sink), layers: layers.collect() }
            })
            .collect();
    }

    fn wants(&self, site: Site, layer: usize) -> bool {
        let stage = Stage::of(site).is_some() || site == Site::ResidPost;
        let looked_at = |sink: &SinkStages| sink.layers.iter().any(|place| place.layer == layer);
        stage && self.trace.sinks.iter().any(looked_at)
    }

    fn read(&mut self, site: Site, layer: usize, rows: &Rows<'_>) {
        let Trace { reference, sinks, references, pending } = &mut self.trace;
        if let Some(row) = rows.get(*reference) {
            references.insert((site, layer), row.to_vec());
        }
        let Some(reference) = references.get(&(site, layer)) else { return };
        for sink in sinks.iter_mut() {
            let position = sink.sink.position;
            let Some(place) = sink.layers.iter_mut().find(|place| place.layer == layer) else {
                continue;
            };
            if let (Some(stage), Some(row)) = (Stage::of(site), rows.get(position)) {
                place.cosines[stage as usize] = cosine_of(row, reference);
                if stage == Stage::MlpOut {
                    pending.push((layer, position, row.to_vec()));
                }
            }
            if site == Site::ResidPost {
                let waiting = pending.iter().find(|(l, t, _)| (*l, *t) == (layer, position));
                if let Some((_, _, row)) = waiting {
                    place.cosines[Stage::MlpOutToState as usize] = cosine_of(row, reference);
                }
            }
        }
        if site == Site::ResidPost {
            pending.retain(|(l, ..)| *l != layer);
        }
    }

    fn part(&mut self) -> Result<Vec<u8>> {
        encode(&self.trace.sinks)
    }

    fn add(&mut self, part: &[u8]) -> bool {
        let sinks: Option<Vec<SinkStages>> = decode(part);
        sinks.map(|sinks| self.sinks.extend(sinks)).is_some()
    }
}
