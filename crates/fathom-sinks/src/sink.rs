//! A sink token.

use serde::{Deserialize, Serialize};

use crate::{Class, TraceScalars};

/// A token that is a sink at some layers.
#[derive(Clone, Debug, PartialEq)]
pub struct Sink {
    /// Position in the trace.
    pub position: usize,
    /// The token id.
    pub token_id: u32,
    /// The token's text, if a tokenizer was available.
    pub token_text: Option<String>,
    /// The layers at which it is a sink, ascending, not empty.
    pub layers: Vec<usize>,
    /// The class of the sink.
    pub class: Class,
    /// Cosines and norms; absent in published files.
    pub measures: Option<Measures>,
    /// Sink score, averaged over heads, at every layer of the model, `[L]`, if attention was
    /// measured: Sink score (docs/definitions.md).
    pub sink_score: Option<Vec<f32>>,
}

/// Cosines and norms of a sink. Attention of layer l reads the output of layer l-1, so the sink
/// first affects the key and value of l_start + 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measures {
    /// Smallest cosine with the reference over its layers; |cosine| with the preset `upstream`.
    pub min_cosine: f32,
    /// Mean cosine over its layers; |cosine| with the preset `upstream`.
    pub mean_cosine: f32,
    /// ‖h‖ at l_start.
    pub hidden_norm: f32,
    /// ‖mlp_out‖ at l_start, the vector that creates the sink and sets its strength and lifetime.
    pub mlp_out_norm: f32,
    /// Key norm at l_start + 1; absent if l_start is the last layer.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub key_norm: Option<f32>,
    /// Value norm at l_start + 1; absent if l_start is the last layer.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub value_norm: Option<f32>,
}

impl Sink {
    /// The first layer at which it is a sink.
    pub fn l_start(&self) -> usize {
        self.layers.first().copied().unwrap_or(0)
    }

    /// The number of layers at which it is a sink.
    pub fn lifetime(&self) -> usize {
        self.layers.len()
    }

    /// Layers between its first and its last at which it is not a sink.
    pub fn gaps(&self) -> Vec<usize> {
        let pairs = self.layers.windows(2);
        pairs.flat_map(|pair| pair[0] + 1..pair[1]).collect()
    }
}

impl Measures {
    /// Collects the measures of a sink at `position`, given its cosines over its layers.
    pub(crate) fn new(
        scalars: &TraceScalars,
        position: usize,
        l_start: usize,
        cosines: &[f32],
    ) -> Measures {
        let attended = (l_start + 1 < scalars.layers()).then_some(l_start + 1);
        let sum: f64 = cosines.iter().copied().map(f64::from).sum();
        Measures {
            min_cosine: cosines.iter().copied().fold(1.0, f32::min),
            mean_cosine: (sum / cosines.len().max(1) as f64) as f32,
            hidden_norm: scalars.hidden_norm.at(l_start, position),
            mlp_out_norm: scalars.mlp_out_norm.at(l_start, position),
            key_norm: attended.map(|l| scalars.key_norm.at(l, position)),
            value_norm: attended.map(|l| scalars.value_norm.at(l, position)),
        }
    }
}
