//! Which MLP neurons create sinks, and which attention heads attend to them: "Suppression"
//! (docs/definitions.md).

use std::collections::BTreeSet;

use fathom_backend::{Backend, DType, WeightView};
use fathom_model::{Change, Checkpoint, Edit, Edits, ModelConfig, Positions, Result, Site};
use half::{bf16, f16};
use serde::{Deserialize, Serialize};

use super::analysis::Analyzer;
use super::batch::EditedPass;
use super::creation::{CreationLayer, CreationObserver};
use super::edited::{Outcome, Passes, SinkChanges};
use super::intervention::Intervention;
use super::parts::{decode, encode};
use super::pass::{Observer, Rows};
use super::scanned::{ScannedRun, ScannedTrace, creation_layers};
use super::statistics::Mean;
use super::{Analysis, AnalysisResult, ExplainProgress, Inputs, LevelChange};

/// Neurons that write the sink direction, heads that read it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Neurons {
    /// The layers that create the most secondary sinks.
    pub layers: Vec<LayerNeurons>,
    /// Heads by the attention they give to secondary sinks, descending; the first 64.
    pub heads: Vec<HeadReading>,
}

/// The MLP of one creation layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerNeurons {
    /// The layer, l_start of the sinks.
    pub layer: usize,
    /// Secondary sinks created there.
    pub sinks: usize,
    /// Mean of mlp_out · u over the sampled ones, where u is the sink direction.
    pub projection: f64,
    /// Neurons by contribution, descending; the first 32.
    pub neurons: Vec<Neuron>,
    /// The effects of zeroing the strongest of them.
    pub ablation: Ablation,
}

/// One column of the down projection.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Neuron {
    /// Its index in the MLP.
    pub index: usize,
    /// Mean activation (`mlp_elementwise`) over the sinks.
    pub activation: f64,
    /// Its column of the down projection · u.
    pub weight: f64,
    /// activation · weight.
    pub contribution: f64,
    /// contribution / projection.
    pub share: f64,
}

/// The effects of zeroing neurons.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ablation {
    /// The zeroed neurons. For each sampled sink the fewest neurons that make up 90 % of its
    /// projection are chosen; these are the chosen ones with the largest contributions, at most 32.
    pub neurons: Vec<usize>,
    /// Their share of the projection.
    pub share: f64,
    /// What became of the secondary sinks, by level.
    pub levels: Vec<LevelChange>,
    /// Secondary sinks that were not sinks before.
    pub appeared: usize,
    /// Perplexity of the traces' tokens, before.
    pub perplexity_before: f64,
    /// The same, after.
    pub perplexity_after: f64,
}

/// How much one head attends to secondary sinks.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeadReading {
    /// The layer.
    pub layer: usize,
    /// The head.
    pub head: usize,
    /// Its mean sink score over secondary sinks alive at the layer.
    pub sinks: f64,
    /// Its mean sink score over tokens that are not sinks.
    pub others: f64,
    /// Its mean sink score over the traces' references.
    pub reference: f64,
}

impl AnalysisResult for Neurons {
    const ANALYSIS: Analysis = Analysis::Neurons;
}

/// Maximum number of neurons that are listed or ablated, and of heads that are listed.
const LISTED_NEURONS: usize = 32;
const LISTED_HEADS: usize = 64;
/// Share of each sink's projection that is ablated.
const ABLATED_SHARE: f64 = 0.9;

/// Ranks the neurons of each creation layer and ablates the strongest; measures the heads.
pub(super) struct NeuronsAnalyzer {
    creation: CreationObserver,
    heads: HeadObserver,
    /// Filled when the plain passes are done.
    layers: Vec<RankedLayer>,
}

