//! Prefill of prompts, chunk by chunk, between the decoding steps of other requests.

use std::collections::HashMap;
use std::time::Instant;

use fathom_backend::Backend;
use fathom_model::{LogitRows, Logits, PREFILL_CHUNK, Probe, Result, Sequence, Step};

use super::Engine;
use super::drafting::share_seconds;
use super::prefix_cache::PageKey;
use super::slot::Slot;
use super::watch::Watching;

/// Tokens of a chunk that belong to the oldest prompt.
const OLDEST_SHARE: usize = PREFILL_CHUNK / 4;

/// Tokens of a chunk whose logits are wanted: they take more memory than the rest of the pass.
const SCORED: usize = PREFILL_CHUNK / 8;

impl<B: Backend> Engine<B> {
    /// Prefills at most one chunk of tokens in both models. The draft skips texts that it cannot
    /// follow. Requests whose caches lack only the last token start running: the first step feeds
    /// that token.
    pub(super) fn prefill_chunk(&mut self) -> Result<()> {
        let mut prefilling = std::mem::take(&mut self.prefilling);
        for slot in &mut prefilling {
            self.metrics.prefix_hits += self.take_cached_rows(slot);
        }
        self.prefilling = prefilling;
        self.shrink_prefix_cache();
        let lengths = self.divide_chunk();
        let slots = self.prefilling.iter().zip(&lengths);
        let feeds: Vec<Vec<u32>> =
            slots.map(|(slot, &length)| slot.unfilled()[..length].to_vec()).collect();
        if feeds.iter().any(|tokens| !tokens.is_empty()) {
            self.feed(&feeds)?;
            for (slot, tokens) in self.prefilling.iter_mut().zip(&feeds) {
                if self.options.prefix_cache && !tokens.is_empty() {
                    self.prefix_cache.share_slot(&self.target, slot);
                }
            }
        }
        let filled = |slot: &mut Slot<B>| slot.unfilled().is_empty();
        self.running.extend(self.prefilling.extract_if(.., filled));
        Ok(())
    }

    /// The number of tokens of each prompt in the next chunk: the prompt with the fewest missing
    /// tokens first, so that a long one does not hold up short ones, and a share for the oldest, so
    /// that short ones cannot hold up a long one for ever. A prompt whose next page is in the chunk
    /// already, as part of another prompt, waits: it takes the page from the prefix cache. If it is
    /// watched, the other one must be watched too. Prompts whose log-probabilities are wanted have
    /// a share of [`SCORED`] tokens together.
    fn divide_chunk(&self) -> Vec<usize> {
        let missing: Vec<usize> =
            self.prefilling.iter().map(|slot| slot.unfilled().len()).collect();
        let mut order: Vec<usize> = (0..missing.len()).collect();
        order.sort_by_key(|&i| missing[i]); // stable: the older one first
        let oldest = order.iter().min().map(|&i| (i, OLDEST_SHARE));
        let turns = oldest.into_iter().chain(order.iter().map(|&i| (i, PREFILL_CHUNK)));
        let mut lengths = vec![0; missing.len()];
        let (mut room, mut scored, mut pages) = (PREFILL_CHUNK, SCORED, HashMap::new());
        for (i, most) in turns {
            let scores = self.prefilling[i].scores_prompt();
            let most = if scores { most.min(scored) } else { most };
            let length = (missing[i] - lengths[i]).min(most).min(room);
            let begins = length > 0 && lengths[i] == 0;
            let watched = self.prefilling[i].watcher.is_some();
            if let Some(page) = self.next_page(&self.prefilling[i]).filter(|_| begins) {
                if pages.get(&page).is_some_and(|&by_watched| by_watched || !watched) {
                    continue;
                }
                pages.insert(page, watched);
            }
            lengths[i] += length;
            room -= length;
            scored -= if scores { length } else { 0 };
        }
        lengths
    }

    /// The page that a request computes next, if others can take it.
    fn next_page(&self, slot: &Slot<B>) -> Option<PageKey> {
        let sequence = slot.sequence.as_ref()?;
        if !self.options.prefix_cache || !slot.shares_rows() {
            return None;
        }
        self.prefix_cache.next_key(&self.target, sequence, &slot.shared, slot.prefix())
    }

    /// Runs the next tokens of the prompts through both models.
    fn feed(&mut self, feeds: &[Vec<u32>]) -> Result<()> {
        let start = Instant::now();
        let rows: usize = feeds.iter().map(Vec::len).sum();
        let mut fed: Vec<_> = self
            .prefilling
            .iter_mut()
            .zip(feeds)
            .filter(|(_, tokens)| !tokens.is_empty())
            .collect();
        let items = fed.iter_mut().filter_map(|(slot, tokens)| {
            let filled = slot.sequence.as_ref().map_or(0, Sequence::len);
            slot.prefill_item(filled + tokens.len())
        });
        let items: Vec<_> = items.collect();
        let co_running = !items.is_empty();
        self.target.backend().set_co_running(co_running);
        let job = self.job(items, 0, co_running);
        if let Some(draft) = self.draft.as_ref().filter(|_| co_running) {
            draft.send(job);
        }
        let (mut steps, mut watchers) = (Vec::new(), Vec::new());
        let mut failures = Vec::new();
        for (slot, tokens) in self.prefilling.iter_mut().zip(feeds) {
            let scored = slot.scores_prompt();
            let Slot { sequence, watcher, failure, .. } = slot;
            let Some(sequence) = sequence.as_mut().filter(|_| !tokens.is_empty()) else { continue };
            let logits = if scored { LogitRows::All } else { LogitRows::None };
            steps.push(Step { sequence, tokens, logits });
            watchers.push(watcher.as_deref_mut());
            failures.push(failure);
        }
        let mut watching = Watching::new(watchers);
        let probe = watching.is_wanted().then_some(&mut watching as &mut dyn Probe);
        let logits = self.target.forward(&mut steps, probe)?;
        for (failure, error) in failures.into_iter().zip(watching.errors) {
            *failure = failure.take().or(error);
        }
        self.score_prompts(feeds, &logits)?;
        self.target.backend().synchronize()?;
        let seconds = start.elapsed().as_secs_f64();
        for (slot, tokens) in self.prefilling.iter_mut().zip(feeds) {
            slot.target_seconds += seconds * tokens.len() as f64 / rows as f64;
        }
        if let Some(draft) = self.draft.as_mut().filter(|_| co_running) {
            share_seconds(&mut self.prefilling, &draft.receive()?);
        }
        self.metrics.prefill_tokens += rows;
        self.metrics.prefill_seconds += start.elapsed().as_secs_f64();
        Ok(())
    }

    /// Adds the log-probabilities of the prompts that were fed and want them.
    fn score_prompts(&mut self, feeds: &[Vec<u32>], logits: &Logits<B>) -> Result<()> {
        let (width, vocab) = (self.target.config().vocab, self.options.vocab);
        let fed = self.prefilling.iter_mut().zip(feeds).filter(|(_, tokens)| !tokens.is_empty());
        for (step, (slot, tokens)) in fed.enumerate().filter(|(_, (slot, _))| slot.scores_prompt())
        {
            let rows = logits.step(self.target.backend(), step)?;
            let filled = slot.sequence.as_ref().map_or(0, Sequence::len);
            let scored = slot.score_prompt(filled + 1 - tokens.len(), &rows, width, vocab);
            slot.failure = slot.failure.take().or(scored.err());
        }
        Ok(())
    }
}
