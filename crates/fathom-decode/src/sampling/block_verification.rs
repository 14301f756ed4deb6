//! Block verification: drafts of a chunk are accepted together rather than one by one.
//!
//! Sun et al., "Block Verification Accelerates Speculative Decoding" (ICLR 2025, arXiv:2403.10444),
//! algorithm 2. The text has the target's distribution, and the expected number of accepted drafts
//! is never below that of token-by-token verification: it is the highest that any verification of
//! one chunk can have.

use fathom_model::Result;

use crate::{BlockVerdict, Distribution, Drafted, Judge, LogitsJudge, Purpose, Verdict};

/// A drafted token x_i, the distribution q it was drawn from, and the target's p at its position.
#[derive(Clone, Debug)]
pub struct BlockDraft<'a> {
    /// x_i.
    pub token: u32,
    /// q(· | x_1 … x_{i-1}).
    pub q: &'a Distribution,
    /// p(· | x_1 … x_{i-1}).
    pub p: &'a Distribution,
}

/// How a chunk of γ drafts is verified.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockVerification {
    /// w_0 = 1, …, w_γ (the paper's p_i): w_i = min(w_{i-1}·p(x_i)/q(x_i), 1).
    weights: Vec<f64>,
    /// h_1, …, h_γ: the probability of accepting the first i drafts if no more are accepted.
    chances: Vec<f64>,
}

impl BlockVerification {
    /// Weighs a chunk of drafts, each drawn from its q.
    ///
    /// ```text
    /// w_i = min(w_{i-1} · p(x_i)/q(x_i), 1)
    /// R_i = Σ_x max(w_i·p(x) - q(x), 0)        p and q at position i + 1
    /// h_i = R_i / (R_i + 1 - w_i)  for i < γ,  h_γ = w_γ
    /// ```
    pub fn new(drafts: &[BlockDraft<'_>]) -> BlockVerification {
        let mut weights = vec![1.0];
        let mut chances = Vec::with_capacity(drafts.len());
        for (i, draft) in drafts.iter().enumerate() {
            let ratio = f64::from(draft.p.prob(draft.token)) / f64::from(draft.q.prob(draft.token));
            let weight = (weights[i] * ratio).min(1.0);
            weights.push(weight);
            chances.push(match drafts.get(i + 1) {
                None => weight,
                // w = 1 and p = q: a later draft is accepted for certain, whatever is chosen here.
                Some(next) => {
                    let rest = residual_mass(next.p, next.q, weight);
                    let all = rest + 1.0 - weight;
                    if all > 0.0 { rest / all } else { 1.0 }
                }
            });
        }
        BlockVerification { weights, chances }
    }

    /// τ, the number of accepted drafts: the largest i with u_i < h_i, or 0. `u(i)` is uniform in
    /// [0, 1) for each i from 1 to γ.
    pub fn accepted(&self, u: impl Fn(usize) -> f64) -> usize {
        (1..=self.chances.len()).rev().find(|&i| u(i) < self.chances[i - 1]).unwrap_or(0)
    }

    /// The distribution of the token after τ < γ accepted drafts: max(w_τ·p - q, 0), normalised,
    /// with p and q at position τ + 1, whose draft is `rejected`.
    pub fn residual(&self, accepted: usize, rejected: &BlockDraft<'_>) -> Distribution {
        rejected.p.weighted_residual(rejected.q, self.weights[accepted])
    }

    /// h_1, …, h_γ.
    pub fn chances(&self) -> &[f64] {
        &self.chances
    }
}

/// Σ_x max(w·p(x) - q(x), 0).
fn residual_mass(p: &Distribution, q: &Distribution, weight: f64) -> f64 {
    p.iter().map(|(id, p)| (weight * f64::from(p) - f64::from(q.prob(id))).max(0.0)).sum()
}

/// A [`Judge`] that accepts the drafts of a chunk together. Drafts that were not drawn from a q,
/// such as greedy ones, are judged one by one.
///
/// After a rejection the sampler needs other random numbers ([`crate::Sampler::start_run`]):
/// whether a draft is accepted depends on the draws of the drafts behind it.
pub struct BlockJudge<'a>(pub LogitsJudge<'a>);