impl Analyzer for NeuronsAnalyzer {
    type Output = Neurons;
    const HELP: &'static str =
        "MLP neurons that write the sink direction, heads that read it, and ablation";
    const SHARED_PARTS: &'static [&'static str] = &[CreationObserver::NAME, HeadObserver::NAME];

    fn edited_passes(run: &ScannedRun<'_>) -> usize {
        creation_layers(&run.traces).len()
    }

    fn new(run: &ScannedRun<'_>) -> NeuronsAnalyzer {
        let (creation, heads) = (CreationObserver::new(run), HeadObserver::new(run));
        NeuronsAnalyzer { creation, heads, layers: Vec::new() }
    }

    fn observers<B: Backend>(&mut self) -> Vec<&mut dyn Observer<B>> {
        vec![&mut self.creation, &mut self.heads]
    }

    fn interventions<B: Backend>(
        &mut self,
        inputs: &Inputs<'_, B>,
    ) -> Result<Vec<&mut dyn Intervention<B>>> {
        let layers = self.creation.layers().iter();
        self.layers = layers
            .map(|layer| RankedLayer::new(layer, inputs.checkpoint, inputs.model.config()))
            .collect::<Result<_>>()?;
        Ok(vec![self])
    }

    fn finish<B: Backend>(self, _: &Inputs<'_, B>, _: &mut dyn ExplainProgress) -> Result<Neurons> {
        let layers = self.layers.into_iter().map(RankedLayer::finish).collect();
        Ok(Neurons { layers, heads: self.heads.finish() })
    }
}

impl<B: Backend> Intervention<B> for NeuronsAnalyzer {
    fn name(&self) -> &'static str {
        Analysis::Neurons.name()
    }

    fn settings(&self) -> Result<Vec<u8>> {
        let settings = |layer: &RankedLayer| (layer.layer, layer.ablated.clone());
        encode(&self.layers.iter().map(settings).collect::<Vec<_>>())
    }

    fn passes(&self, _: &ScannedTrace<'_>) -> usize {
        self.layers.len()
    }

    fn edits(&self, _: &ScannedTrace<'_>, config: &ModelConfig) -> Result<Vec<EditedPass>> {
        self.layers.iter().map(|layer| layer.edits(config).map(EditedPass::of)).collect()
    }

    fn part(
        &self,
        trace: &ScannedTrace<'_>,
        passes: Passes<'_, B>,
        _: &dyn Fn(&[u32]) -> Option<String>,
    ) -> Result<Vec<u8>> {
        let parts =
            passes.edited.iter().map(|edited| AblatedTrace::of(trace, passes.plain, edited));
        encode(&parts.collect::<Vec<_>>())
    }

    fn add(&mut self, part: &[u8]) -> bool {
        let Some(layers) = decode::<Vec<AblatedTrace>>(part) else { return false };
        if layers.len() != self.layers.len() {
            return false;
        }
        self.layers.iter_mut().zip(layers).for_each(|(layer, trace)| layer.add(trace));
        true
    }
}

/// The neurons of a creation layer, and the effects of ablating the strongest on the traces so far.
struct RankedLayer {
    layer: usize,
    sinks: usize,
    projection: f64,
    /// Descending by contribution.
    neurons: Vec<Neuron>,
    /// Ascending.
    ablated: Vec<usize>,
    sum: AblatedTrace,
}

/// What ablating one layer's neurons did to one trace, or to several.
#[derive(Default, Serialize, Deserialize)]
struct AblatedTrace {
    changes: SinkChanges,
    nll: [Mean; 2],
}

impl AblatedTrace {
    fn of(trace: &ScannedTrace<'_>, before: &Outcome, after: &Outcome) -> AblatedTrace {
        let mut nll = [Mean::default(); 2];
        nll[0].add(&before.nll);
        nll[1].add(&after.nll);
        AblatedTrace { changes: SinkChanges::of(trace, &after.detection), nll }
    }
}

