//! Admission to the batch by free cache pages, prefill, and preemption when the caches are full.

use std::time::Instant;

use fathom_backend::Backend;
use fathom_model::{LogitRows, PREFILL_CHUNK, Probe, Result, SequenceOptions, Step};

use super::Engine;
use super::draft_worker::DraftJob;
use super::drafting::share_seconds;
use super::slot::Slot;
use super::watch::Watching;

impl<B: Backend> Engine<B> {
    /// Moves waiting requests into the batch while there is room.
    pub(super) fn admit(&mut self) {
        let in_batch = |engine: &Self| engine.running.len() + engine.prefilling.len();
        while in_batch(self) < self.options.batch_size {
            let Some(slot) = self.waiting.front() else { break };
            // A single request always fits: `submit` limits its length.
            let fits = self.pages_needed() + self.pages(slot) <= self.options.kv_pages;
            if !fits && in_batch(self) > 0 {
                break;
            }
            let Some(mut slot) = self.waiting.pop_front() else { break };
            slot.number = self.next_slot;
            self.next_slot += 1;
            slot.sequence = Some(self.target.new_sequence(SequenceOptions {
                planned_len: Some(slot.planned_len),
                ..Default::default()
            }));
            self.prefilling.push_back(slot);
        }
    }

    /// Prefills at most one chunk of tokens in both models, oldest requests first. The draft skips
    /// texts that it cannot follow. Requests whose caches lack only the last token start running:
    /// the first step feeds that token.
    pub(super) fn prefill_chunk(&mut self) -> Result<()> {
        let start = Instant::now();
        let mut room = PREFILL_CHUNK;
        let mut feeds: Vec<Vec<u32>> = Vec::new();
        for slot in &self.prefilling {
            let tokens = slot.unfilled(room);
            room -= tokens.len();
            feeds.push(tokens.to_vec());
        }
        if feeds.iter().any(|tokens| !tokens.is_empty()) {
            let all = self.prefilling.iter_mut().zip(&feeds);
            let mut fed: Vec<_> = all.filter(|(_, tokens)| !tokens.is_empty()).collect();
            let items = fed.iter_mut().filter_map(|(slot, tokens)| slot.prefill_item(tokens));
            let items: Vec<_> = items.collect();
            let drafted: Vec<_> = items.iter().map(|item| (item.slot, item.rows())).collect();
            let rows: usize = feeds.iter().map(Vec::len).sum();
            let co_running = !items.is_empty();
            self.target.backend().set_co_running(co_running);
            if let Some(draft) = self.draft.as_ref().filter(|_| co_running) {
                draft.send(DraftJob { items, gamma: 0, co_running });
            }
            let (mut steps, mut watchers) = (Vec::new(), Vec::new());
            let mut failures = Vec::new();
            for (slot, tokens) in &mut fed {
                let Slot { sequence, watcher, failure, .. } = &mut **slot;
                let Some(sequence) = sequence else { continue };
                steps.push(Step { sequence, tokens, logits: LogitRows::None });
                watchers.push(watcher.as_deref_mut());
                failures.push(failure);
            }
            let mut watching = Watching::new(watchers);
            let probe = watching.is_wanted().then_some(&mut watching as &mut dyn Probe);
            self.target.forward(&mut steps, probe)?;
            for (failure, error) in failures.into_iter().zip(watching.errors) {
                *failure = failure.take().or(error);
            }
            self.target.backend().synchronize()?;
            let seconds = start.elapsed().as_secs_f64();
            for (slot, tokens) in self.prefilling.iter_mut().zip(&feeds) {
                slot.target_seconds += seconds * tokens.len() as f64 / rows as f64;
            }
            if let Some(draft) = self.draft.as_mut().filter(|_| co_running) {
                let seconds = draft.receive()?.seconds;
                share_seconds(self.prefilling.iter_mut(), &drafted, seconds);
            }
            self.metrics.prefill_seconds += start.elapsed().as_secs_f64();
        }
        let filled = |slot: &Slot<B>| slot.unfilled(1).is_empty();
        while self.prefilling.front().is_some_and(filled) {
            self.running.extend(self.prefilling.pop_front());
        }
        Ok(())
    }

    /// Upper bound of the pages of a request's cache at the end of the next step.
    fn pages(&self, slot: &Slot<B>) -> usize {
        slot.reach(self.options.max_gamma()).div_ceil(self.target.backend().kv_page())
    }

    /// Upper bound of the pages of all admitted requests at the end of the next step.
    fn pages_needed(&self) -> usize {
        self.running.iter().chain(&self.prefilling).map(|slot| self.pages(slot)).sum()
    }

    /// Preempts the youngest requests while the caches could exceed their limit. Preempted requests
    /// keep their text, wait, and resume later.
    pub(super) fn preempt(&mut self) {
        while self.pages_needed() > self.options.kv_pages {
            let youngest = match self.prefilling.pop_back() {
                None if self.running.len() > 1 => self.running.pop(),
                youngest => youngest,
            };
            let Some(mut slot) = youngest else { break };
            self.forget_in_draft(slot.number);
            self.metrics.preemptions += 1;
            self.metrics.wasted += slot.release();
            self.waiting.push_front(slot);
        }
    }

    /// Pages currently in the target's caches.
    pub(super) fn pages_held(&self) -> usize {
        let admitted = self.running.iter().chain(&self.prefilling);
        let sequences = admitted.filter_map(|slot| slot.sequence.as_ref());
        let page = self.target.backend().kv_page();
        sequences.map(|sequence| sequence.len().div_ceil(page)).sum()
    }
}
