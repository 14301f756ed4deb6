//! Where in an MLP a token turns into a sink: "MLP stages" (docs/definitions.md), paper Fig. 3
//! right.

use std::collections::BTreeMap;

use fathom_backend::Backend;
use fathom_model::{Result, Site};
use serde::{Deserialize, Serialize};

use super::analysis::Analyzer;
use super::parts::{decode, encode};
use super::pass::{Observer, Rows};
use super::scanned::{ScannedRun, ScannedTrace, sample};
use super::{Analysis, AnalysisResult, ExplainOptions, ExplainProgress, Inputs, SinkNote, Summary};
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
    /// The sink's `mlp_out` against the reference's `resid_post`, which has the sink direction even
    /// in layers whose MLP does not write it for the reference.
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

/// Cosines with the reference at every stage, for each sink at its l_start and the layers next to
/// it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stages {
    /// Primary and secondary sinks, at most [`super::ExplainOptions::max_sinks`]. The summaries are
    /// over all of them.
    pub sinks: Vec<SinkStages>,
    /// By l_start, layer, stage.
    pub summaries: Vec<StageSummary>,
}

/// One sink's cosines.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SinkStages {
    /// The sink.
    #[serde(flatten)]
    pub sink: SinkNote,
    /// l_start - 1, l_start and l_start + 1, except layers that the model does not have.
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
    /// The layer of the cosines.
    pub layer: usize,
    /// The stage.
    pub stage: Stage,
    /// Their cosines.
    pub cosine: Summary,
}

impl AnalysisResult for Stages {
    const ANALYSIS: Analysis = Analysis::Stages;
}

/// Compares every sink with its trace's reference.
pub(super) struct StagesAnalyzer {
    options: ExplainOptions,
    layers: usize,
    current: CurrentTrace,
    sinks: Vec<SinkStages>,
}

/// The trace that is being run.
#[derive(Default)]
struct CurrentTrace {
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

impl Analyzer for StagesAnalyzer {
    type Output = Stages;
    const HELP: &'static str =
        "Cosines with the reference at every MLP stage, at l_start and the layers next to it";

    fn new(run: &ScannedRun<'_>) -> StagesAnalyzer {
        let (options, layers) = (run.options.clone(), run.layers);
        StagesAnalyzer { options, layers, current: CurrentTrace::default(), sinks: Vec::new() }
    }

    fn observers<B: Backend>(&mut self) -> Vec<&mut dyn Observer<B>> {
        vec![self]
    }

    fn finish<B: Backend>(self, _: &Inputs<'_, B>, _: &mut dyn ExplainProgress) -> Result<Stages> {
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
        let listed = sample(tokens, self.options.max_sinks, self.options.seed);
        let mut sinks = self.sinks;
        sinks.retain(|sink| listed.binary_search(&token(&sink.sink)).is_ok());
        Ok(Stages { sinks, summaries: values.into_iter().filter_map(summary).collect() })
    }
}

impl<B: Backend> Observer<B> for StagesAnalyzer {
    fn name(&self) -> &'static str {
        Analysis::Stages.name()
    }

    fn begin(&mut self, trace: &ScannedTrace<'_>) {
        self.current = CurrentTrace { reference: trace.reference, ..CurrentTrace::default() };
        let sinks = trace.detection.sinks.iter();
        let compared =
            sinks.filter(|sink| sink.class != Class::Noise && sink.position != trace.reference);
        self.current.sinks = compared
            .map(|sink| {
                let l_start = sink.l_start();
                let layers = l_start.saturating_sub(1)..(l_start + 2).min(self.layers);
                let layers = layers.map(|layer| LayerStages { layer, cosines: [0.0; 7] });
                SinkStages { sink: trace.note(sink), layers: layers.collect() }
            })
            .collect();
    }

    fn wants(&self, site: Site, layer: usize) -> bool {
        let stage = Stage::of(site).is_some() || site == Site::ResidPost;
        let compared = |sink: &SinkStages| sink.layers.iter().any(|place| place.layer == layer);
        stage && self.current.sinks.iter().any(compared)
    }

    fn read(&mut self, site: Site, layer: usize, rows: &Rows<'_>) {
        let CurrentTrace { reference, sinks, references, pending } = &mut self.current;
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
        encode(&self.current.sinks)
    }

    fn add(&mut self, part: &[u8]) -> bool {
        let sinks: Option<Vec<SinkStages>> = decode(part);
        sinks.map(|sinks| self.sinks.extend(sinks)).is_some()
    }
}
