//! What a creation layer's MLP outputs along the principal components of its input: "PCA sweep"
//! (docs/definitions.md), paper Fig. 7.

use std::mem;

use fathom_backend::Backend;
use fathom_model::{Result, Site, Transformer};
use fathom_vector::{dot, norm};
use serde::{Deserialize, Serialize};

use super::analysis::Analyzer;
use super::collect::{Collector, TraceRows};
use super::gram::{eigenpairs, gram};
use super::parts::{decode, encode};
use super::pass::{Observer, Rows};
use super::scanned::{
    Others, ScannedRun, ScannedTrace, Token, created_at, creation_layers, sample,
};
use super::{Analysis, AnalysisResult, ExplainProgress, Inputs};
use crate::vector::cosine_of;

/// A sweep for each of the layers that create the most secondary sinks.
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
    /// Tokens that are not sinks, as many as sinks if possible.
    pub others: usize,
    /// Those of the others that have the token id of a sink; the rest have other ids.
    pub others_of_same_ids: usize,
    /// Share of the variance that each component explains, descending; the first 64.
    pub explained: Vec<f64>,
    /// Mean ‖mlp_out‖ of the sink tokens, to compare the sweep's norms with.
    pub sink_norm: f64,
    /// Sweeps along the first components.
    pub components: Vec<ComponentSweep>,
}

/// MLP(α · PC) for a range of α.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ComponentSweep {
    /// 1-based number of the component.
    pub component: usize,
    /// Mean projection (not centred) of the sinks' `mlp_in`.
    pub sink_projection: f64,
    /// The same of the other tokens.
    pub other_projection: f64,
    /// By α, ascending, from minus to plus the largest projection of a sink.
    pub points: Vec<SweepPoint>,
}

/// One input of a sweep.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SweepPoint {
    /// α.
    pub alpha: f32,
    /// ‖MLP(α · PC)‖.
    pub norm: f32,
    /// Its cosine with the mean direction of the references' `mlp_out`.
    pub cosine: f32,
    /// Its cosine with the mean direction of the references' `resid_post`, the sink direction.
    pub cosine_to_state: f32,
}

impl AnalysisResult for Pca {
    const ANALYSIS: Analysis = Analysis::Pca;
}

/// Number of components whose variance is listed, and of those that are swept.
const LISTED: usize = 64;
const SWEPT: usize = 5;
/// Inputs of a sweep on each side of zero.
const STEPS: i32 = 20;

/// Collects the inputs of the MLPs that create sinks.
pub(super) struct PcaAnalyzer {
    layers: Vec<CollectedLayer>,
    reference: usize,
    any_sinks: bool,
}

struct CollectedLayer {
    layer: usize,
    sinks: Vec<Token>,
    others_of_same_ids: usize,
    inputs: Collector,
    outputs: Collector,
    /// The reference's `mlp_out` and `resid_post` in this trace, each scaled to norm 1.
    reference: [Vec<f32>; 2],
    /// Their sums over the traces.
    references: [Vec<f32>; 2],
}

impl Analyzer for PcaAnalyzer {
    type Output = Pca;
    const HELP: &'static str =
        "Principal components of the MLP's input at l_start, each swept through the MLP";

    fn new(run: &ScannedRun<'_>) -> PcaAnalyzer {
        let (traces, options) = (&run.traces, &run.options);
        let layer = |layer| {
            let sinks = sample(created_at(traces, layer), options.max_sinks, options.seed);
            let others = Others::of(traces, &sinks, options.seed);
            let both = sinks.iter().chain(&others.tokens).copied().collect();
            CollectedLayer {
                layer,
                others_of_same_ids: others.of_same_ids,
                inputs: Collector::new(both, [(Site::MlpIn, layer)]),
                outputs: Collector::new(sinks.clone(), [(Site::MlpOut, layer)]),
                sinks,
                reference: Default::default(),
                references: Default::default(),
            }
        };
        let layers = creation_layers(traces).into_iter().map(layer).collect();
        PcaAnalyzer { layers, reference: 0, any_sinks: false }
    }

    fn observers<B: Backend>(&mut self) -> Vec<&mut dyn Observer<B>> {
        vec![self]
    }

    fn finish<B: Backend>(
        self,
        inputs: &Inputs<'_, B>,
        _: &mut dyn ExplainProgress,
    ) -> Result<Pca> {
        let layers = self.layers.into_iter().map(|layer| layer.finish(inputs.model));
        Ok(Pca { layers: layers.collect::<Result<_>>()? })
    }
}

/// What a trace adds to one layer: inputs, outputs, the reference's vectors.
type LayerPart = (TraceRows, TraceRows, [Vec<f32>; 2]);

impl<B: Backend> Observer<B> for PcaAnalyzer {
    fn name(&self) -> &'static str {
        Analysis::Pca.name()
    }

    fn begin(&mut self, trace: &ScannedTrace<'_>) {
        self.reference = trace.reference;
        self.any_sinks = !trace.detection.sinks.is_empty();
        for layer in &mut self.layers {
            layer.inputs.begin(trace);
            layer.outputs.begin(trace);
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
        let layer = |layer: &mut CollectedLayer| -> LayerPart {
            (layer.inputs.part(), layer.outputs.part(), mem::take(&mut layer.reference))
        };
        encode(&self.layers.iter_mut().map(layer).collect::<Vec<LayerPart>>())
    }

    fn add(&mut self, part: &[u8]) -> bool {
        let Some(layers) = decode::<Vec<LayerPart>>(part) else { return false };
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

impl CollectedLayer {
    fn finish<B: Backend>(self, model: &Transformer<B>) -> Result<LayerPca> {
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

    /// Runs α · component through the layer's MLP, for a range of α.
    fn sweep<B: Backend>(
        &self,
        model: &Transformer<B>,
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
        // The sign of a component is arbitrary: we make the sinks' mean positive.
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

/// Variances along the principal components of the rows, descending, and the components, of norm 1,
/// whose variance exceeds rounding error.
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