impl Judge for BlockJudge<'_> {
    fn judge(&mut self, row: usize, draft: &Drafted) -> Result<Verdict> {
        self.0.judge(row, draft)
    }

    fn sample(&mut self, row: usize) -> Result<u32> {
        self.0.sample(row)
    }

    fn judge_block(&mut self, drafts: &[&Drafted]) -> Result<Option<BlockVerdict>> {
        let qs: Option<Vec<&Distribution>> = drafts.iter().map(|draft| draft.q.as_ref()).collect();
        let Some(qs) = qs.filter(|qs| !qs.is_empty()) else { return Ok(None) };
        let (sampler, position) = (self.0.sampler, self.0.position);
        let mut ps = Vec::with_capacity(drafts.len());
        for (row, draft) in drafts.iter().enumerate() {
            ps.push(sampler.distribution(&self.0.row(row)?)?);
            if let Some(history) = &mut self.0.history {
                history.push(draft.token); // the next row follows it
            }
        }
        let each = drafts.iter().zip(qs).zip(&ps);
        let block: Vec<_> =
            each.map(|((draft, q), p)| BlockDraft { token: draft.token, q, p }).collect();
        let verification = BlockVerification::new(&block);
        let uniform = |row, purpose| sampler.rng().uniform(position + row, purpose);
        let accepted = verification.accepted(|i| uniform(i - 1, Purpose::Accept));
        let correction = block.get(accepted).map(|rejected| {
            let residual = verification.residual(accepted, rejected);
            residual.sample(uniform(accepted, Purpose::Residual))
        });
        Ok(Some(BlockVerdict { accepted, correction }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{SamplingParams, philox4x32};

    const TOKENS: u32 = 3;

    /// A distribution over [`TOKENS`] tokens, keyed by a prefix.
    fn distribution(model: u32, prefix: &[u32]) -> Distribution {
        let hash = prefix.iter().fold([model, 0, 0, 0], |h, &token| philox4x32(h, [5, token]));
        let logits: Vec<f32> = hash[..TOKENS as usize]
            .iter()
            .map(|&x| 4.0 * (x as f32 / u32::MAX as f32) - 2.0)
            .collect();
        let params = SamplingParams { temperature: 1.0, ..SamplingParams::default() };
        Distribution::from_logits(&logits, &params, TOKENS as usize)
            .unwrap_or(Distribution::point(0))
    }

    /// All texts of `len` tokens.
    fn texts(len: usize) -> Vec<Vec<u32>> {
        (0..len).fold(vec![Vec::new()], |texts, _| {
            let longer = |text: &Vec<u32>| {
                (0..TOKENS).map(|token| [&text[..], &[token]].concat()).collect::<Vec<_>>()
            };
            texts.iter().flat_map(longer).collect()
        })
    }

    /// Chances of accepting exactly 0, …, γ drafts, by verification of the block and token by
    /// token.
    fn lengths(drafts: &[BlockDraft<'_>]) -> [Vec<f64>; 2] {
        let block = BlockVerification::new(drafts);
        let mut of_block = vec![0.0; drafts.len() + 1];
        let mut rest = 1.0;
        for i in (1..=drafts.len()).rev() {
            of_block[i] = rest * block.chances()[i - 1];
            rest -= of_block[i];
        }
        of_block[0] = rest;
        let mut by_token = vec![0.0; drafts.len() + 1];
        let mut alive = 1.0;
        for (i, draft) in drafts.iter().enumerate() {
            let ratio = f64::from(draft.p.prob(draft.token)) / f64::from(draft.q.prob(draft.token));
            by_token[i] = alive * (1.0 - ratio.min(1.0));
            alive *= ratio.min(1.0);
        }
        by_token[drafts.len()] = alive;
        [of_block, by_token]
    }

    fn mean(lengths: &[f64]) -> f64 {
        lengths.iter().enumerate().map(|(i, chance)| i as f64 * chance).sum()
    }

    /// The paper's example, section 1: two tokens, p = (1/3, 2/3), q = (2/3, 1/3), γ = 2. Token by
    /// token 10/9 drafts are accepted, of the block 11/9.
    #[test]
    fn the_example_of_the_paper() {
        let params = SamplingParams { temperature: 1.0, ..SamplingParams::default() };
        let of = |logits: [f32; 2]| Distribution::from_logits(&logits, &params, 2);
        let (Ok(p), Ok(q)) = (of([0.0, 2.0_f32.ln()]), of([2.0_f32.ln(), 0.0])) else {
            panic!("finite logits")
        };
        let mut means = [0.0; 2];
        for (x, y) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let drafts = [x, y].map(|token| BlockDraft { token, q: &q, p: &p });
            let chance = f64::from(q.prob(x)) * f64::from(q.prob(y));
            for (sum, lengths) in means.iter_mut().zip(lengths(&drafts)) {
                *sum += chance * mean(&lengths);
            }
        }
        assert!((means[0] - 11.0 / 9.0).abs() < 1e-6, "{means:?}");
        assert!((means[1] - 10.0 / 9.0).abs() < 1e-6, "{means:?}");
    }

    /// The probability of every text of γ + 1 tokens, summed over all chunks that could be drafted
    /// and all numbers of accepted drafts, is the target's. The expected number of accepted drafts
    /// is at least that of token-by-token verification. Both are sums, not samples.
    #[test]
    fn the_text_is_the_targets_and_no_fewer_drafts_are_accepted() {
        let mut gained = 0;
        for seed in 0..40 {
            for gamma in 1..=3 {
                let p = |prefix: &[u32]| distribution(2 * seed, prefix);
                let q = |prefix: &[u32]| distribution(2 * seed + 1, prefix);
                let chance = |of: &dyn Fn(&[u32]) -> Distribution, text: &[u32]| {
                    let at = |i: usize| f64::from(of(&text[..i]).prob(text[i]));
                    (0..text.len()).map(at).product::<f64>()
                };
                let all = texts(gamma + 1);
                let mut found = vec![0.0; all.len()];
                let mut means = [0.0; 2];
                for chunk in texts(gamma) {
                    let ps: Vec<_> = (0..gamma).map(|i| p(&chunk[..i])).collect();
                    let qs: Vec<_> = (0..gamma).map(|i| q(&chunk[..i])).collect();
                    let draft = |i: usize| BlockDraft { token: chunk[i], q: &qs[i], p: &ps[i] };
                    let drafts: Vec<_> = (0..gamma).map(draft).collect();
                    let (block, drafted) = (BlockVerification::new(&drafts), chance(&q, &chunk));
                    let lengths = lengths(&drafts);
                    for (sum, lengths) in means.iter_mut().zip(&lengths) {
                        *sum += drafted * mean(lengths);
                    }
                    for (text, found) in all.iter().zip(&mut found) {
                        for (n, length) in lengths[0].iter().enumerate() {
                            if text[..n] != chunk[..n] {
                                continue;
                            }
                            // The token after n drafts, and the target's own after it.
                            let next = match drafts.get(n) {
                                Some(rejected) => block.residual(n, rejected),
                                None => p(&text[..n]),
                            };
                            let own = (n + 1..=gamma).map(|i| p(&text[..i]).prob(text[i]));
                            let rest = own.map(f64::from).product::<f64>();
                            *found += drafted * length * f64::from(next.prob(text[n])) * rest;
                        }
                    }
                }
                for (text, found) in all.iter().zip(found) {
                    let expected = chance(&p, text);
                    assert!((found - expected).abs() < 1e-5, "{seed} {gamma} {text:?}");
                }
                assert!(means[0] > means[1] - 1e-6, "{seed} {gamma} {means:?}");
                gained += usize::from(gamma > 1 && means[0] > 1.02 * means[1]);
            }
        }
        assert!(gained > 10, "{gained} pairs accept more");
    }
}
