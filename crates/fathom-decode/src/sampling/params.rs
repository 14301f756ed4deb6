//! Sampling parameters.

use std::collections::BTreeMap;

use fathom_model::{Error, Result};

/// Maximum number of `logit_bias` entries, as in vLLM's GPU sampler.
const MAX_LOGIT_BIAS: usize = 1024;

/// Maximum number of stop token ids, as in vLLM's GPU sampler.
const MAX_STOP_TOKEN_IDS: usize = 128;

/// How tokens are chosen and when a text ends. Names, meanings and ranges are those of vLLM.
///
/// ```
/// use fathom_decode::SamplingParams;
///
/// let params = SamplingParams { temperature: 0.7, top_p: 0.9, ..SamplingParams::default() };
/// assert!(params.validate().is_ok());
/// let refused = SamplingParams { top_p: 1.5, ..params }.validate();
/// assert_eq!(
///     refused.err().map(|error| error.to_string()).as_deref(),
///     Some("top-p is 1.5; expected a number above 0 and at most 1"),
/// );
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits. 0 is greedy decoding.
    pub temperature: f32,
    /// Keeps the `top_k` largest logits (and any equal to the smallest of them); 0 keeps all.
    pub top_k: usize,
    /// Keeps the fewest most likely tokens whose probabilities sum to at least `top_p`; 1 keeps
    /// all.
    pub top_p: f32,
    /// Keeps the tokens at least `min_p` times as likely as the most likely one; 0 keeps all.
    pub min_p: f32,
    /// Above 1: tokens of prompt and text become less likely, independent of their count.
    pub repetition_penalty: f32,
    /// Subtracted from the logits of tokens in the text.
    pub presence_penalty: f32,
    /// Subtracted from the logits of tokens once per occurrence in the text.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens.
    pub logit_bias: BTreeMap<u32, f32>,
    /// Key of the random numbers, with the request's number and the token's position.
    pub seed: u64,
    /// Maximum number of tokens to generate.
    pub max_tokens: usize,
    /// No end-of-text token, stop token or stop string ends a text of fewer tokens.
    pub min_tokens: usize,
    /// Tokens that end the text, independent of `ignore_eos`.
    pub stop_token_ids: Vec<u32>,
    /// Strings that end the text at their first occurrence.
    pub stop: Vec<String>,
    /// Continues after an end-of-text token.
    pub ignore_eos: bool,
}

impl Default for SamplingParams {
    fn default() -> SamplingParams {
        SamplingParams {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: BTreeMap::new(),
            seed: 0,
            max_tokens: 256,
            min_tokens: 0,
            stop_token_ids: Vec::new(),
            stop: Vec::new(),
            ignore_eos: false,
        }
    }
}

impl SamplingParams {
    /// Whether decoding is greedy.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }

    /// Checks the parameters.
    ///
    /// # Errors
    /// One sentence with the parameter, its value and the expected values.
    pub fn validate(&self) -> Result<()> {
        let SamplingParams { temperature, top_p, min_p, repetition_penalty, .. } = *self;
        let refuse = |message: String| Err(Error::Request(message));
        if !(temperature.is_finite() && temperature >= 0.0) {
            return refuse(format!("temperature is {temperature}; expected a number ≥ 0"));
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return refuse(format!("top-p is {top_p}; expected a number above 0 and at most 1"));
        }
        if !(0.0..=1.0).contains(&min_p) {
            return refuse(format!("min-p is {min_p}; expected a number from 0 to 1"));
        }
        if !(repetition_penalty.is_finite() && repetition_penalty > 0.0) {
            return refuse(format!(
                "repetition-penalty is {repetition_penalty}; expected a number above 0"
            ));
        }
        for (name, penalty) in [
            ("presence-penalty", self.presence_penalty),
            ("frequency-penalty", self.frequency_penalty),
        ] {
            if !(-2.0..=2.0).contains(&penalty) {
                return refuse(format!("{name} is {penalty}; expected a number from -2 to 2"));
            }
        }
        let odd = self.logit_bias.iter().find(|&(_, bias)| !(-100.0..=100.0).contains(bias));
        if let Some((id, bias)) = odd {
            return refuse(format!(
                "logit-bias of token {id} is {bias}; expected a number from -100 to 100"
            ));
        }
        for (name, count, most) in [
            ("logit-bias", self.logit_bias.len(), MAX_LOGIT_BIAS),
            ("stop-token-ids", self.stop_token_ids.len(), MAX_STOP_TOKEN_IDS),
        ] {
            if count > most {
                return refuse(format!("{name} names {count} tokens; expected at most {most}"));
            }
        }
        if self.max_tokens == 0 {
            return refuse("max-tokens is 0; expected at least 1".to_owned());
        }
        if self.min_tokens > self.max_tokens {
            return refuse(format!(
                "min-tokens is {}; expected at most {}, which is max-tokens",
                self.min_tokens, self.max_tokens
            ));
        }
        if self.stop.iter().any(String::is_empty) {
            return refuse("a stop string is empty; expected at least one character".to_owned());
        }
        Ok(())
    }

