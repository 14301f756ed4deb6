//! What a request asks of sampling.

use fathom_model::{Error, Result};

/// How tokens are chosen and when a text ends. Names and meanings are HuggingFace's and vLLM's.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits; 0 takes the most likely token, always.
    pub temperature: f32,
    /// Keeps the `top_k` largest logits (and any equal to the smallest of them); 0 keeps all.
    pub top_k: usize,
    /// Keeps the fewest most likely tokens whose probabilities sum to at least `top_p`; 1 keeps all.
    pub top_p: f32,
    /// Key of the randomness, with the request's number and the token's position.
    pub seed: u64,
    /// Most tokens to generate.
    pub max_tokens: usize,
    /// Texts that end the generation where they first appear.
    pub stop: Vec<String>,
    /// Goes on after an end-of-text token.
    pub ignore_eos: bool,
}

impl Default for SamplingParams {
    fn default() -> SamplingParams {
        SamplingParams {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            seed: 0,
            max_tokens: 256,
            stop: Vec::new(),
            ignore_eos: false,
        }
    }
}

impl SamplingParams {
    /// Whether the most likely token is taken, always.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }

    /// Refuses what has no meaning.
    ///
    /// # Errors
    /// One sentence naming the parameter, its value and what was expected.
    pub fn validate(&self) -> Result<()> {
        let SamplingParams { temperature, top_p, .. } = *self;
        let refuse = |message: String| Err(Error::Request(message));
        if !(temperature.is_finite() && temperature >= 0.0) {
            return refuse(format!("temperature is {temperature}; expected a number ≥ 0"));
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return refuse(format!("top-p is {top_p}; expected a number above 0 and at most 1"));
        }
        if self.max_tokens == 0 {
            return refuse("max-tokens is 0; expected at least 1".to_owned());
        }
        if self.stop.iter().any(String::is_empty) {
            return refuse("a stop string is empty; expected at least one character".to_owned());
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_meaning_is_refused_by_name() {
        let good = SamplingParams::default();
        good.validate().unwrap();
        let refused = |params: SamplingParams| params.validate().unwrap_err().to_string();
        for temperature in [-0.5, f32::NAN, f32::INFINITY] {
            let message = refused(SamplingParams { temperature, ..good.clone() });
            assert!(message.contains("temperature"), "{message}");
        }
        for top_p in [0.0, -1.0, 1.5, f32::NAN] {
            let message = refused(SamplingParams { top_p, ..good.clone() });
            assert!(message.contains("top-p"), "{message}");
        }
        let message = refused(SamplingParams { max_tokens: 0, ..good.clone() });
        assert_eq!(message, "max-tokens is 0; expected at least 1");
        let message = refused(SamplingParams { stop: vec![String::new()], ..good });
        assert!(message.contains("stop string"), "{message}");
    }
}
