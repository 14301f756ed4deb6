//! What a streaming pass keeps of a trace.

use crate::Grid;

/// Norms and cosines of one trace at every layer: all that detection needs, O(layers · tokens).
///
/// `l` is 0-based; hidden means `resid_post.l`, the raw output of decoder layer `l`.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceScalars {
    /// The tokens, `[T]`.
    pub token_ids: Vec<u32>,
    /// ‖h_t^l‖.
    pub hidden_norm: Grid,
    /// ‖mlp_out_t^l‖, what the layer's MLP adds.
    pub mlp_out_norm: Grid,
    /// Norm of the key after rotary, all key/value heads concatenated.
    pub key_norm: Grid,
    /// Norm of the value, all key/value heads concatenated.
    pub value_norm: Grid,
    /// Cosines with each candidate for the reference sink (definition 2.1), in the order asked for.
    pub candidates: Vec<CandidateCosines>,
    /// The last layer after the final norm, where the preset wants it.
    pub final_state: Option<FinalState>,
}

/// Cosines of every token with one candidate for the reference sink.
#[derive(Clone, Debug, PartialEq)]
pub struct CandidateCosines {
    /// The candidate.
    pub position: usize,
    /// cos(h_t^l, h_position^l); 0 where either vector is zero.
    pub cosine: Grid,
}

/// As [`TraceScalars`], of the state after the final norm: HuggingFace's `hidden_states[-1]`.
#[derive(Clone, Debug, PartialEq)]
pub struct FinalState {
    /// Norms, `[T]`.
    pub norm: Vec<f32>,
    /// Cosines with each candidate, `[candidates][T]`.
    pub cosine: Vec<Vec<f32>>,
}

impl TraceScalars {
    /// Number of decoder layers, L.
    pub fn layers(&self) -> usize {
        self.hidden_norm.layers()
    }

    /// Number of tokens, T.
    pub fn tokens(&self) -> usize {
        self.token_ids.len()
    }
}
