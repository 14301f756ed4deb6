//! Speed of a model, to compare with the CPU's limits.

use std::time::Instant;

use fathom_backend::Backend;
use fathom_model::{
    LogitRows, ModelConfig, PREFILL_CHUNK, Result, Sequence, SequenceOptions, Step, Transformer,
};
use serde::Serialize;

use crate::median;

/// Floating-point operations of a prefill of `tokens` tokens without logits.
///
/// Matrix products take two operations per weight and token. Attention takes four per token,
/// visible key, query head and component: two for `q · k` and two for `p · v`. Masked keys are not
/// computed. The last layer computes only keys and values.
pub fn prefill_flops(config: &ModelConfig, tokens: usize) -> f64 {
    let ModelConfig { layers, hidden, intermediate, heads, kv_heads, head_dim, .. } = *config;
    let kv = hidden * head_dim * 2 * kv_heads;
    let qo_mlp = hidden * head_dim * 2 * heads + 3 * hidden * intermediate;
    let linear = 2.0 * ((kv * layers + qo_mlp * (layers - 1)) * tokens) as f64;
    let seen = |window: &Option<usize>| {
        let window = window.unwrap_or(tokens).min(tokens);
        // The first `window` rows see 1, 2, … keys; the others see `window` each.
        window * (window + 1) / 2 + (tokens - window) * window
    };
    let keys: usize = config.windows[..layers - 1].iter().map(seen).sum();
    linear + 4.0 * (heads * head_dim) as f64 * keys as f64
}

/// `tokens` ids within the vocabulary. Any ids will do, because the work does not depend on them.
pub fn synthetic_ids(config: &ModelConfig, tokens: usize) -> Vec<u32> {
    let vocab = config.vocab as u64;
    // Multiplying by a large prime spreads them.
    (0..tokens as u64).map(|i| (i * 2_654_435_761 % vocab) as u32).collect()
}

/// Decoding speed of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct DecodeSpeed {
    /// Number of sequences.
    pub batch: usize,
    /// Tokens of each sequence before the first step.
    pub context: usize,
    /// Median time of a step of all sequences, in seconds.
    pub step_s: f64,
    /// Tokens per second of all sequences together.
    pub tokens_per_s: f64,
    /// Median fraction of the memory limit that was reached: the time to read all weights once, at
    /// the bandwidth measured just before and after a step, divided by the time of the step.
    pub of_bandwidth: f64,
    /// Median of the step time relative to that of the first batch size.
    pub times_first: f64,
}

/// Measures greedy decoding for each batch size of `batches`, with `context` tokens per sequence.
/// The batch sizes alternate step by step, so that interference affects all of them alike.
/// `bandwidth` is called before and after every step and returns the current memory bandwidth in
/// bytes per second.
///
/// # Errors
/// As [`Transformer::forward`].
pub fn decode_speed<B: Backend>(
    model: &Transformer<B>,
    batches: &[usize],
    context: usize,
    steps: usize,
    bandwidth: &mut dyn FnMut() -> f64,
) -> Result<Vec<DecodeSpeed>> {
    let mut all: Vec<Decoding<B>> = Vec::with_capacity(batches.len());
    for batch in batches {
        all.push(Decoding::new(model, *batch, context)?);
    }
    let weights = model.bytes_read() as f64;
    let mut before = bandwidth();
    for _ in 0..steps.max(1) {
        for decoding in &mut all {
            let step_s = decoding.step(model)?;
            let after = bandwidth();
            decoding.step_s.push(step_s);
            decoding.of_bandwidth.push(weights / ((before + after) / 2.0) / step_s);
            before = after;
        }
    }
    let first = all.first().map_or_else(Vec::new, |first| first.step_s.clone());
    let speed = |decoding: Decoding<B>| {
        let batch = decoding.sequences.len();
        let times_first = decoding.step_s.iter().zip(&first).map(|(step, first)| step / first);
        let times_first = median(times_first.collect());
        let step_s = median(decoding.step_s);
        DecodeSpeed {
            batch,
            context,
            step_s,
            tokens_per_s: batch as f64 / step_s,
            of_bandwidth: median(decoding.of_bandwidth),
            times_first,
        }
    };
    Ok(all.into_iter().map(speed).collect())
}

/// A batch of sequences, and the measurements of its steps.
struct Decoding<B: Backend> {
    sequences: Vec<Sequence<B>>,
    next: Vec<u32>,
    step_s: Vec<f64>,
    of_bandwidth: Vec<f64>,
}

impl<B: Backend> Decoding<B> {
    fn new(model: &Transformer<B>, batch: usize, context: usize) -> Result<Decoding<B>> {
        let prompt = synthetic_ids(model.config(), context.max(1));
        let mut sequences: Vec<Sequence<B>> =
            (0..batch).map(|_| model.new_sequence(SequenceOptions::default())).collect();
        for sequence in &mut sequences {
            model.prefill(sequence, &prompt, PREFILL_CHUNK, None, &mut |_| {})?;
        }
        let next = vec![prompt[0]; batch];
        Ok(Decoding { sequences, next, step_s: Vec::new(), of_bandwidth: Vec::new() })
    }

    /// Decodes a greedy token for each sequence; returns the time in seconds.
    fn step(&mut self, model: &Transformer<B>) -> Result<f64> {
        let start = Instant::now();
        let mut step: Vec<Step<'_, B>> = self
            .sequences
            .iter_mut()
            .zip(self.next.chunks(1))
            .map(|(sequence, tokens)| Step { sequence, tokens, logits: LogitRows::Last })
            .collect();
        let chosen = model.forward_argmax(&mut step, model.config().vocab, None)?;
        self.next = chosen.into_iter().flatten().collect();
        Ok(start.elapsed().as_secs_f64())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use fathom_model::{SyntheticShape, write_synthetic};

    use super::*;

    /// Counted by hand: 3 layers, hidden 4, intermediate 8, 2 query heads and 1 key/value head of
    /// width 2, 3 tokens.
    #[test]
    fn a_prefills_operations_are_counted() {
        let shape = SyntheticShape {
            layers: 3,
            hidden: 4,
            intermediate: 8,
            heads: 2,
            kv_heads: 1,
            vocab: 16,
            tied: true,
        };
        let dir = tempfile::tempdir().unwrap();
        write_synthetic(dir.path(), &shape, 1).unwrap();
        let mut config = ModelConfig::from_dir(dir.path()).unwrap();
        let weights = 4 * 4 + 2 * 4 * 2 + 4 * 4 + 3 * 4 * 8; // q, k and v, o, MLP
        let linear = 2 * (2 * weights + 2 * 4 * 2) * 3; // two full layers, k and v of the last
        let attention = |keys: usize| 4 * 2 * 2 * keys;
        assert_eq!(prefill_flops(&config, 3), (linear + 2 * attention(6)) as f64);
        config.windows = vec![None, Some(2), None];
        let expected = linear + attention(6) + attention(5);
        assert_eq!(prefill_flops(&config, 3), expected as f64);
    }
}
