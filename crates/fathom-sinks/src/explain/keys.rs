//! Which keys a pass hides from later queries, and how much attention the others receive: "Hidden
//! keys" (docs/definitions.md).

use fathom_backend::{Backend, KeyMask};
use fathom_model::{Result, Sequence, Transformer};

/// Tokens of each sequence in one step. A policy that depends on the attention decides only at
/// multiples of it.
pub(super) const CHUNK: usize = 32;

/// Which keys are hidden from later queries. Whatever it decides is a mask for the one attention
/// kernel.
#[derive(Clone, Debug)]
pub(super) enum KeyPolicy {
    /// A mask that is known before the pass.
    Mask(KeyMask),
    /// Each layer keeps the keys that have received the most attention so far, and the most recent
    /// ones: H2O (Zhang et al. 2023, arXiv:2306.14048), decided for all heads of a layer together.
    HeavyHitters {
        /// Maximum number of keys that a query sees. Larger than [`CHUNK`].
        budget: usize,
    },
}

impl KeyPolicy {
    /// Whether it depends on the attention that keys have received.
    pub fn needs_attention(&self) -> bool {
        matches!(self, KeyPolicy::HeavyHitters { .. })
    }

    /// Prepares a new sequence.
    pub fn begin<B: Backend>(&self, sequence: &mut Sequence<B>) {
        if let KeyPolicy::Mask(mask) = self {
            *sequence.key_mask_mut() = mask.clone();
        }
    }

    /// Decides what the next [`CHUNK`] tokens do not see. Called before each chunk.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn before_chunk<B: Backend>(
        &self,
        model: &Transformer<B>,
        sequence: &mut Sequence<B>,
    ) -> Result<()> {
        let KeyPolicy::HeavyHitters { budget } = *self else { return Ok(()) };
        let tokens = sequence.len();
        // The chunk's own keys need room too.
        let keep = budget.saturating_sub(CHUNK);
        for layer in 0..model.config().layers {
            let Some(received) = model.attention_received(sequence, layer)? else { continue };
            let received = mean_over_heads(&received, tokens);
            let mask = sequence.key_mask_mut();
            for key in light(&received, keep, &|key| mask.hides(layer, key, tokens)) {
                mask.hide(layer, key, tokens);
            }
        }
        Ok(())
    }
}

/// The keys that are dropped so that `keep` remain: the most recent half of these, and those of the
/// earlier keys that received the most attention, the first of equals.
fn light(received: &[f64], keep: usize, dropped: &dyn Fn(usize) -> bool) -> Vec<usize> {
    let recent = (keep / 2).min(received.len());
    let earlier = 0..received.len() - recent;
    let mut left: Vec<usize> = earlier.filter(|key| !dropped(*key)).collect();
    left.sort_by(|a, b| received[*b].total_cmp(&received[*a])); // stable
    left.split_off((keep - recent).min(left.len()))
}

/// The attention that the tokens received at one layer.
pub(super) struct LayerAttention {
    /// The mean over heads of the sums of attention weights from all later positions and its own,
    /// `[T]`.
    pub received: Vec<f64>,
    /// Entropy in nats of the attention of a position: the mean over heads and positions.
    pub entropy: f64,
}

impl LayerAttention {
    /// The attention of every layer; empty if the sequence does not accumulate it.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn of<B: Backend>(
        model: &Transformer<B>,
        sequence: &Sequence<B>,
    ) -> Result<Vec<LayerAttention>> {
        let (layers, tokens) = (model.config().layers, sequence.len());
        let of_layer = |layer| {
            let sums = model.attention_received(sequence, layer)?;
            let entropies = model.attention_entropy(sequence, layer)?;
            Ok(sums.zip(entropies).map(|(sums, entropies)| LayerAttention {
                received: mean_over_heads(&sums, tokens),
                entropy: entropies.iter().sum::<f64>() / entropies.len() as f64,
            }))
        };
        (0..layers).filter_map(|layer| of_layer(layer).transpose()).collect()
    }
}

/// `[heads, tokens]` to `[tokens]`.
fn mean_over_heads(sums: &[f64], tokens: usize) -> Vec<f64> {
    let mut mean = vec![0.0; tokens];
    for head in sums.chunks_exact(tokens.max(1)) {
        mean.iter_mut().zip(head).for_each(|(mean, sum)| *mean += sum);
    }
    let heads = (sums.len() / tokens.max(1)) as f64;
    mean.iter_mut().for_each(|mean| *mean /= heads);
    mean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn light_keys_are_dropped_and_recent_and_heavy_ones_stay() {
        let received = [5.0, 1.0, 3.0, 3.0, 0.5, 0.1, 0.2];
        // Of four keys, two are recent: 5 and 6.
        assert_eq!(light(&received, 4, &|_| false), [3, 1, 4]);
        assert_eq!(light(&received, 4, &|key| key == 0), [1, 4]);
        assert_eq!(light(&received, 4, &|key| key < 3), Vec::<usize>::new());
        assert_eq!(light(&received, 100, &|_| false), Vec::<usize>::new());
        assert_eq!(light(&[], 4, &|_| false), Vec::<usize>::new());
    }

    #[test]
    fn attention_is_averaged_over_heads() {
        assert_eq!(mean_over_heads(&[1.5, 0.5, 2.0, 0.0], 2), [1.75, 0.25]);
        assert_eq!(mean_over_heads(&[], 0), Vec::<f64>::new());
    }
}