impl RankedLayer {
    /// Ranks the neurons of a layer by what they write along the sink direction.
    ///
    /// # Errors
    /// A down projection that cannot be read.
    fn new(
        creation: &CreationLayer,
        checkpoint: &Checkpoint,
        config: &ModelConfig,
    ) -> Result<RankedLayer> {
        let ModelConfig { hidden, intermediate, .. } = *config;
        let name = format!("model.layers.{}.mlp.down_proj.weight", creation.layer);
        let down = checkpoint.matrix(&name, hidden, intermediate)?;
        let weights = column_dots(down.view(), &creation.direction()); // Wᵀ u, [intermediate]

        let sinks = creation.activations.len().max(1) as f64;
        let neuron = |index: usize| {
            let sum: f64 = creation.activations.iter().map(|row| f64::from(row[index])).sum();
            let (activation, weight) = (sum / sinks, f64::from(weights[index]));
            Neuron { index, activation, weight, contribution: activation * weight, share: 0.0 }
        };
        let mut neurons: Vec<Neuron> = (0..intermediate).map(neuron).collect();
        let projection: f64 = neurons.iter().map(|neuron| neuron.contribution).sum();
        neurons.iter_mut().for_each(|neuron| neuron.share = neuron.contribution / projection);
        neurons.sort_by(|a, b| b.contribution.total_cmp(&a.contribution));

        let needed: BTreeSet<usize> =
            creation.activations.iter().flat_map(|row| needed(row, &weights)).collect();
        let strongest = neurons.iter().filter(|neuron| needed.contains(&neuron.index));
        let mut ablated: Vec<usize> =
            strongest.take(LISTED_NEURONS).map(|neuron| neuron.index).collect();
        ablated.sort_unstable();
        Ok(RankedLayer {
            layer: creation.layer,
            sinks: creation.created,
            projection,
            neurons,
            ablated,
            sum: AblatedTrace::default(),
        })
    }

    /// Zeroes the ablated neurons at all positions.
    fn edits(&self, config: &ModelConfig) -> Result<Edits> {
        let edit = Edit {
            site: Site::MlpElementwise,
            layer: self.layer,
            positions: Positions::all(),
            columns: Some(self.ablated.clone()),
            change: Change::Zero,
        };
        Edits::new(vec![edit], config, None)
    }

    fn add(&mut self, trace: AblatedTrace) {
        self.sum.changes.merge(trace.changes);
        self.sum.nll.iter_mut().zip(&trace.nll).for_each(|(mean, more)| mean.merge(more));
    }

    fn finish(mut self) -> LayerNeurons {
        let ablated = self.neurons.iter().filter(|neuron| self.ablated.contains(&neuron.index));
        let share = ablated.map(|neuron| neuron.share).sum();
        let AblatedTrace { changes, nll } = self.sum;
        let (levels, appeared) = changes.finish();
        self.neurons.truncate(LISTED_NEURONS);
        LayerNeurons {
            layer: self.layer,
            sinks: self.sinks,
            projection: self.projection,
            neurons: self.neurons,
            ablation: Ablation {
                neurons: self.ablated,
                share,
                levels,
                appeared,
                perplexity_before: nll[0].get().exp(),
                perplexity_after: nll[1].get().exp(),
            },
        }
    }
}

/// Wᵀ · u of a matrix `[rows, columns]` and a vector `[rows]`.
fn column_dots(matrix: WeightView<'_>, u: &[f32]) -> Vec<f32> {
    let mut dots = vec![0.0; matrix.columns];
    let mut row = vec![0.0; matrix.columns];
    let rows = matrix.bytes.chunks_exact((matrix.columns * matrix.dtype.size()).max(1));
    for (bytes, factor) in rows.zip(u) {
        widen(bytes, matrix.dtype, &mut row);
        dots.iter_mut().zip(&row).for_each(|(dot, x)| *dot += f64::from(*x) * f64::from(*factor));
    }
    dots.into_iter().map(|dot| dot as f32).collect()
}

fn widen(bytes: &[u8], dtype: DType, row: &mut [f32]) {
    let halves = row.iter_mut().zip(bytes.as_chunks().0);
    match dtype {
        DType::Bf16 => halves.for_each(|(x, b)| *x = bf16::from_le_bytes(*b).to_f32()),
        DType::F16 => halves.for_each(|(x, b)| *x = f16::from_le_bytes(*b).to_f32()),
        DType::F32 => {
            let words = row.iter_mut().zip(bytes.as_chunks().0);
            words.for_each(|(x, b)| *x = f32::from_le_bytes(*b));
        }
    }
}

