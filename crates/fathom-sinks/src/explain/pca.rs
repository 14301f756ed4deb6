//! What a creation layer's MLP does along the principal components of its input (definition 2.6,
//! paper Fig. 7).

use std::mem;

use fathom_backend::Backend;
use fathom_model::{Model, Result, Site};
use fathom_vector::{dot, norm};
use serde::{Deserialize, Serialize};

use super::collect::{Collector, TraceRows};
use super::gram::{eigenpairs, gram};
use super::parts::{Learner, decode, encode};
use super::pass::{Observer, Rows};
use super::subjects::{Others, Subject, Token, created_at, creation_layers, sample};
use super::{Analysis, AnalysisResult, ExplainOptions};
use crate::vector::cosine_of;

/// A sweep for each of the layers that create most secondary sinks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pca {
    /// By layer.
    pub layers: Vec<LayerPca>,
}

/// The principal components of one layer's `mlp_in`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerPca {
    /// The layer, l_start of the sinks.
    pub layer: usize,
    /// Sink tokens the components are computed from.
    pub sinks: usize,
    /// Tokens that are no sinks, as many where there are.
    pub others: usize,
    /// How many of the others have the id of a sink token; the rest are any tokens.
    pub others_of_same_ids: usize,
    /// Part of the variance each component explains, descending; the first 64.
    pub explained: Vec<f64>,
    /// Mean ‖mlp_out‖ of the sink tokens, to hold the sweep's norms against.
    pub sink_norm: f64,
    /// Sweeps along the first components.
    pub components: Vec<ComponentSweep>,
}

/// ±α · PC through the MLP.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ComponentSweep {
    /// Which component, the first being 1.
    pub component: usize,
    /// Projections (not centred) of the sinks' `mlp_in`: mean.
    pub sink_projection: f64,
    /// The same of the other tokens.
    pub other_projection: f64,
    /// By α, ascending, reaching the largest projection of a sink on both sides.
    pub points: Vec<SweepPoint>,
}

/// One input of a sweep.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SweepPoint {
    /// α.
    pub alpha: f32,
    /// ‖MLP(α · PC)‖.
    pub norm: f32,
    /// Its cosine with the reference's `mlp_out`.
    pub cosine: f32,
    /// Its cosine with the reference's `resid_post`, the sink direction.
    pub cosine_to_state: f32,
}

impl AnalysisResult for Pca {
    const ANALYSIS: Analysis = Analysis::Pca;
}

/// Components that are listed, and swept.
const LISTED: usize = 64;
const SWEPT: usize = 5;
/// Inputs of a sweep on each side of zero.
const STEPS: i32 = 20;

/// Gathers the inputs of the MLPs that create sinks.
pub(super) struct PcaObserver {
    layers: Vec<Layer>,
    reference: usize,
    any_sinks: bool,
}

struct Layer {
    layer: usize,
    sinks: Vec<Token>,
    others_of_same_ids: usize,
    inputs: Collector,
    outputs: Collector,
    /// The reference's vectors in the trace that is passing, scaled to norm 1: `mlp_out` and
    /// `resid_post`.
    reference: [Vec<f32>; 2],
    /// Their sums over traces.
    references: [Vec<f32>; 2],
}

impl PcaObserver {
    pub fn new(subjects: &[Subject<'_>], options: ExplainOptions) -> PcaObserver {
        let layer = |layer| {
            let sinks = sample(created_at(subjects, layer), options.max_sinks, options.seed);
            let others = Others::of(subjects, &sinks, options.seed);
            let both = sinks.iter().chain(&others.tokens).copied().collect();
            Layer {
                layer,
                others_of_same_ids: others.of_same_ids,
                inputs: Collector::new(both, [(Site::MlpIn, layer)]),
                outputs: Collector::new(sinks.clone(), [(Site::MlpOut, layer)]),
                sinks,
                reference: Default::default(),
                references: Default::default(),
            }
        };
        let layers = creation_layers(subjects).into_iter().map(layer).collect();
        PcaObserver { layers, reference: 0, any_sinks: false }
    }

    /// # Errors
    /// None: the layers are the model's.
    pub fn finish<B: Backend>(self, model: &Model<B>) -> Result<Pca> {
        let layers = self.layers.into_iter().map(|layer| layer.finish(model));
        Ok(Pca { layers: layers.collect::<Result<_>>()? })
    }
}

/// What is learnt of a trace for one layer.
type Part = (TraceRows, TraceRows, [Vec<f32>; 2]);

impl<B: Backend> Observer<B> for PcaObserver {
    fn learner(&self) -> Learner {
        Learner::For(Analysis::Pca)
    }

