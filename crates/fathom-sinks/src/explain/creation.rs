//! What the MLPs that create sinks do on a plain pass.

use std::mem;

use fathom_backend::Backend;
use fathom_model::{Result, Site};
use fathom_vector::norm;
use serde::{Deserialize, Serialize};

use super::ExplainOptions;
use super::parts::{Learner, decode, encode};
use super::pass::{Observer, Rows};
use super::statistics::Mean;
use super::subjects::{Subject, Token, created_at, creation_layers, sample};

/// Watches the layers that create most secondary sinks.
pub(super) struct CreationObserver {
    layers: Vec<Creation>,
    number: usize,
    reference: usize,
    /// Sinks of any class in the trace that is passing, ascending.
    sinks: Vec<usize>,
}

/// One creation layer.
pub(super) struct Creation {
    /// The layer.
    pub layer: usize,
    /// Secondary sinks created there, over all traces.
    pub created: usize,
    /// Those whose activations are kept.
    kept: Vec<Token>,
    /// `mlp_elementwise` of those, `[intermediate]` each.
    pub activations: Vec<Vec<f32>>,
    /// Sum over the traces of the reference's `resid_post`, each scaled to norm 1.
    direction: Vec<f64>,
    /// ‖mlp_out‖ of tokens that are no sinks.
    other_norm: Mean,
    trace: Trace,
}

/// What one trace adds.
#[derive(Default, Serialize, Deserialize)]
struct Trace {
    activations: Vec<Vec<f32>>,
    direction: Vec<f64>,
    other_norm: Mean,
}

impl Creation {
    /// The sink direction: the mean over traces of the reference's `resid_post`, of norm 1.
    pub fn direction(&self) -> Vec<f32> {
        let norm = self.direction.iter().map(|x| x * x).sum::<f64>().sqrt();
        self.direction.iter().map(|x| (x / norm) as f32).collect()
    }

    /// Mean ‖mlp_out‖ of tokens that are no sinks.
    pub fn other_norm(&self) -> f32 {
        self.other_norm.get() as f32
    }
}

impl CreationObserver {
    pub fn new(subjects: &[Subject<'_>], options: ExplainOptions) -> CreationObserver {
        let creation = |layer| {
            let created = created_at(subjects, layer);
            Creation {
                layer,
                created: created.len(),
                kept: sample(created, options.max_sinks, options.seed),
                activations: Vec::new(),
                direction: Vec::new(),
                other_norm: Mean::default(),
                trace: Trace::default(),
            }
        };
        let layers = creation_layers(subjects).into_iter().map(creation).collect();
        CreationObserver { layers, number: 0, reference: 0, sinks: Vec::new() }
    }

    pub fn finish(self) -> Vec<Creation> {
        self.layers
    }
}

impl<B: Backend> Observer<B> for CreationObserver {
    fn learner(&self) -> Learner {
        Learner::Creation
    }

    fn begin(&mut self, subject: &Subject<'_>) {
        self.number = subject.number;
        self.reference = subject.reference;
        self.sinks = subject.detection.sinks.iter().map(|sink| sink.position).collect();
        self.layers.iter_mut().for_each(|creation| creation.trace = Trace::default());
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
                creation.trace.direction = row.iter().map(|x| f64::from(*x) / norm).collect();
            }
            Site::MlpOut => {
                let others = rows.iter().filter(|(t, _)| self.sinks.binary_search(t).is_err());
                let norms = &mut creation.trace.other_norm;
                others.for_each(|(_, row)| norms.add(&[f64::from(norm(row))]));
            }
            _ => {
                let here = creation.kept.iter().filter(|(trace, _)| *trace == self.number);
                let kept = here.filter_map(|(_, position)| rows.get(*position));
                creation.trace.activations.extend(kept.map(<[f32]>::to_vec));
            }
        }
    }

    fn part(&mut self) -> Result<Vec<u8>> {
        let traces = self.layers.iter_mut().map(|creation| mem::take(&mut creation.trace));
        encode(&traces.collect::<Vec<Trace>>())
    }

    fn add(&mut self, part: &[u8]) -> bool {
        let Some(traces) = decode::<Vec<Trace>>(part) else { return false };
        if traces.len() != self.layers.len() {
            return false;
        }
        for (creation, trace) in self.layers.iter_mut().zip(traces) {
            creation.activations.extend(trace.activations);
            let sum = &mut creation.direction;
            sum.resize(sum.len().max(trace.direction.len()), 0.0);
            sum.iter_mut().zip(trace.direction).for_each(|(sum, x)| *sum += x);
            creation.other_norm.merge(&trace.other_norm);
        }
        true
    }
}