/// The fewest neurons that sum to [`ABLATED_SHARE`] of one token's projection.
fn needed(activations: &[f32], weights: &[f32]) -> Vec<usize> {
    let write = |(index, (a, w)): (usize, (&f32, &f32))| (f64::from(*a) * f64::from(*w), index);
    let mut writes: Vec<(f64, usize)> =
        activations.iter().zip(weights).enumerate().map(write).collect();
    let mut left = ABLATED_SHARE * writes.iter().map(|(write, _)| write).sum::<f64>();
    writes.sort_by(|a, b| b.0.total_cmp(&a.0));
    let strongest = writes.into_iter().take_while(|(write, _)| {
        let more = left > 0.0;
        left -= write;
        more
    });
    strongest.map(|(_, index)| index).collect()
}

/// Means of the heads' sink scores.
struct HeadObserver {
    /// `[layers][heads]`: of sinks, of others, of the reference.
    heads: Vec<Vec<[Mean; 3]>>,
    /// The same, of this trace.
    part: Vec<Vec<[Mean; 3]>>,
}

impl HeadObserver {
    /// The name of its parts.
    const NAME: &'static str = "heads";

    fn new(run: &ScannedRun<'_>) -> HeadObserver {
        let none = vec![vec![Default::default(); run.heads]; run.layers];
        HeadObserver { heads: none.clone(), part: none }
    }

    fn finish(self) -> Vec<HeadReading> {
        let mut readings: Vec<HeadReading> = Vec::new();
        for (layer, heads) in self.heads.into_iter().enumerate() {
            for (head, [sinks, others, reference]) in heads.into_iter().enumerate() {
                let (sinks, others, reference) = (sinks.get(), others.get(), reference.get());
                if sinks > 0.0 {
                    readings.push(HeadReading { layer, head, sinks, others, reference });
                }
            }
        }
        readings.sort_by(|a, b| b.sinks.total_cmp(&a.sinks));
        readings.truncate(LISTED_HEADS);
        readings
    }
}

impl<B: Backend> Observer<B> for HeadObserver {
    fn name(&self) -> &'static str {
        HeadObserver::NAME
    }

    fn wants_scores(&self) -> bool {
        true
    }

    fn begin(&mut self, _: &ScannedTrace<'_>) {
        let means = self.part.iter_mut().flatten();
        means.for_each(|means| *means = Default::default());
    }

    fn wants(&self, _: Site, _: usize) -> bool {
        false
    }

    fn read(&mut self, _: Site, _: usize, _: &Rows<'_>) {}

    fn scores(&mut self, trace: &ScannedTrace<'_>, layer: usize, scores: &[f32]) {
        let alive: Vec<usize> = trace
            .secondary()
            .filter(|sink| layer > 0 && sink.layers.contains(&(layer - 1)))
            .map(|sink| sink.position)
            .collect();
        let heads = scores.chunks_exact(trace.ids.len()); // [heads, T]
        for (means, scores) in self.part[layer].iter_mut().zip(heads) {
            let score = |t: usize| f64::from(scores[t]);
            means[0].add(&alive.iter().map(|t| score(*t)).collect::<Vec<_>>());
            let others = (0..scores.len()).filter(|t| !trace.is_sink(*t));
            means[1].add(&others.map(score).collect::<Vec<_>>());
            means[2].add(&[score(trace.reference)]);
        }
    }

    fn part(&mut self) -> Result<Vec<u8>> {
        encode(&self.part)
    }

    fn add(&mut self, part: &[u8]) -> bool {
        let Some(trace) = decode::<Vec<Vec<[Mean; 3]>>>(part) else { return false };
        let heads = self.heads.iter_mut().flatten().flatten();
        heads.zip(trace.iter().flatten().flatten()).for_each(|(mean, more)| mean.merge(more));
        true
    }
}