    fn begin(&mut self, subject: &Subject<'_>) {
        self.reference = subject.reference;
        self.any_sinks = !subject.detection.sinks.is_empty();
        for layer in &mut self.layers {
            layer.inputs.begin(subject);
            layer.outputs.begin(subject);
            layer.reference = Default::default();
        }
    }

    fn wants(&self, site: Site, layer: usize) -> bool {
        matches!(site, Site::MlpIn | Site::MlpOut | Site::ResidPost)
            && self.layers.iter().any(|pca| pca.layer == layer)
    }

    fn read(&mut self, site: Site, layer: usize, rows: &Rows<'_>) {
        let Some(pca) = self.layers.iter_mut().find(|pca| pca.layer == layer) else { return };
        pca.inputs.read(site, layer, rows);
        pca.outputs.read(site, layer, rows);
        let reference = match site {
            Site::MlpOut => &mut pca.reference[0],
            Site::ResidPost => &mut pca.reference[1],
            _ => return,
        };
        if let Some(row) = rows.get(self.reference).filter(|_| self.any_sinks) {
            let norm = norm(row).max(f32::MIN_POSITIVE);
            *reference = row.iter().map(|x| x / norm).collect();
        }
    }

    fn part(&mut self) -> Result<Vec<u8>> {
        let layer = |layer: &mut Layer| -> Part {
            (layer.inputs.part(), layer.outputs.part(), mem::take(&mut layer.reference))
        };
        encode(&self.layers.iter_mut().map(layer).collect::<Vec<Part>>())
    }

    fn add(&mut self, part: &[u8]) -> bool {
        let Some(layers) = decode::<Vec<Part>>(part) else { return false };
        if layers.len() != self.layers.len() {
            return false;
        }
        for (layer, (inputs, outputs, reference)) in self.layers.iter_mut().zip(layers) {
            layer.inputs.add(inputs);
            layer.outputs.add(outputs);
            for (sum, row) in layer.references.iter_mut().zip(reference) {
                sum.resize(sum.len().max(row.len()), 0.0);
                sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
            }
        }
        true
    }
}

impl Layer {
    fn finish<B: Backend>(self, model: &Model<B>) -> Result<LayerPca> {
        let rows = self.inputs.rows(Site::MlpIn, self.layer);
        let is_sink: Vec<bool> = self
            .inputs
            .tokens()
            .iter()
            .map(|token| self.sinks.binary_search(token).is_ok())
            .collect();
        let (variances, components) = principal_components(&rows);
        let total: f64 = variances.iter().sum();
        let explained = variances.iter().take(LISTED).map(|variance| variance / total).collect();

        let mut sweeps = Vec::new();
        for (i, component) in components.iter().take(SWEPT).enumerate() {
            let projections: Vec<f32> = rows.iter().map(|row| dot(row, component)).collect();
            sweeps.push(self.sweep(model, i + 1, component, &projections, &is_sink)?);
        }
        let norms = self.outputs.rows(Site::MlpOut, self.layer).into_iter().map(norm);
        Ok(LayerPca {
            layer: self.layer,
            sinks: self.sinks.len(),
            others: rows.len() - self.sinks.len(),
            others_of_same_ids: self.others_of_same_ids,
            explained,
            sink_norm: norms.map(f64::from).sum::<f64>() / self.sinks.len().max(1) as f64,
            components: sweeps,
        })
    }

