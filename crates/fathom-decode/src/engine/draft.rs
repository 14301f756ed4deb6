//! The draft model and its state of every request.

mod forking;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use fathom_backend::Backend;
use fathom_model::{
    LogitRows, PREFILL_CHUNK, Result, Sequence, SequenceOptions, Step, Transformer,
};

use super::draft_worker::{DraftItem, DraftJob, DraftReport, ForkedRounds};
use super::prefix_cache::{PrefixCache, SharedPages};
use super::scores::PassScores;
use crate::{Alternatives, ConstrainedText, Drafted, History, Proposal};

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
    /// The length at which a branch left its text; 0 for a text.
    forked_at: usize,
    /// The draft's alternatives to its tokens that may still be judged, by position. Only in
    /// `forked`.
    alternatives: BTreeMap<usize, Alternatives>,
    /// The branches prepared in the last job.
    branches: Vec<SlotState<B>>,
}

/// A request during a job, or one of its branches.
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
    pub fn work(&mut self, mut job: DraftJob) -> Result<DraftReport> {
        let start = self.model.backend().mark()?;
        self.model.backend().set_co_running(job.co_running);
        let items = std::mem::take(&mut job.items).into_iter();
        let mut all = items.map(|item| self.begin(item)).collect::<Result<Vec<_>>>()?;
        let branch_room = self.use_prefix_cache(&mut all, &job)?;
        let mut rows: HashMap<u64, usize> =
            all.iter().map(|d| (d.item.slot, d.item.rows())).collect();
        self.catch_up(&mut all)?;
        if job.prefix_cache {
            for Drafting { item, state, .. } in &mut all {
                let prompt = item.planned_len.saturating_sub(1);
                let SlotState { sequence, shared, .. } = state;
                self.prefix_cache.share(&self.model, sequence, shared, prompt, None);
            }
        }
        let caught_up = self.model.backend().mark()?;
        self.draft_round(&mut all, &mut [], 0)?;
        let first_round = self.model.backend().mark()?;
        let (mut forks, mut branches) = self.fork_branches(&mut all, branch_room);
        for round in 1..job.gamma {
            self.draft_round(&mut all, &mut forks, round)?;
        }
        let end = self.model.backend().mark()?;
        let backend = self.model.backend();
        let forked = match forks.is_empty() {
            true => None,
            false => Some(ForkedRounds {
                rows: all.len() + forks.len(),
                rounds: job.gamma - 1,
                seconds: backend.seconds_between(&first_round, &end)?,
            }),
        };
        let (seconds, drafting) =
            (backend.seconds_between(&start, &end)?, backend.seconds_between(&caught_up, &end)?);
        let mut chunks = HashMap::new();
        for Drafting { item, state, chunk } in all {
            self.sequences.insert(item.slot, state);
            chunks.insert(item.slot, chunk);
        }
        for fork in forks {
            let slot = fork.item.slot;
            *rows.entry(slot).or_default() += fork.chunk.len();
            let Some(text) = self.sequences.get_mut(&slot) else { continue };
            let considered = branches.get_mut(&slot);
            if let Some(branch) = considered.and_then(|all| all.get_mut(text.branches.len())) {
                branch.drafts = fork.chunk;
            }
            text.branches.push(fork.state);
        }
        Ok(DraftReport { chunks, branches, rows, seconds, drafting, forked })
    }

    /// Drafts one more token for each text and branch whose chunk is longer than `round`.
    fn draft_round(
        &self,
        all: &mut [Drafting<B>],
        forks: &mut [Drafting<B>],
        round: usize,
    ) -> Result<()> {
        let drafting = all.iter_mut().chain(forks).filter(|d| d.item.gamma > round);
        let drafting: Vec<_> = drafting.collect();
        if drafting.is_empty() { Ok(()) } else { self.draft_one(drafting) }
    }

    /// Truncates a request's sequence to `keep` tokens, or creates it.
    fn begin(&mut self, mut item: DraftItem) -> Result<Drafting<B>> {
        let options = SequenceOptions { planned_len: Some(item.planned_len), ..Default::default() };
        let mut state = self.sequences.remove(&item.slot).unwrap_or_else(|| SlotState {
            sequence: self.model.new_sequence(options),
            history: item.sampler.history(item.planned_len),
            constraint: None,
            shared: SharedPages::default(),
            forked_at: 0,
            alternatives: BTreeMap::new(),
            branches: Vec::new(),
        });
        if let Some(taken) = item.taken {
            state = self.take_branch(state, taken);
        }
        state.branches.clear();
        state.forget_alternatives(&item);
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
    /// sequences fit at the end of the job. Returns the number of branches that fit too.
    fn use_prefix_cache(&mut self, all: &mut [Drafting<B>], job: &DraftJob) -> Result<usize> {
        for Drafting { item, state, .. } in all.iter_mut() {
            if job.prefix_cache && item.tail.len() > MAX_TAIL {
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
        let resting = self.sequences.values();
        let resting = resting.flat_map(|state| state.branches.iter().chain([state]));
        let resting = resting.map(|state| state.own_pages(0, page));
        let working = all.iter().map(|d| d.state.own_pages(d.item.rows(), page));
        let room = job.pages.saturating_sub(resting.chain(working).sum());
        // A branch copies the page where it leaves its text.
        let of_branch = 1 + job.gamma.div_ceil(page);
        let wanted: usize = all.iter().map(|d| d.item.branches()).sum();
        let fitting = wanted.min(room.saturating_sub(self.prefix_cache.in_use()) / of_branch);
        let cache = if job.prefix_cache { room - fitting * of_branch } else { 0 };
        self.prefix_cache.shrink_to(cache);
        Ok(fitting)
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
        let argmax_only = drafting.iter().all(|d| !d.reads_logits());
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
                (Some(all), _) if d.reads_logits() => {
                    let Ok(drafted) = d.draft(all.step(self.model.backend(), i)?, self.vocab)
                    else {
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

impl<B: Backend> SlotState<B> {
    /// Pages of the sequence after `rows` more rows, without those of the prefix cache and, for a
    /// branch, the whole ones of its text.
    fn own_pages(&self, rows: usize, page: usize) -> usize {
        let shared = self.shared.len().max(self.forked_at / page);
        (self.sequence.len() + rows).div_ceil(page).saturating_sub(shared)
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

    /// Whether its logits are read, not only their argmax.
    fn reads_logits(&self) -> bool {
        self.item.branching.is_some() || !self.takes_argmax()
    }

    /// Draws the next token from the draft's logits `[vocab]`, and keeps its alternatives if there
    /// are to be branches.
    fn draft(&mut self, mut logits: Vec<f32>, limit: usize) -> Result<Drafted> {
        let SlotState { sequence, history, constraint, alternatives, .. } = &mut self.state;
        if let Some(history) = history {
            self.item.sampler.process(&mut logits, history);
        }
        if let Some(constraint) = constraint {
            constraint.mask(&mut logits)?;
        }
        if self.item.branching.is_some() {
            alternatives.insert(sequence.len(), Alternatives::of(&logits, limit));
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
