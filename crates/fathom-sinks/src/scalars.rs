//! The scalars that a streaming pass stores for a trace.

use fathom_backend::Massive;

use crate::Grid;

/// Norms and cosines of one trace at every layer: all that detection needs, in O(layers · tokens)
/// memory.
///
/// Layers `l` are 0-based. Hidden means `resid_post.l`, the output of decoder layer `l` before the
/// final norm.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceScalars {
    /// The tokens, `[T]`.
    pub token_ids: Vec<u32>,
    /// ‖h_t^l‖.
    pub hidden_norm: Grid,
    /// ‖mlp_out_t^l‖, the output of the layer's MLP.
    pub mlp_out_norm: Grid,
    /// Norm of the key after rotary embedding, over all key/value heads concatenated.
    pub key_norm: Grid,
    /// Norm of the value, over all key/value heads concatenated.
    pub value_norm: Grid,
    /// Cosines with each candidate for the reference sink, in the order of the options: Reference
    /// sink and span (docs/definitions.md).
    pub candidates: Vec<CandidateCosines>,
    /// The last layer after the final norm, if the preset uses it.
    pub final_state: Option<FinalState>,
    /// The massive activations of the hidden state, `[L]`: (position, activations) of the tokens
    /// that have any, ascending; if they were measured.
    pub massive: Option<Vec<Vec<(usize, Massive)>>>,
}

/// Cosines of every token with one candidate for the reference sink.
#[derive(Clone, Debug, PartialEq)]
pub struct CandidateCosines {
    /// Position of the candidate.
    pub position: usize,
    /// cos(h_t^l, h_position^l); 0 if either vector is zero.
    pub cosine: Grid,
}

/// Norms and cosines of the state after the final norm, HuggingFace's `hidden_states[-1]`.
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

    /// All numbers of positions `[T]`, in a fixed order. Cosines come with the position of their
    /// candidate.
    pub(crate) fn columns(&mut self) -> impl Iterator<Item = (Option<usize>, &mut Vec<f32>)> {
        let norms = [
            &mut self.hidden_norm,
            &mut self.mlp_out_norm,
            &mut self.key_norm,
            &mut self.value_norm,
        ];
        let positions: Vec<usize> = self.candidates.iter().map(|c| c.position).collect();
        let (norm, cosine) = match &mut self.final_state {
            Some(FinalState { norm, cosine }) => (Some(norm), &mut cosine[..]),
            None => (None, &mut [][..]),
        };
        let norms = norms.into_iter().flat_map(Grid::rows_mut).chain(norm);
        let cosines = self.candidates.iter_mut().flat_map(|candidate| {
            let position = candidate.position;
            candidate.cosine.rows_mut().map(move |row| (Some(position), row))
        });
        let last = positions.into_iter().map(Some).zip(cosine);
        norms.map(|row| (None, row)).chain(cosines).chain(last)
    }

    /// Truncates the measurements to `tokens` positions, or extends them with zeros. If that
    /// removes a candidate's position, all cosines with it become 0.
    pub(crate) fn resize(&mut self, tokens: usize) {
        for grid in [
            &mut self.hidden_norm,
            &mut self.mlp_out_norm,
            &mut self.key_norm,
            &mut self.value_norm,
        ] {
            grid.resize(tokens);
        }
        for layer in self.massive.iter_mut().flatten() {
            layer.retain(|(position, _)| *position < tokens);
        }
        for candidate in self.candidates.iter_mut().filter(|c| c.position >= tokens) {
            candidate.cosine.resize(0);
        }
        self.candidates.iter_mut().for_each(|candidate| candidate.cosine.resize(tokens));
        if let Some(state) = &mut self.final_state {
            state.norm.resize(tokens, 0.0);
            for (candidate, cosine) in self.candidates.iter().zip(&mut state.cosine) {
                if candidate.position >= tokens {
                    cosine.clear();
                }
                cosine.resize(tokens, 0.0);
            }
        }
    }
}