    /// ±α · component through the layer's MLP.
    fn sweep<B: Backend>(
        &self,
        model: &Model<B>,
        number: usize,
        component: &[f32],
        projections: &[f32],
        is_sink: &[bool],
    ) -> Result<ComponentSweep> {
        let of = |kind: bool| {
            let those = projections.iter().zip(is_sink).filter(move |(_, sink)| **sink == kind);
            those.map(|(projection, _)| *projection)
        };
        let mean =
            |kind: bool| of(kind).map(f64::from).sum::<f64>() / of(kind).count().max(1) as f64;
        // The sign of a component is arbitrary: sinks lie on its positive side.
        let sign = if mean(true) < 0.0 { -1.0 } else { 1.0 };
        let reach = of(true).fold(0.0, |reach: f32, projection| reach.max(projection.abs()));
        let alphas: Vec<f32> =
            (-STEPS..=STEPS).map(|step| reach * step as f32 / STEPS as f32).collect();
        let inputs: Vec<f32> = alphas
            .iter()
            .flat_map(|alpha| component.iter().map(move |x| sign as f32 * alpha * x))
            .collect();
        let outputs = model.mlp(self.layer, &inputs)?;
        let [mlp_out, state] = &self.references;
        let point = |(alpha, out): (&f32, &[f32])| SweepPoint {
            alpha: *alpha,
            norm: norm(out),
            cosine: cosine_of(out, mlp_out),
            cosine_to_state: cosine_of(out, state),
        };
        let width = component.len().max(1);
        Ok(ComponentSweep {
            component: number,
            sink_projection: sign * mean(true),
            other_projection: sign * mean(false),
            points: alphas.iter().zip(outputs.chunks_exact(width)).map(point).collect(),
        })
    }
}

/// Variances along the principal components of rows, descending, and the components of those that
/// are not rounding, of norm 1.
fn principal_components(rows: &[&[f32]]) -> (Vec<f64>, Vec<Vec<f32>>) {
    let (n, width) = (rows.len(), rows.first().map_or(0, |row| row.len()));
    let mean: Vec<f32> = (0..width)
        .map(|c| (rows.iter().map(|row| f64::from(row[c])).sum::<f64>() / n as f64) as f32)
        .collect();
    let centred: Vec<Vec<f32>> =
        rows.iter().map(|row| row.iter().zip(&mean).map(|(x, mean)| x - mean).collect()).collect();
    let centred: Vec<&[f32]> = centred.iter().map(Vec::as_slice).collect();
    let pairs = eigenpairs(gram(&centred)); // X Xᵀ = U S² Uᵀ
    let first = pairs.first().map_or(0.0, |(value, _)| *value);
    let component = |(value, u): &(f64, Vec<f64>)| {
        (*value > 1e-9 * first).then(|| {
            let mut v = vec![0.0f64; width]; // Xᵀ u / s
            for (row, weight) in centred.iter().zip(u) {
                v.iter_mut().zip(*row).for_each(|(v, x)| *v += weight * f64::from(*x));
            }
            v.iter().map(|x| (x / value.sqrt()) as f32).collect()
        })
    };
    let components = pairs.iter().map_while(component).collect();
    (pairs.iter().take(width).map(|(value, _)| value.max(0.0) / n as f64).collect(), components)
}

#[cfg(test)]
mod tests {
    use super::super::fixture::fixture;
    use super::*;

    #[test]
    fn components_are_scikit_learn_s() {
        let fixture = fixture();
        let (variances, components) = principal_components(&fixture.rows());
        let total: f64 = variances.iter().sum();
        for (variance, expected) in variances.iter().zip(&fixture.explained_variance_ratio) {
            assert!((variance / total - expected).abs() < 1e-6, "{variance} {expected}");
        }
        for (component, expected) in components.iter().zip(&fixture.components) {
            assert!((dot(component, expected).abs() - 1.0).abs() < 1e-5);
        }
    }
}
