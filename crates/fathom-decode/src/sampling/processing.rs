//! What changes logits before a token is chosen from them, greedily or not.
//!
//! Definitions and order are vLLM's (0.11, `vllm/v1/sample`: `Sampler.apply_logits_processors`, the
//! built-in logits processors and `apply_penalties`):
//! 1. **min-tokens**: the tokens that end a text are ruled out until that many tokens are there;
//! 2. **logit-bias** is added;
//! 3. **repetition-penalty**: the logits of tokens of prompt and text are divided by it where they
//!    are above 0, and multiplied where not;
//! 4. **frequency-penalty** is subtracted as often as the token is in the text, then
//!    **presence-penalty** once where it is.
//!
//! Temperature, min-p, top-k and top-p follow in [`crate::Distribution::from_logits`]; the most
//! likely token is that of the logits as they are before those.

use fathom_model::{Error, Result};

use super::History;
use crate::SamplingParams;

/// What is done to the logits of one request.
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
    /// What `params` ask of a request whose text also ends at `eos`, over the ids below `limit`.
    ///
    /// # Errors
    /// Min-tokens with every token an end: none is left to choose.
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
                    "min-tokens is {min_tokens} and every token ends a text; expected one that does not"
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

    /// Whether anything is done to the logits after `generated` tokens of the text. Once not, never
    /// again.
    pub fn applies(&self, generated: usize) -> bool {
        generated < self.min_tokens || !self.bias.is_empty() || self.penalises()
    }

    fn penalises(&self) -> bool {
        self.repetition != 1.0 || self.frequency != 0.0 || self.presence != 0.0
    }

    /// Changes the `logits` that follow `history`. A model may have fewer ids than are named.
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

    /// The logit of a token that is in prompt or text, `output` times in the text.
    fn penalised(&self, logit: f32, output: u32) -> f32 {
        if logit == f32::NEG_INFINITY {
            return logit; // ruled out
        }
        let scaled = if logit > 0.0 { logit / self.repetition } else { logit * self.repetition };
        let once = if output > 0 { self.presence } else { 0.0 };
        let penalised = scaled - self.frequency * output as f32 - once;
        penalised.clamp(f32::MIN, f32::MAX) // an extreme penalty is no broken model
    }
}
