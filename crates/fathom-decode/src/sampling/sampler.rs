//! Choice of the tokens of one request: draws of the draft, and verdicts of the target.

use std::borrow::Cow;

use fathom_model::{Error, Result};

use super::processing::Processing;
use crate::{
    ConstrainedText, Distribution, Drafted, History, Judge, Purpose, RequestRng, SamplingParams,
    Verdict,
};

/// Chooses the tokens of one request.
///
/// There are two stages, as in vLLM. [`Sampler::process`] applies min-tokens, bias and penalties,
/// which depend on the tokens before. [`Sampler::draft`], [`Sampler::sample`] and
/// [`Sampler::judge`] choose from the processed logits: greedily, or by temperature, min-p, top-k
/// and top-p.
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
/// // Random numbers are keyed by seed, request and position: the same position, the same token.
/// let token = sampler.sample(&logits, 12)?;
/// assert_eq!(token, sampler.sample(&logits, 12)?);
/// assert!(token == 1 || token == 2, "top-k keeps the two most likely tokens");
///
/// // A draft from the same logits is always accepted.
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
    /// Ids ≥ `limit` are padding of the vocabulary, never drawn by draft or target.
    limit: usize,
}

impl Sampler {
    /// The sampler of request number `request`. Draft and target share it: p and q have the same
    /// processing, temperature, min-p, top-k and top-p, over the same `limit` ids.
    ///
    /// # Errors
    /// Errors of [`SamplingParams::validate`] and [`SamplingParams::validate_ids`]; `min_tokens`
    /// above 0 although every token ends the text.
    pub fn new(params: SamplingParams, request: u64, limit: usize) -> Result<Sampler> {
        params.validate()?;
        params.validate_ids(limit)?;
        let processing = Processing::new(&params, &[], limit)?;
        let rng = RequestRng::new(params.seed, request);
        Ok(Sampler { params, processing, rng, limit })
    }

    /// Adds end-of-text tokens, which min-tokens excludes too, even if `ignore_eos` is set.
    ///
    /// # Errors
    /// `min_tokens` is above 0 but every token ends the text.
    pub fn with_eos(mut self, eos: &[u32]) -> Result<Sampler> {
        self.processing = Processing::new(&self.params, eos, self.limit)?;
        Ok(self)
    }

    /// The sampling parameters.
    pub fn params(&self) -> &SamplingParams {
        &self.params
    }

    /// The history needed to process the logits of a text whose prompt has `prompt_len` tokens.
    /// `None` if its logits are never processed.
    pub fn history(&self, prompt_len: usize) -> Option<History> {
        self.processes(0).then(|| History::new(prompt_len))
    }

    /// Whether [`Sampler::process`] changes logits after `generated` tokens of the text. Once
    /// false, it stays false.
    pub fn processes(&self, generated: usize) -> bool {
        self.processing.applies(generated)
    }

    /// Whether the token after `generated` tokens of the text, and every later one, is the argmax
    /// of the unprocessed logits.
    pub fn takes_argmax(&self, generated: usize) -> bool {
        self.params.is_greedy() && !self.processes(generated)
    }

    /// Applies min-tokens, bias and penalties to the logits of target or draft after `history`.
    pub fn process(&self, logits: &mut [f32], history: &History) {
        self.processing.apply(logits, history);
    }

    /// The draft's token for `position`, from its processed logits there.
    ///
    /// # Errors
    /// Logits that are not numbers.
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
    /// Logits that are not numbers.
    pub fn sample(&self, logits: &[f32], position: usize) -> Result<u32> {
        if self.params.is_greedy() {
            return argmax(logits, self.limit);
        }
        let p = self.distribution(logits)?;
        Ok(p.sample(self.rng.uniform(position, Purpose::Target)))
    }

    /// The target's verdict on a draft for `position`, from its processed logits there. This is
    /// exact speculative sampling: the resulting token is distributed as p.
    ///
    /// # Errors
    /// Logits that are not numbers.
    pub fn judge(&self, logits: &[f32], draft: &Drafted, position: usize) -> Result<Verdict> {
        if self.params.is_greedy() {
            let best = argmax(logits, self.limit)?;
            return Ok(if draft.token == best { Verdict::Accept } else { Verdict::Reject(best) });
        }
        let p = self.distribution(logits)?;
        let point; // q of a greedy draft
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

/// A [`Judge`] from the target's logits. Rows are judged in order without gaps.
pub struct LogitsJudge<'a> {
    /// The request's sampler.
    pub sampler: &'a Sampler,
    /// `[rows, vocab]`, row-major: row `i` follows the text and `i` drafts.
    pub logits: &'a [f32],
    /// Width of a row.
    pub vocab: usize,
    /// Position of the token that row 0 predicts: the text's length.
    pub position: usize,
    /// The text, if the sampler processes logits ([`Sampler::history`]). Drafts are added as they
    /// are judged.
    pub history: Option<&'a mut History>,
    /// The text's constraint, if it has one. Accepted drafts are added as they are judged.
    pub constraint: Option<&'a mut ConstrainedText>,
}

impl<'a> LogitsJudge<'a> {
    /// The logits of a row that a token is chosen from, `[vocab]`: processed and masked.
    fn row(&mut self, row: usize) -> Result<Cow<'a, [f32]>> {
        let mut logits = self.processed(row)?;
        if let Some(constraint) = &mut self.constraint {
            constraint.mask(logits.to_mut())?;
        }
        Ok(logits)
    }

    fn processed(&mut self, row: usize) -> Result<Cow<'a, [f32]>> {
        let columns = row * self.vocab..(row + 1) * self.vocab;
        let rows = || self.logits.len() / self.vocab.max(1);
        let logits: &'a [f32] = self.logits;
        let logits = logits.get(columns).ok_or_else(|| missing_row(row, rows()))?;
        let Some(history) = &mut self.history else {
            let unprocessed = || Error::Request("penalties need the text's history".to_owned());
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
            history.push(draft.token); // the next row follows it
        }
        let verdict = self.sampler.judge(&logits, draft, self.position + row)?;
        if let (Verdict::Accept, Some(constraint)) = (verdict, &mut self.constraint) {
            constraint.push(draft.token)?;
        }
        Ok(verdict)
    }

    fn sample(&mut self, row: usize) -> Result<u32> {
        let logits = self.row(row)?;
        self.sampler.sample(&logits, self.position + row)
    }
}

/// A [`Judge`] from the target's most likely tokens, computed by the backend without copying
/// logits.
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
    Error::Request(format!("row {row} cannot be judged: the target scored {rows} rows"))
}

/// Index of the largest of the first `limit` logits. Ties go to the lowest index.
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