    /// Checks that all token ids are in a vocabulary of `vocab` tokens.
    ///
    /// # Errors
    /// One sentence with the parameter and the token.
    pub fn validate_ids(&self, vocab: usize) -> Result<()> {
        let biased = self.logit_bias.keys().map(|id| ("logit-bias", id));
        let stops = self.stop_token_ids.iter().map(|id| ("stop-token-ids", id));
        match biased.chain(stops).find(|&(_, &id)| id as usize >= vocab) {
            None => Ok(()),
            Some((name, id)) => Err(Error::Request(format!(
                "{name} names token {id}; expected ids below {vocab}, the target's vocabulary"
            ))),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn invalid_parameters_are_refused_by_name() {
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

    #[test]
    fn ranges_include_their_ends_and_errors_name_the_parameter() {
        type Set = fn(&mut SamplingParams, f32);
        let cases: [(&str, Set, &[f32], &[f32]); 5] = [
            ("min-p", |p, x| p.min_p = x, &[0.0, 1.0], &[-0.01, 1.01, f32::NAN]),
            (
                "repetition-penalty",
                |p, x| p.repetition_penalty = x,
                &[f32::MIN_POSITIVE, 1e9],
                &[0.0, -1.0, f32::INFINITY, f32::NAN],
            ),
            ("presence-penalty", |p, x| p.presence_penalty = x, &[-2.0, 2.0], &[-2.1, 2.1]),
            ("frequency-penalty", |p, x| p.frequency_penalty = x, &[-2.0, 2.0], &[-2.1, f32::NAN]),
            (
                "logit-bias of token 7",
                |p, x| p.logit_bias = [(7, x)].into(),
                &[-100.0, 100.0],
                &[-100.5, f32::INFINITY, f32::NAN],
            ),
        ];
        for (name, set, good, bad) in cases {
            let with = |x: f32| {
                let mut params = SamplingParams::default();
                set(&mut params, x);
                params.validate()
            };
            good.iter().for_each(|&x| with(x).unwrap());
            for &x in bad {
                let message = with(x).unwrap_err().to_string();
                assert!(message.starts_with(&format!("{name} is {x}; expected")), "{message}");
            }
        }
    }

    #[test]
    fn token_lists_are_limited_and_in_the_vocabulary() {
        let min = SamplingParams { min_tokens: 6, max_tokens: 5, ..SamplingParams::default() };
        let message = min.validate().unwrap_err().to_string();
        assert_eq!(message, "min-tokens is 6; expected at most 5, which is max-tokens");
        let bias = |n: u32| (0..n).map(|id| (id, 1.0)).collect();
        let biased = |n| SamplingParams { logit_bias: bias(n), ..SamplingParams::default() };
        biased(1024).validate().unwrap();
        let message = biased(1025).validate().unwrap_err().to_string();
        assert_eq!(message, "logit-bias names 1025 tokens; expected at most 1024");
        let stops =
            |n| SamplingParams { stop_token_ids: (0..n).collect(), ..SamplingParams::default() };
        stops(128).validate().unwrap();
        assert!(stops(129).validate().unwrap_err().to_string().contains("stop-token-ids"));

        biased(8).validate_ids(8).unwrap();
        let message = biased(9).validate_ids(8).unwrap_err().to_string();
        assert_eq!(
            message,
            "logit-bias names token 8; expected ids below 8, the target's vocabulary"
        );
        let message = stops(9).validate_ids(8).unwrap_err().to_string();
        assert!(message.starts_with("stop-token-ids names token 8;"), "{message}");
    }
}
