//! The draft model and its state of every request.

use std::collections::HashMap;
use std::sync::Arc;

use fathom_backend::Backend;
use fathom_model::{
    LogitRows, PREFILL_CHUNK, Result, Sequence, SequenceOptions, Step, Transformer,
};

use super::draft_worker::{DraftItem, DraftJob, DraftReport};
use super::prefix_cache::{PrefixCache, SharedPages};
use super::scores::PassScores;
use crate::{ConstrainedText, Drafted, History, Proposal};

/// Longest tail, in tokens, that is fed in the pass that drafts the first token. After a step that
/// accepted every draft, the draft's cache lacks two tokens. A longer tail needs a catch-up
/// prefill.
const MAX_TAIL: usize = 2;

pub(super) struct Draft<B: Backend> {
    pub model: Arc<Transformer<B>>,
    vocab: usize,
    /// By slot.
    sequences: HashMap<u64, SlotState<B>>,
    prefix_cache: PrefixCache<B>,
}

/// The draft's state of a request between jobs.
struct SlotState<B: Backend> {
    sequence: Sequence<B>,
    /// Token counts of the sequence and of the drafts after it. `None` if logits are not processed.
    history: Option<History>,
    /// `None` if the text has no constraint.
    constraint: Option<ConstrainedText>,
    /// The pages of the sequence that are the prefix cache's.
    shared: SharedPages,
}

/// A request during a job.
struct Drafting<B: Backend> {
    item: DraftItem,
    state: SlotState<B>,
    chunk: Proposal,
}

impl<B: Backend> Draft<B> {
    pub fn new(model: Arc<Transformer<B>>, vocab: usize) -> Draft<B> {
        let prefix_cache = PrefixCache::new(model.backend().kv_page());
        Draft { model, vocab, sequences: HashMap::new(), prefix_cache }
    }

    /// Drops the sequence of a slot.
    pub fn forget(&mut self, slot: u64) {
        if let Some(mut state) = self.sequences.remove(&slot) {
            self.prefix_cache.release(&mut state.shared, 0);
        }
    }

    /// Does a job.
    ///
    /// # Errors
    /// A failure of the model.
    pub fn work(&mut self, job: DraftJob) -> Result<DraftReport> {
        let start = self.model.backend().mark()?;
        self.model.backend().set_co_running(job.co_running);
        let mut all =
            job.items.into_iter().map(|item| self.begin(item)).collect::<Result<Vec<_>>>()?;
        self.use_prefix_cache(&mut all, job.prefix_pages)?;
        let rows = all.iter().map(|d| (d.item.slot, d.item.rows())).collect();
        self.catch_up(&mut all)?;
        if job.prefix_pages.is_some() {
            for Drafting { item, state, .. } in &mut all {
                let prompt = item.planned_len.saturating_sub(1);
                let SlotState { sequence, shared, .. } = state;
                self.prefix_cache.share(&self.model, sequence, shared, prompt, None);
            }
        }
        let caught_up = self.model.backend().mark()?;
        for round in 0..job.gamma {
            let drafting: Vec<_> = all.iter_mut().filter(|d| d.item.gamma > round).collect();
            if drafting.is_empty() {
                break;
            }
            self.draft_one(drafting)?;
        }
        let chunks = all.into_iter().map(|Drafting { item, state, chunk }| {
            self.sequences.insert(item.slot, state);
            (item.slot, chunk)
        });
        let chunks = chunks.collect();
        let backend = self.model.backend();
        let end = backend.mark()?;
        Ok(DraftReport {
            chunks,
            rows,
            seconds: backend.seconds_between(&start, &end)?,
            drafting: backend.seconds_between(&caught_up, &end)?,
        })
    }

    /// Truncates a request's sequence to `keep` tokens, or creates it.
    fn begin(&mut self, mut item: DraftItem) -> Result<Drafting<B>> {
        let options = SequenceOptions { planned_len: Some(item.planned_len), ..Default::default() };
        let mut state = self.sequences.remove(&item.slot).unwrap_or_else(|| SlotState {
            sequence: self.model.new_sequence(options),
            history: item.sampler.history(item.planned_len),
            constraint: None,
            shared: SharedPages::default(),
        });
        self.model.truncate(&mut state.sequence, item.keep)?;
        self.prefix_cache.release_beyond(&mut state.shared, item.keep);
        if let Some(history) = &mut state.history {
            history.follow(item.keep, &item.tail);
        }
        if let Some(constraint) = item.constraint.take() {
            state.constraint = Some(constraint);
        }
        if let Some(constraint) = &mut state.constraint {
            let text: Vec<u32> =
                state.sequence.tokens().iter().chain(&item.tail).copied().collect();
            let generated = text.get(item.planned_len..).unwrap_or_default();
            // If it fails, drafts are bad or fail too. The target's own copy decides the text.
            drop(constraint.follow(generated));
        }
        Ok(Drafting { item, state, chunk: Proposal::new() })
    }

