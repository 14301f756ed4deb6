//! The distribution of the next token, and the residual of speculative sampling.

use std::cmp::Ordering;

use fathom_model::{Error, Result};

use crate::SamplingParams;

/// A distribution over token ids. Absent ids have probability 0.
#[derive(Clone, Debug, PartialEq)]
pub struct Distribution {
    /// Ascending.
    ids: Vec<u32>,
    /// Probabilities of `ids`. They sum to 1.
    probs: Vec<f32>,
}

impl Distribution {
    /// softmax(logits / temperature), then min-p, then top-k, then top-p: vLLM's order. Ids ≥
    /// `limit` are padding of the vocabulary and are ignored.
    ///
    /// # Errors
    /// The largest logit is not finite: logits are NaN or infinite.
    pub fn from_logits(
        logits: &[f32], // [vocab]
        params: &SamplingParams,
        limit: usize,
    ) -> Result<Distribution> {
        let logits = &logits[..limit.min(logits.len())];
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max); // skips NaN
        if !max.is_finite() {
            return Err(Error::Request(
                "the model's logits are not numbers; its weights cannot be used".to_owned(),
            ));
        }
        let least = match params.top_k {
            k if k == 0 || k >= logits.len() => f32::NEG_INFINITY,
            k => kth_largest(logits, k),
        };
        let weight = |logit: f32| ((logit - max) / params.temperature).exp();
        let mut kept: Vec<(u32, f32)> = (0..)
            .zip(logits)
            .filter(|&(_, &logit)| logit >= least)
            .map(|(id, &logit)| (id, weight(logit)))
            // The most likely token has weight 1. Tokens removed by min-p are less likely than all
            // others, so filtering by top-k first gives the same result.
            .filter(|&(_, weight)| weight >= params.min_p)
            .collect();
        if params.top_p < 1.0 {
            keep_nucleus(&mut kept, f64::from(params.top_p));
        }
        Ok(Distribution::normalised(kept))
    }

    /// The distribution with probability 1 on one token.
    pub fn point(id: u32) -> Distribution {
        Distribution { ids: vec![id], probs: vec![1.0] }
    }

    /// Normalises `weights`, which are in ascending order of id and not all zero.
    fn normalised(weights: Vec<(u32, f32)>) -> Distribution {
        let total: f64 = weights.iter().map(|&(_, w)| f64::from(w)).sum();
        let (ids, probs) =
            weights.into_iter().map(|(id, w)| (id, (f64::from(w) / total) as f32)).unzip();
        Distribution { ids, probs }
    }

    /// Tokens and their probabilities, in ascending order of id.
    pub fn iter(&self) -> impl Iterator<Item = (u32, f32)> {
        self.ids.iter().copied().zip(self.probs.iter().copied())
    }

    /// The probability of a token.
    pub fn prob(&self, id: u32) -> f32 {
        self.ids.binary_search(&id).map_or(0.0, |i| self.probs[i])
    }

    /// The token at quantile `u` ∈ [0, 1) of the ids in ascending order.
    pub fn sample(&self, u: f64) -> u32 {
        let total: f64 = self.probs.iter().map(|&p| f64::from(p)).sum(); // 1 up to rounding
        let mut rest = u * total;
        let mut last = 0;
        for (id, p) in self.iter().filter(|&(_, p)| p > 0.0) {
            rest -= f64::from(p);
            last = id;
            if rest < 0.0 {
                break;
            }
        }
        last
    }

    /// Acceptance test of speculative sampling (Leviathan et al. 2023, algorithm 1): accepts `id`,
    /// drawn from `q`, with probability min(1, p/q). `self` is p, and `u` is uniform in [0, 1).
    pub fn accepts(&self, id: u32, q: &Distribution, u: f64) -> bool {
        u * f64::from(q.prob(id)) < f64::from(self.prob(id))
    }

    /// max(w·p - q, 0), normalised: the distribution after drafts that were accepted with weight w
    /// (block verification). `self` is p. With w = 1 it is [`Distribution::residual`].
    pub fn weighted_residual(&self, q: &Distribution, weight: f64) -> Distribution {
        let difference = |(id, p)| (id, (weight * f64::from(p) - f64::from(q.prob(id))) as f32);
        let residual: Vec<(u32, f32)> =
            self.iter().map(difference).filter(|&(_, difference)| difference > 0.0).collect();
        if residual.is_empty() { self.clone() } else { Distribution::normalised(residual) }
    }

    /// The distribution of the correction of a rejected token: (p - q)₊ normalised. `self` is p.
    pub fn residual(&self, q: &Distribution) -> Distribution {
        let residual: Vec<(u32, f32)> = self
            .iter()
            .map(|(id, p)| (id, p - q.prob(id)))
            .filter(|&(_, difference)| difference > 0.0)
            .collect();
        // p = q up to rounding: only rounding can have caused the rejection.
        if residual.is_empty() { self.clone() } else { Distribution::normalised(residual) }
    }
}

/// The k-th largest of `logits`, 1 ≤ k < length.
fn kth_largest(logits: &[f32], k: usize) -> f32 {
    let mut logits: Vec<f32> = logits.iter().copied().filter(|x| !x.is_nan()).collect();
    if k > logits.len() {
        return f32::NEG_INFINITY;
    }
    *logits.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1
}

/// Keeps the fewest largest weights that sum to at least `top_p` of the total. Ties go to the lower
/// id. The result is in ascending order of id.
fn keep_nucleus(weights: &mut Vec<(u32, f32)>, top_p: f64) {
    let descending =
        |a: &(u32, f32), b: &(u32, f32)| -> Ordering { b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)) };
    weights.sort_unstable_by(descending);
    let total: f64 = weights.iter().map(|&(_, w)| f64::from(w)).sum();
    let mut sum = 0.0;
    let inside = weights.iter().take_while(|&&(_, w)| {
        let inside = sum < top_p * total;
        sum += f64::from(w);
        inside
    });
    let keep = inside.count();
    weights.truncate(keep);
    weights.sort_unstable_by_key(|&(id, _)| id);
}
