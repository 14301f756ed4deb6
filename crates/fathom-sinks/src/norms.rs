//! Norms of sinks and of the average token, per layer (paper Fig. 1).

use crate::{Detection, Grid, Phases, TraceScalars};

/// Norms of one token, or of the average token, at every layer.
#[derive(Clone, Debug, PartialEq)]
pub struct NormCurve {
    /// ‖h‖, `[L]`.
    pub hidden: Vec<f32>,
    /// Key norm, `[L]`.
    pub key: Vec<f32>,
    /// Value norm, `[L]`.
    pub value: Vec<f32>,
}

/// The norm curves of one trace.
#[derive(Clone, Debug, PartialEq)]
pub struct NormCurves {
    /// (position, curve) of every sink; of the reference alone if there are no sinks.
    pub tokens: Vec<(usize, NormCurve)>,
    /// Mean over all other tokens; `None` if there are none.
    pub average: Option<NormCurve>,
}

/// Norm curves of the sinks of a trace in the phases that count, and of its average other token.
pub fn norm_curves(scalars: &TraceScalars, detection: &Detection, phases: Phases) -> NormCurves {
    let mut shown = detection.sink_positions(phases);
    if shown.is_empty() && detection.reference < scalars.tokens() {
        shown.push(detection.reference);
    }
    let curve = |read: &dyn Fn(&Grid) -> Vec<f32>| NormCurve {
        hidden: read(&scalars.hidden_norm),
        key: read(&scalars.key_norm),
        value: read(&scalars.value_norm),
    };

    let others: Vec<usize> =
        (0..scalars.tokens()).filter(|t| shown.binary_search(t).is_err()).collect();
    let mean = |grid: &Grid| {
        let mean_of = |row: &[f32]| {
            let sum: f64 = others.iter().map(|t| f64::from(row[*t])).sum();
            (sum / others.len() as f64) as f32
        };
        (0..grid.layers()).map(|l| mean_of(grid.row(l))).collect()
    };
    NormCurves {
        average: (!others.is_empty()).then(|| curve(&mean)),
        tokens: shown.iter().map(|t| (*t, curve(&|grid| grid.column(*t)))).collect(),
    }
}
