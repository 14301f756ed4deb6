//! How long a model takes, for comparison with what the machine could do.

use std::time::{Duration, Instant};

use fathom_kernels::Backend;
use serde::Serialize;

use crate::{
    LogitRows, Model, ModelConfig, PREFILL_CHUNK, Result, Sequence, SequenceOptions, Step,
};

/// Multiplications and additions of a prefill of `tokens` tokens, without logits: two for each weight of the
/// layers' matrices and each token; and for each query head, each token and each key it sees (not the upper
/// half of the triangle, which is never computed) two of `q · k` and two of `p · v` for each component.
pub fn prefill_flops(config: &ModelConfig, tokens: usize) -> f64 {
    let ModelConfig { layers, hidden, intermediate, heads, kv_heads, head_dim, .. } = *config;
    let qkvo = hidden * head_dim * (2 * heads + 2 * kv_heads);
    let linear = 2.0 * ((qkvo + 3 * hidden * intermediate) * layers * tokens) as f64;
    let seen = |window: &Option<usize>| {
        let window = window.unwrap_or(tokens).min(tokens);
        // The first `window` rows see 1, 2, … keys, the others `window` each.
        window * (window + 1) / 2 + (tokens - window) * window
    };
    let keys: usize = config.windows.iter().map(seen).sum();
    linear + 4.0 * (heads * head_dim) as f64 * keys as f64
}

/// `tokens` ids within the vocabulary. Any do: the work does not depend on them.
pub fn synthetic_ids(config: &ModelConfig, tokens: usize) -> Vec<u32> {
    let vocab = config.vocab as u64;
    // A large prime factor spreads them.
    (0..tokens as u64).map(|i| (i * 2_654_435_761 % vocab) as u32).collect()
}

/// How fast sequences are decoded together.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct DecodeSpeed {
    /// Sequences.
    pub batch: usize,
    /// Tokens of each before the first step.
    pub context: usize,
    /// Seconds of a step of all of them; the median.
    pub step_s: f64,
    /// Tokens per second, of all sequences together.
    pub tokens_per_s: f64,
    /// Bytes of weights a step reads in each second of it.
    pub bytes_per_s: f64,
    /// Times as long as a step of the first batch size measured.
    pub times_first: f64,
}

/// Measures greedy decoding at each of `batches` sequences of `context` tokens, in turn `repeats` times.
///
/// # Errors
/// As [`Model::forward`].
pub fn decode_speed<B: Backend>(
    model: &Model<B>,
    batches: &[usize],
    context: usize,
    repeats: usize,
) -> Result<Vec<DecodeSpeed>> {
    const STEPS: usize = 24;
    let mut times = vec![Vec::new(); batches.len()];
    for _ in 0..repeats.max(1) {
        for (batch, times) in batches.iter().zip(&mut times) {
            times.extend(decode_steps(model, *batch, context, STEPS)?);
        }
    }
    let medians: Vec<f64> = times
        .into_iter()
        .map(|mut times| {
            times.sort_unstable();
            times[times.len() / 2].as_secs_f64()
        })
        .collect();
    let speed = |(&batch, &step_s): (&usize, &f64)| DecodeSpeed {
        batch,
        context,
        step_s,
        tokens_per_s: batch as f64 / step_s,
        bytes_per_s: model.bytes_read() as f64 / step_s,
        times_first: step_s / medians[0],
    };
    Ok(batches.iter().zip(&medians).map(speed).collect())
}

/// The times of `steps` greedy steps of `batch` sequences at once.
fn decode_steps<B: Backend>(
    model: &Model<B>,
    batch: usize,
    context: usize,
    steps: usize,
) -> Result<Vec<Duration>> {
    let prompt = synthetic_ids(model.config(), context.max(1));
    let mut sequences: Vec<Sequence<B>> =
        (0..batch).map(|_| model.new_sequence(SequenceOptions::default())).collect();
    for sequence in &mut sequences {
        model.prefill(sequence, &prompt, PREFILL_CHUNK, None, &mut |_| {})?;
    }
    let mut next = vec![prompt[0]; batch];
    let mut times = Vec::with_capacity(steps);
    for _ in 0..steps {
        let start = Instant::now();
        let mut step: Vec<Step<'_, B>> = sequences
            .iter_mut()
            .zip(next.chunks(1))
            .map(|(sequence, tokens)| Step { sequence, tokens, logits: LogitRows::Last })
            .collect();
        let chosen = model.forward_argmax(&mut step, model.config().vocab)?;
        next = chosen.into_iter().flatten().collect();
        times.push(start.elapsed());
    }
    Ok(times)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::SyntheticShape;

    /// Counted by hand: 2 layers, hidden 4, intermediate 8, 2 heads of 2 over 1, 3 tokens.
    #[test]
    fn a_prefills_operations_are_counted() {
        let shape = SyntheticShape {
            layers: 2,
            hidden: 4,
            intermediate: 8,
            heads: 2,
            kv_heads: 1,
            vocab: 16,
            tied: true,
        };
        let dir = tempfile::tempdir().unwrap();
        crate::write_synthetic(dir.path(), &shape, 1).unwrap();
        let mut config = ModelConfig::from_dir(dir.path()).unwrap();
        let weights = 4 * 4 + 2 * 4 * 2 + 4 * 4 + 3 * 4 * 8; // q, k and v, o, MLP
        let per_layer = 2 * weights * 3;
        let attention = |keys: usize| 4 * 2 * 2 * keys;
        assert_eq!(prefill_flops(&config, 3), (2 * (per_layer + attention(6))) as f64);
        config.windows = vec![None, Some(2)];
        let expected = 2 * per_layer + attention(6) + attention(5);
        assert_eq!(prefill_flops(&config, 3), expected as f64);
    }
}
