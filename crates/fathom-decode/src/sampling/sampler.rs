//! One request's way of choosing tokens: what the draft draws, and what the target says about it.

use fathom_model::{Error, Result};

use crate::{Distribution, Drafted, Judge, Purpose, RequestRng, SamplingParams, Verdict};

/// Chooses the tokens of one request.
#[derive(Clone, Debug)]
pub struct Sampler {
    params: SamplingParams,
    rng: RequestRng,
    /// Ids from here on are padding of the vocabulary: never drawn, by draft or target.
    limit: usize,
}

impl Sampler {
    /// The sampler of request number `request`. Draft and target share it: p and q go through the same
    /// temperature, top-k and top-p, over the same `limit` ids.
    ///
    /// # Errors
    /// What [`SamplingParams::validate`] refuses.
    pub fn new(params: SamplingParams, request: u64, limit: usize) -> Result<Sampler> {
        params.validate()?;
        let rng = RequestRng::new(params.seed, request);
        Ok(Sampler { params, rng, limit })
    }

    /// What was asked.
    pub fn params(&self) -> &SamplingParams {
        &self.params
    }

    /// The draft's token for `position`, from its logits there.
    ///
    /// # Errors
    /// No logit is a number.
    pub fn draft(&self, logits: &[f32], position: usize) -> Result<Drafted> {
        if self.params.is_greedy() {
            return Ok(Drafted { token: argmax(logits, self.limit)?, q: None });
        }
        let q = self.distribution(logits)?;
        let token = q.sample(self.rng.uniform(position, Purpose::Draft));
        Ok(Drafted { token, q: Some(q) })
    }

    /// The target's own token for `position`, from its logits there.
    ///
    /// # Errors
    /// No logit is a number.
    pub fn sample(&self, logits: &[f32], position: usize) -> Result<u32> {
        if self.params.is_greedy() {
            return argmax(logits, self.limit);
        }
        let p = self.distribution(logits)?;
        Ok(p.sample(self.rng.uniform(position, Purpose::Target)))
    }

    /// What the target, with its `logits` for `position`, says about a token drafted there: exact
    /// speculative sampling, so that what stands there afterwards is distributed as p.
    ///
    /// # Errors
    /// No logit is a number.
    pub fn judge(&self, logits: &[f32], draft: &Drafted, position: usize) -> Result<Verdict> {
        if self.params.is_greedy() {
            let best = argmax(logits, self.limit)?;
            return Ok(if draft.token == best { Verdict::Accept } else { Verdict::Reject(best) });
        }
        let p = self.distribution(logits)?;
        let point; // a draft without q was certain of its token
        let q = match &draft.q {
            Some(q) => q,
            None => {
                point = Distribution::point(draft.token);
                &point
            }
        };
        if p.accepts(draft.token, q, self.rng.uniform(position, Purpose::Accept)) {
            return Ok(Verdict::Accept);
        }
        let correction = p.residual(q).sample(self.rng.uniform(position, Purpose::Residual));
        Ok(Verdict::Reject(correction))
    }

    fn distribution(&self, logits: &[f32]) -> Result<Distribution> {
        Distribution::from_logits(logits, &self.params, self.limit)
    }
}

/// The target's logits as a [`Judge`].
pub struct LogitsJudge<'a> {
    /// The request's sampler.
    pub sampler: &'a Sampler,
    /// `[rows, vocab]`, row-major: row 0 follows the text, row `i` the text and `i` drafts.
    pub logits: &'a [f32],
    /// Width of a row.
    pub vocab: usize,
    /// Position of the token that row 0 predicts: the text's length.
    pub position: usize,
}

impl LogitsJudge<'_> {
    fn row(&self, row: usize) -> Result<&[f32]> {
        let columns = row * self.vocab..(row + 1) * self.vocab;
        let rows = || self.logits.len() / self.vocab.max(1);
        self.logits.get(columns).ok_or_else(|| missing_row(row, rows()))
    }
}

impl Judge for LogitsJudge<'_> {
    fn judge(&mut self, row: usize, draft: &Drafted) -> Result<Verdict> {
        self.sampler.judge(self.row(row)?, draft, self.position + row)
    }

    fn sample(&mut self, row: usize) -> Result<u32> {
        self.sampler.sample(self.row(row)?, self.position + row)
    }
}

/// The target's most likely tokens as a [`Judge`], where the backend has found them: no logits are copied.
pub struct GreedyJudge<'a> {
    /// One token for each row.
    pub best: &'a [u32],
}

impl Judge for GreedyJudge<'_> {
    fn judge(&mut self, row: usize, draft: &Drafted) -> Result<Verdict> {
        let best = self.sample(row)?;
        Ok(if draft.token == best { Verdict::Accept } else { Verdict::Reject(best) })
    }

    fn sample(&mut self, row: usize) -> Result<u32> {
        self.best.get(row).copied().ok_or_else(|| missing_row(row, self.best.len()))
    }
}

fn missing_row(row: usize, rows: usize) -> Error {
    Error::Request(format!("the target scored {rows} rows where row {row} is judged"))
}

/// Index of the largest of the first `limit` logits; the lowest index wins ties.
fn argmax(logits: &[f32], limit: usize) -> Result<u32> {
    let mut best = None;
    for (id, &logit) in (0_u32..).zip(&logits[..limit.min(logits.len())]) {
        if logit > best.map_or(f32::NEG_INFINITY, |(_, largest)| largest) {
            best = Some((id, logit));
        }
    }
    best.map(|(id, _)| id).ok_or_else(|| {
        Error::Request("the model's logits are not numbers; its weights cannot be used".to_owned())
    })
}
