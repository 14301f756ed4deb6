//! Which weights make sinks and which read them.

use std::collections::BTreeSet;

use fathom_backend::{Backend, DType, WeightView};
use fathom_model::{Change, Checkpoint, Edit, Edits, ModelConfig, Positions, Result, Site};
use half::{bf16, f16};
use serde::{Deserialize, Serialize};

use super::again::{Changes, Outcome};
use super::creation::Creation;
use super::parts::{Learner, decode, encode};
use super::pass::{Observer, Rows};
use super::statistics::Mean;
use super::subjects::Subject;
use super::{Analysis, AnalysisResult, LevelChange};

/// Neurons that write the sink direction, heads that read it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Neurons {
    /// The layers that create most secondary sinks.
    pub layers: Vec<LayerNeurons>,
    /// Heads by how much of their attention secondary sinks draw, descending; the first 64.
    pub heads: Vec<HeadReading>,
}

/// The MLP of one creation layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerNeurons {
    /// The layer, l_start of the sinks.
    pub layer: usize,
    /// Secondary sinks created there.
    pub sinks: usize,
    /// Mean of mlp_out · u over them, u being the unit vector of the reference's `resid_post`.
    pub projection: f64,
    /// Neurons by contribution, descending; the first 32.
    pub neurons: Vec<Neuron>,
    /// The traces scanned again without the strongest of them.
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

/// What zeroing neurons does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ablation {
    /// The neurons: the fewest that make up 90 % of the projection, at most 32.
    pub neurons: Vec<usize>,
    /// Their share of the projection.
    pub share: f64,
    /// What became of the secondary sinks, by level.
    pub levels: Vec<LevelChange>,
    /// Secondary sinks that were none before.
    pub appeared: usize,
    /// Perplexity of the traces' tokens, before.
    pub perplexity_before: f64,
    /// The same, after.
    pub perplexity_after: f64,
}

/// How much one head looks at secondary sinks.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeadReading {
    /// The layer.
    pub layer: usize,
    /// The head.
    pub head: usize,
    /// Its mean sink score over secondary sinks alive at the layer.
    pub sinks: f64,
    /// Its mean sink score over tokens that are no sinks.
    pub others: f64,
    /// Its mean sink score over the traces' references.
    pub reference: f64,
}

impl AnalysisResult for Neurons {
    const ANALYSIS: Analysis = Analysis::Neurons;
}

/// Neurons and heads that are listed, and neurons that are ablated at most.
const LISTED_NEURONS: usize = 32;
const LISTED_HEADS: usize = 64;
/// Part of each sink's projection that is ablated.
const ABLATED_SHARE: f64 = 0.9;

/// The neurons of a creation layer, and what becomes of the traces without them.
pub(super) struct Ranked {
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
pub(super) struct AblatedTrace {
    changes: Changes,
    nll: [Mean; 2],
}

impl AblatedTrace {
    /// What a trace's passes came to.
    pub fn of(subject: &Subject<'_>, before: &Outcome, after: &Outcome) -> AblatedTrace {
        let mut nll = [Mean::default(); 2];
        nll[0].add(&before.nll);
        nll[1].add(&after.nll);
        AblatedTrace { changes: Changes::of(subject, &after.detection), nll }
    }
}

impl Ranked {
    /// Ranks the neurons of a layer by what they write along the sink direction.
    ///
    /// # Errors
    /// A down projection that cannot be read.
    pub fn new(
        creation: &Creation,
        checkpoint: &Checkpoint,
        config: &ModelConfig,
    ) -> Result<Ranked> {
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
        Ok(Ranked {
            layer: creation.layer,
            sinks: creation.created,
            projection,
            neurons,
            ablated,
            sum: AblatedTrace::default(),
        })
    }

    /// All that its edits depend on, as parts are sealed with it.
    pub fn change(&self) -> (usize, &[usize]) {
        (self.layer, &self.ablated)
    }

    /// What to change in every trace's pass.
    ///
    /// # Errors
    /// None: the neurons are the model's.
    pub fn edits(&self, config: &ModelConfig) -> Result<Edits> {
        let edit = Edit {
            site: Site::MlpElementwise,
            layer: self.layer,
            positions: Positions::all(),
            columns: Some(self.ablated.clone()),
            change: Change::Zero,
        };
        Edits::new(vec![edit], config, None)
    }

    /// Takes in what a trace's passes came to.
    pub fn add(&mut self, trace: AblatedTrace) {
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

/// The fewest neurons that make up [`ABLATED_SHARE`] of one token's projection.
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

/// Sums of the heads' sink scores.
pub(super) struct HeadObserver {
    /// `[layers][heads]`: of sinks, of others, of the reference.
    heads: Vec<Vec<[Mean; 3]>>,
    /// The same of the trace that is passing.
    trace: Vec<Vec<[Mean; 3]>>,
}

impl HeadObserver {
    pub fn new(config: &ModelConfig) -> HeadObserver {
        let none = vec![vec![Default::default(); config.heads]; config.layers];
        HeadObserver { heads: none.clone(), trace: none }
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
    fn learner(&self) -> Learner {
        Learner::Heads
    }

    fn wants_scores(&self) -> bool {
        true
    }

    fn begin(&mut self, _: &Subject<'_>) {
        let means = self.trace.iter_mut().flatten();
        means.for_each(|means| *means = Default::default());
    }

    fn wants(&self, _: Site, _: usize) -> bool {
        false
    }

    fn read(&mut self, _: Site, _: usize, _: &Rows<'_>) {}

    fn scores(&mut self, subject: &Subject<'_>, layer: usize, scores: &[f32]) {
        let alive: Vec<usize> = subject
            .secondary()
            .filter(|sink| layer > 0 && sink.layers.contains(&(layer - 1)))
            .map(|sink| sink.position)
            .collect();
        let heads = scores.chunks_exact(subject.ids.len()); // [heads, T]
        for (means, scores) in self.trace[layer].iter_mut().zip(heads) {
            let score = |t: usize| f64::from(scores[t]);
            means[0].add(&alive.iter().map(|t| score(*t)).collect::<Vec<_>>());
            let others = (0..scores.len()).filter(|t| !subject.is_sink(*t));
            means[1].add(&others.map(score).collect::<Vec<_>>());
            means[2].add(&[score(subject.reference)]);
        }
    }
    fn part(&mut self) -> Result<Vec<u8>> {
        encode(&self.trace)
    }

    fn add(&mut self, part: &[u8]) -> bool {
        let Some(trace) = decode::<Vec<Vec<[Mean; 3]>>>(part) else { return false };
        let heads = self.heads.iter_mut().flatten().flatten();
        heads.zip(trace.iter().flatten().flatten()).for_each(|(mean, more)| mean.merge(more));
        true
    }
}

impl Neurons {
    pub(super) fn of(layers: Vec<Ranked>, heads: HeadObserver) -> Neurons {
        let layers = layers.into_iter().map(Ranked::finish).collect();
        Neurons { layers, heads: heads.finish() }
    }
}
