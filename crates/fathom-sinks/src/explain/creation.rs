//! What the plain pass shows of the layers that create the most sinks: MLP activations, sink
//! direction, norms of other tokens.

use std::mem;

use fathom_backend::Backend;
use fathom_model::{Result, Site};
use fathom_vector::norm;
use serde::{Deserialize, Serialize};

use super::parts::{decode, encode};
use super::pass::{Observer, Rows};
use super::scanned::{ScannedRun, ScannedTrace, Token, created_at, creation_layers, sample};
use super::statistics::Mean;

/// Observes the layers that create the most secondary sinks.
pub(super) struct CreationObserver {
    layers: Vec<CreationLayer>,
    number: usize,
    reference: usize,
    /// Sinks of any class in this trace, ascending.
    sinks: Vec<usize>,
}

/// One creation layer.
pub(super) struct CreationLayer {
    /// The layer.
    pub layer: usize,
    /// Secondary sinks created there, over all traces.
    pub created: usize,
    /// Those whose activations are collected.
    sampled: Vec<Token>,
    /// `mlp_elementwise` of those, `[intermediate]` each.
    pub activations: Vec<Vec<f32>>,
    /// Sum over the traces of the reference's `resid_post`, each scaled to norm 1.
    direction: Vec<f64>,
    /// ‖mlp_out‖ of tokens that are not sinks.
    other_norm: Mean,
    part: LayerPart,
}

/// What one trace adds to a layer.
#[derive(Default, Serialize, Deserialize)]
struct LayerPart {
    activations: Vec<Vec<f32>>,
    direction: Vec<f64>,
    other_norm: Mean,
}

impl CreationLayer {
    /// The sink direction: the mean over traces of the reference's `resid_post`, of norm 1.
    pub fn direction(&self) -> Vec<f32> {
        let norm = self.direction.iter().map(|x| x * x).sum::<f64>().sqrt();
        self.direction.iter().map(|x| (x / norm) as f32).collect()
    }

    /// Mean ‖mlp_out‖ of tokens that are not sinks.
    pub fn other_norm(&self) -> f32 {
        self.other_norm.get() as f32
    }
}

impl CreationObserver {
    /// The name of its parts.
    pub const NAME: &'static str = "creation";

    pub fn new(run: &ScannedRun<'_>) -> CreationObserver {
        let creation = |layer| {
            let created = created_at(&run.traces, layer);
            CreationLayer {
                layer,
                created: created.len(),
                sampled: sample(created, run.options.max_sinks, run.options.seed),
                activations: Vec::new(),
                direction: Vec::new(),
                other_norm: Mean::default(),
                part: LayerPart::default(),
            }
        };
        let layers = creation_layers(&run.traces).into_iter().map(creation).collect();
        CreationObserver { layers, number: 0, reference: 0, sinks: Vec::new() }
    }

    /// The layers, ascending.
    pub fn layers(&self) -> &[CreationLayer] {
        &self.layers
    }
}

impl<B: Backend> Observer<B> for CreationObserver {
    fn name(&self) -> &'static str {
        CreationObserver::NAME
    }

    fn begin(&mut self, trace: &ScannedTrace<'_>) {
        self.number = trace.number;
        self.reference = trace.reference;
        self.sinks = trace.detection.sinks.iter().map(|sink| sink.position).collect();
        self.layers.iter_mut().for_each(|creation| creation.part = LayerPart::default());
    }

    fn wants(&self, site: Site, layer: usize) -> bool {
        matches!(site, Site::ResidPost | Site::MlpOut | Site::MlpElementwise)
            && !self.sinks.is_empty() // without a primary sink there is no direction
            && self.layers.iter().any(|creation| creation.layer == layer)
    }

    fn read(&mut self, site: Site, layer: usize, rows: &Rows<'_>) {
        let Some(creation) = self.layers.iter_mut().find(|creation| creation.layer == layer) else {
            return;
        };
        match site {
            Site::ResidPost => {
                let Some(row) = rows.get(self.reference) else { return };
                let norm = f64::from(norm(row)).max(f64::MIN_POSITIVE);
                creation.part.direction = row.iter().map(|x| f64::from(*x) / norm).collect();
            }
            Site::MlpOut => {
                let others = rows.iter().filter(|(t, _)| self.sinks.binary_search(t).is_err());
                let norms = &mut creation.part.other_norm;
                others.for_each(|(_, row)| norms.add(&[f64::from(norm(row))]));
            }
            _ => {
                let here = creation.sampled.iter().filter(|(number, _)| *number == self.number);
                let sampled = here.filter_map(|(_, position)| rows.get(*position));
                creation.part.activations.extend(sampled.map(<[f32]>::to_vec));
            }
        }
    }

    fn part(&mut self) -> Result<Vec<u8>> {
        let layers = self.layers.iter_mut().map(|creation| mem::take(&mut creation.part));
        encode(&layers.collect::<Vec<LayerPart>>())
    }

    fn add(&mut self, part: &[u8]) -> bool {
        let Some(layers) = decode::<Vec<LayerPart>>(part) else { return false };
        if layers.len() != self.layers.len() {
            return false;
        }
        for (creation, part) in self.layers.iter_mut().zip(layers) {
            creation.activations.extend(part.activations);
            let sum = &mut creation.direction;
            sum.resize(sum.len().max(part.direction.len()), 0.0);
            sum.iter_mut().zip(part.direction).for_each(|(sum, x)| *sum += x);
            creation.other_norm.merge(&part.other_norm);
        }
        true
    }
}
