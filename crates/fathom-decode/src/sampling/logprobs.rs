//! Log-probabilities of the tokens of a text.

use std::cmp::Ordering;

use fathom_model::{Error, Result};

/// The log-probabilities at the position of one token: the target's log-softmax of its unprocessed
/// logits, before min-tokens, bias, penalties, constraint, temperature, min-p, top-k and top-p.
/// They have the same bits in every mode and batch.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// Of the token itself.
    pub logprob: f32,
    /// The most likely tokens, the most likely first; ties go to the lower id.
    pub top: Vec<(u32, f32)>,
}

impl TokenLogprobs {
    /// Of `token` and the `top` most likely ids, from a row of logits: x - ln Σ exp(x), over the
    /// ids < `limit`.
    ///
    /// ```
    /// use fathom_decode::TokenLogprobs;
    ///
    /// # fn main() -> fathom_model::Result<()> {
    /// let probs = [0.5_f32, 0.125, 0.375];
    /// let logprobs = TokenLogprobs::of(&probs.map(f32::ln), 1, 2, 3)?;
    /// assert!((logprobs.logprob.exp() - 0.125).abs() < 1e-6);
    /// assert_eq!(logprobs.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [0, 2]);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Logits that are not numbers.
    pub fn of(
        logits: &[f32], // [vocab]
        token: u32,
        top: usize,
        limit: usize,
    ) -> Result<TokenLogprobs> {
        let logits = &logits[..limit.min(logits.len())];
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|&logit| f64::from(logit - max).exp()).sum();
        if !(max.is_finite() && sum.is_finite()) {
            return Err(Error::Request(
                "the model's logits are not numbers; its weights cannot be used".to_owned(),
            ));
        }
        let log_sum = f64::from(max) + sum.ln();
        let logprob = |logit: f32| (f64::from(logit) - log_sum) as f32;
        let own = logits.get(token as usize).copied().unwrap_or(f32::NEG_INFINITY);
        let most = most_likely(logits, top);
        let top = most.into_iter().map(|id| (id, logprob(logits[id as usize]))).collect();
        Ok(TokenLogprobs { logprob: logprob(own), top })
    }
}

/// The ids of the `count` largest logits in descending order; ties go to the lower id.
fn most_likely(logits: &[f32], count: usize) -> Vec<u32> {
    let count = count.min(logits.len());
    if count == 0 {
        return Vec::new();
    }
    let descending = |&a: &u32, &b: &u32| -> Ordering {
        logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b))
    };
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    ids.select_nth_unstable_by(count - 1, descending);
    ids.truncate(count);
    ids.sort_unstable_by(descending);
    ids
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Against the definition in f64, for peaked, flat and tied logits and any number of top ids.
    #[test]
    fn logprobs_are_the_log_softmax() {
        for scale in [0.0_f32, 0.1, 5.0, 60.0] {
            let logits: Vec<f32> = (0..97).map(|i| scale * ((i * 37 % 19) as f32 - 9.0)).collect();
            let limit = 90; // the rest is padding
            let own = &logits[..limit];
            let total: f64 = own.iter().map(|&x| f64::from(x).exp()).sum();
            let expected = |id: usize| f64::from(own[id]) - total.ln();
            for top in [0, 1, 7, 90, 97] {
                let got = TokenLogprobs::of(&logits, 11, top, limit).unwrap();
                let close = |got: f32, id: usize| {
                    (f64::from(got) - expected(id)).abs() < 1e-5 * (1.0 + expected(id).abs())
                };
                assert!(close(got.logprob, 11));
                let mut order: Vec<u32> = (0..limit as u32).collect();
                order.sort_by(|&a, &b| own[b as usize].total_cmp(&own[a as usize]));
                let ids: Vec<u32> = got.top.iter().map(|&(id, _)| id).collect();
                assert_eq!(ids, order[..top.min(limit)]);
                assert!(got.top.iter().all(|&(id, logprob)| close(logprob, id as usize)));
            }
        }
        let impossible = TokenLogprobs::of(&[0.0, f32::NEG_INFINITY], 1, 0, 2).unwrap();
        assert_eq!(impossible.logprob, f32::NEG_INFINITY);
        for broken in [[f32::NAN; 2], [f32::NAN, 1.0], [f32::INFINITY, 1.0]] {
            assert!(TokenLogprobs::of(&broken, 0, 1, 2).is_err());
        }
    }
}