    /// Takes rows of long tails from the prefix cache, and evicts pages until those of all
    /// sequences fit at the end of the job.
    fn use_prefix_cache(&mut self, all: &mut [Drafting<B>], pages: Option<usize>) -> Result<()> {
        let Some(pages) = pages else {
            self.prefix_cache.shrink_to(0);
            return Ok(());
        };
        for Drafting { item, state, .. } in all.iter_mut() {
            if item.tail.len() > MAX_TAIL {
                let SlotState { sequence, shared, .. } = state;
                let own = sequence.tokens().iter().chain(&item.tail).copied();
                // The last token is fed by the pass that drafts the first one.
                let known = item.keep + item.tail.len() - usize::from(item.gamma > 0);
                let text: Vec<u32> = own.take(known).collect();
                let taken = self.prefix_cache.take(&self.model, sequence, shared, &text, None)?;
                item.tail.drain(..taken);
            }
        }
        let page = self.model.backend().kv_page();
        let own = |tokens: usize, shared: &SharedPages| tokens.div_ceil(page) - shared.len();
        let resting = self.sequences.values().map(|state| own(state.sequence.len(), &state.shared));
        let working =
            all.iter().map(|d| own(d.state.sequence.len() + d.item.rows(), &d.state.shared));
        self.prefix_cache.shrink_to(pages.saturating_sub(resting.chain(working).sum()));
        Ok(())
    }

    /// Catch-up prefill: feeds the whole tail of items that only prefill, and all but the last
    /// token of tails longer than [`MAX_TAIL`]. This is one pass if the tokens fit in a prefill
    /// chunk. The rest of a tail is fed in the pass that drafts the first token.
    fn catch_up(&self, all: &mut [Drafting<B>]) -> Result<()> {
        let mut prefills = Vec::new();
        for d in all.iter_mut() {
            let prefilled = match d.item.gamma {
                0 => d.item.tail.len(),
                _ if d.item.tail.len() > MAX_TAIL => d.item.tail.len() - 1,
                _ => 0,
            };
            prefills.push(d.item.tail.drain(..prefilled).collect::<Vec<u32>>());
        }
        if prefills.iter().map(Vec::len).sum::<usize>() > PREFILL_CHUNK {
            for (d, tokens) in all.iter_mut().zip(&prefills) {
                self.model.prefill(
                    &mut d.state.sequence,
                    tokens,
                    PREFILL_CHUNK,
                    None,
                    &mut |_| {},
                )?;
            }
            return Ok(());
        }
        let with_tokens = all.iter_mut().zip(&prefills).filter(|(_, tokens)| !tokens.is_empty());
        let mut steps: Vec<Step<'_, B>> =
            with_tokens.map(|(d, tokens)| d.step(tokens, LogitRows::None)).collect();
        if !steps.is_empty() {
            self.model.forward(&mut steps, None)?;
        }
        Ok(())
    }

    /// Drafts one more token for each request.
    fn draft_one(&self, mut drafting: Vec<&mut Drafting<B>>) -> Result<()> {
        let argmax_only = drafting.iter().all(|d| d.takes_argmax());
        let feeds: Vec<Vec<u32>> = drafting
            .iter_mut()
            .map(|d| match d.chunk.last() {
                Some(last) => vec![last.token],
                None => std::mem::take(&mut d.item.tail),
            })
            .collect();
        let mut steps: Vec<Step<'_, B>> = drafting
            .iter_mut()
            .zip(&feeds)
            .map(|(d, tokens)| d.step(tokens, LogitRows::Last))
            .collect();
        let scores = PassScores::of(&self.model, &mut steps, None, argmax_only, self.vocab)?;
        for (i, d) in drafting.into_iter().enumerate() {
            let drafted = match (&scores.logits, scores.best[i].first()) {
                (Some(all), _) if !d.takes_argmax() => {
                    let Ok(drafted) = d.draft(all.step(self.model.backend(), i)?) else {
                        // The draft's logits are not numbers, or it has no token that the
                        // constraint allows: no more drafts in this step. The text continues.
                        d.item.gamma = 0;
                        continue;
                    };
                    drafted
                }
                (_, Some(&token)) => Drafted { token, q: None },
                (_, None) => continue,
            };
            d.push(drafted);
        }
        Ok(())
    }
}

impl<B: Backend> Drafting<B> {
    /// The draft's pass over the next tokens of the text.
    fn step<'a>(&'a mut self, tokens: &'a [u32], logits: LogitRows) -> Step<'a, B> {
        Step { sequence: &mut self.state.sequence, tokens, logits }
    }

    /// Whether the next token is the argmax of the draft's unprocessed logits.
    fn takes_argmax(&self) -> bool {
        let generated = self.state.history.as_ref().map_or(0, History::generated);
        self.state.constraint.is_none() && self.item.sampler.takes_argmax(generated)
    }

    /// Draws the next token from the draft's logits `[vocab]`.
    fn draft(&mut self, mut logits: Vec<f32>) -> Result<Drafted> {
        let SlotState { sequence, history, constraint, .. } = &mut self.state;
        if let Some(history) = history {
            self.item.sampler.process(&mut logits, history);
        }
        if let Some(constraint) = constraint {
            constraint.mask(&mut logits)?;
        }
        self.item.sampler.draft(&logits, sequence.len())
    }

    /// Adds a drafted token.
    fn push(&mut self, drafted: Drafted) {
        if let Some(history) = &mut self.state.history {
            history.push(drafted.token);
        }
        if let Some(constraint) = &mut self.state.constraint
            && constraint.push(drafted.token).is_err()
        {
            self.item.gamma = 0; // no draft after this one
        }
        self.chunk.push(drafted);
    }
}
