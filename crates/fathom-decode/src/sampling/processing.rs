//! Processing of logits before a token is chosen, greedily or by sampling.
//!
//! Definitions and order are vLLM's (0.11, `vllm/v1/sample`: `Sampler.apply_logits_processors`, the
//! built-in logits processors and `apply_penalties`):
//! 1. **min-tokens**: tokens that end a text get -∞ until the text has this many tokens;
//! 2. **logit-bias** is added;
//! 3. **repetition-penalty**: logits of tokens in prompt or text are divided by it if positive, and
//!    multiplied by it otherwise;
//! 4. **frequency-penalty** is subtracted once per occurrence in the text, then
//!    **presence-penalty** once if the token occurs.
//!
//! Temperature, min-p, top-k and top-p follow in [`crate::Distribution::from_logits`]. Greedy
//! decoding takes the argmax before those.

use fathom_model::{Error, Result};

use super::History;
use crate::SamplingParams;

/// The processing of the logits of one request.
#[derive(Clone, Debug)]
pub(super) struct Processing {
    min_tokens: usize,
    /// The tokens that end the text.
    ends: Vec<u32>,
    bias: Vec<(u32, f32)>,
    repetition: f32,
    frequency: f32,
    presence: f32,
}

impl Processing {
    /// The processing of `params` for a request whose text also ends at `eos`, for ids < `limit`.
    ///
    /// # Errors
    /// `min_tokens` is above 0 but every token ends the text.
    pub fn new(params: &SamplingParams, eos: &[u32], limit: usize) -> Result<Processing> {
        let min_tokens = params.min_tokens;
        let mut ends = Vec::new();
        if min_tokens > 0 {
            let named = params.stop_token_ids.iter().chain(eos).copied();
            ends.extend(named.filter(|&id| (id as usize) < limit));
            ends.sort_unstable();
            ends.dedup();
            if ends.len() >= limit {
                return Err(Error::Request(format!(
                    "min-tokens is {min_tokens} and every token ends a text; expected one that \
                     does not"
                )));
            }
        }
        let bias = params.logit_bias.iter().filter(|&(_, &bias)| bias != 0.0);
        Ok(Processing {
            min_tokens: if ends.is_empty() { 0 } else { min_tokens },
            ends,
            bias: bias.map(|(&id, &bias)| (id, bias)).collect(),
            repetition: params.repetition_penalty,
            frequency: params.frequency_penalty,
            presence: params.presence_penalty,
        })
    }

    /// Whether the logits after `generated` tokens of the text are changed. Once false, it stays
    /// false.
    pub fn applies(&self, generated: usize) -> bool {
        generated < self.min_tokens || !self.bias.is_empty() || self.penalises()
    }

    fn penalises(&self) -> bool {
        self.repetition != 1.0 || self.frequency != 0.0 || self.presence != 0.0
    }

    /// Processes the `logits` after `history`. Ids beyond the model's logits are ignored.
    pub fn apply(&self, logits: &mut [f32], history: &History) {
        let mut change = |id: u32, to: &dyn Fn(f32) -> f32| {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit = to(*logit);
            }
        };
        if history.generated() < self.min_tokens {
            self.ends.iter().for_each(|&id| change(id, &|_| f32::NEG_INFINITY));
        }
        for &(id, bias) in &self.bias {
            change(id, &|logit| logit + bias);
        }
        if self.penalises() {
            for (id, count) in history.counts() {
                change(id, &|logit| self.penalised(logit, count.output));
            }
        }
    }

    /// Applies the penalties to the logit of a token that occurs in prompt or text, `output` times
    /// in the text.
    fn penalised(&self, logit: f32, output: u32) -> f32 {
        if logit == f32::NEG_INFINITY {
            return logit; // excluded by min-tokens
        }
        let scaled = if logit > 0.0 { logit / self.repetition } else { logit * self.repetition };
        let once = if output > 0 { self.presence } else { 0.0 };
        let penalised = scaled - self.frequency * output as f32 - once;
        penalised.clamp(f32::MIN, f32::MAX) // infinite logits count as a broken model
    }
}
