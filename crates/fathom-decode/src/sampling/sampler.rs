//! One request's way of choosing tokens: what the draft draws, and what the target says about it.

use std::borrow::Cow;

use fathom_model::{Error, Result};

use super::processing::Processing;
use crate::{Distribution, Drafted, History, Judge, Purpose, RequestRng, SamplingParams, Verdict};

/// Chooses the tokens of one request.
///
/// Two stages, as in vLLM. [`Sampler::process`] changes logits by what stands before them:
/// penalties, bias, min-tokens. [`Sampler::draft`], [`Sampler::sample`] and [`Sampler::judge`]
/// choose from logits so changed: the most likely token, or by temperature, min-p, top-k and top-p.
///
/// ```
/// use fathom_decode::{Sampler, SamplingParams, Verdict};
///
/// # fn main() -> fathom_model::Result<()> {
/// let (temperature, top_k, seed) = (0.8, 2, 7);
/// let params = SamplingParams { temperature, top_k, seed, ..SamplingParams::default() };
/// let sampler = Sampler::new(params, 0, 4)?;
/// let logits = [1.0, 3.0, 2.5, -1.0]; // of four tokens
///
/// // Randomness is keyed by seed, request and position: the same place has the same token.
/// let token = sampler.sample(&logits, 12)?;
/// assert_eq!(token, sampler.sample(&logits, 12)?);
/// assert!(token == 1 || token == 2, "only the two most likely ones are left");
///
/// // A draft of the same opinion is always accepted.
/// let draft = sampler.draft(&logits, 13)?;
/// assert_eq!(sampler.judge(&logits, &draft, 13)?, Verdict::Accept);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Sampler {
    params: SamplingParams,
    processing: Processing,
    rng: RequestRng,
    /// Ids from here on are padding of the vocabulary: never drawn, by draft or target.
    limit: usize,
}

impl Sampler {
    /// The sampler of request number `request`. Draft and target share it: p and q go through the
    /// same processing, temperature, min-p, top-k and top-p, over the same `limit` ids.
    ///
    /// # Errors
    /// What [`SamplingParams::validate`] and [`SamplingParams::validate_ids`] refuse, and
    /// min-tokens where every token ends a text.
    pub fn new(params: SamplingParams, request: u64, limit: usize) -> Result<Sampler> {
        params.validate()?;
        params.validate_ids(limit)?;
        let processing = Processing::new(&params, &[], limit)?;
        let rng = RequestRng::new(params.seed, request);
        Ok(Sampler { params, processing, rng, limit })
    }

    /// With end-of-text tokens, which min-tokens rules out too, ignored or not.
    ///
    /// # Errors
    /// Min-tokens where every token ends a text.
    pub fn with_eos(mut self, eos: &[u32]) -> Result<Sampler> {
        self.processing = Processing::new(&self.params, eos, self.limit)?;
        Ok(self)
    }

    /// What was asked.
    pub fn params(&self) -> &SamplingParams {
        &self.params
    }

    /// What is to be kept of a text whose prompt has `prompt_len` tokens, so that its logits can be
    /// processed; `None` where they never are.
    pub fn history(&self, prompt_len: usize) -> Option<History> {
        self.processes(0).then(|| History::new(prompt_len))
    }

    /// Whether [`Sampler::process`] changes logits after `generated` tokens of the text. Once not,
    /// never again.
    pub fn processes(&self, generated: usize) -> bool {
        self.processing.applies(generated)
    }

    /// Whether the token after `generated` tokens of the text, and every later one, is the most
    /// likely of the model's own logits.
    pub fn takes_argmax(&self, generated: usize) -> bool {
        self.params.is_greedy() && !self.processes(generated)
    }

    /// Rules out what min-tokens does, adds the bias and subtracts the penalties: `logits` are a
    /// model's, target or draft, after `history`.
    pub fn process(&self, logits: &mut [f32], history: &History) {
        self.processing.apply(logits, history);
    }

    /// The draft's token for `position`, from its processed logits there.
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

    /// The target's own token for `position`, from its processed logits there.
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

    /// What the target, with its processed `logits` for `position`, says about a token drafted
    /// there: exact speculative sampling, so that what stands there afterwards is distributed as p.
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

/// The target's logits as a [`Judge`]. Rows are judged in order, none left out.
pub struct LogitsJudge<'a> {
    /// The request's sampler.
    pub sampler: &'a Sampler,
    /// `[rows, vocab]`, row-major, as the model gives them: row 0 follows the text, row `i` the
    /// text and `i` drafts.
    pub logits: &'a [f32],
    /// Width of a row.
    pub vocab: usize,
    /// Position of the token that row 0 predicts: the text's length.
    pub position: usize,
    /// The text, where the sampler processes logits ([`Sampler::history`]); the drafts are added as
    /// they are judged.
    pub history: Option<&'a mut History>,
}

impl<'a> LogitsJudge<'a> {
    /// A row, processed.
    fn row(&mut self, row: usize) -> Result<Cow<'a, [f32]>> {
        let columns = row * self.vocab..(row + 1) * self.vocab;
        let rows = || self.logits.len() / self.vocab.max(1);
        let logits: &'a [f32] = self.logits;
        let logits = logits.get(columns).ok_or_else(|| missing_row(row, rows()))?;
        let Some(history) = &mut self.history else {
            let unprocessed = || Error::Request("penalties need the text they count".to_owned());
            return if self.sampler.processes(0) { Err(unprocessed()) } else { Ok(logits.into()) };
        };
        history.truncate(self.position + row);
        if history.len() < self.position + row {
            return Err(missing_row(row, history.len().saturating_sub(self.position)));
        }
        if !self.sampler.processes(history.generated()) {
            return Ok(logits.into());
        }
        let mut own = logits.to_vec();
        self.sampler.process(&mut own, history);
        Ok(own.into())
    }
}

impl Judge for LogitsJudge<'_> {
    fn judge(&mut self, row: usize, draft: &Drafted) -> Result<Verdict> {
        let logits = self.row(row)?;
        if let Some(history) = &mut self.history {
            history.push(draft.token); // what the next row follows
        }
        self.sampler.judge(&logits, draft, self.position + row)
    }

    fn sample(&mut self, row: usize) -> Result<u32> {
        let logits = self.row(row)?;
        self.sampler.sample(&logits, self.position + row)
    }
}

/// The target's most likely tokens as a [`Judge`], where the backend has found them: no logits are
/// copied.
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
