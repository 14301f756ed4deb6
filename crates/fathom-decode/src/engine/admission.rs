//! Admission to the batch by free cache pages, and preemption when the caches are full.

use fathom_backend::Backend;
use fathom_model::{Sequence, SequenceOptions};

use super::Engine;
use super::slot::Slot;

impl<B: Backend> Engine<B> {
    /// Moves waiting requests into the batch while there is room. They take the rows of their texts
    /// that the prefix cache holds.
    pub(super) fn admit(&mut self) {
        while self.running.len() + self.prefilling.len() < self.options.batch_size {
            let Some(mut slot) = self.waiting.pop_front() else { break };
            slot.number = self.next_slot;
            slot.sequence = Some(self.target.new_sequence(SequenceOptions {
                planned_len: Some(slot.planned_len),
                ..Default::default()
            }));
            let taken = self.take_cached_rows(&mut slot);
            // A single request always fits: `submit` limits its length.
            let fits = self.pages_needed() + self.own_pages(&slot) <= self.options.kv_pages;
            if !fits && self.running.len() + self.prefilling.len() > 0 {
                self.prefix_cache.release(&mut slot.shared, 0);
                slot.release();
                self.waiting.push_front(slot);
                break;
            }
            if self.options.prefix_cache && slot.shares_rows() {
                self.metrics.prefix_queries += slot.prefix().len();
                self.metrics.prefix_hits += taken;
            }
            let waited = slot.submitted.elapsed().as_secs_f64();
            slot.queue_seconds.get_or_insert(waited);
            self.next_slot += 1;
            self.prefilling.push(slot);
        }
    }

    /// Takes rows of a request's text from the prefix cache. Returns their number.
    pub(super) fn take_cached_rows(&mut self, slot: &mut Slot<B>) -> usize {
        if !self.options.prefix_cache || !slot.shares_rows() {
            return 0;
        }
        let Slot { sequence: Some(sequence), shared, text, watcher, failure, .. } = slot else {
            return 0;
        };
        let prefix = text.tokens().split_last().map_or(&[][..], |(_, prefix)| prefix);
        let watcher = watcher.as_deref_mut();
        let taken = self.prefix_cache.take(&self.target, sequence, shared, prefix, watcher);
        let taken = taken.unwrap_or_else(|error| {
            *failure = Some(error);
            0
        });
        if text.generated().is_empty() {
            slot.cached += taken;
        }
        taken
    }

    /// Upper bound of the pages of a request's cache at the end of the next step, without those of
    /// the prefix cache.
    fn own_pages(&self, slot: &Slot<B>) -> usize {
        let pages = slot.reach(self.options.max_gamma()).div_ceil(self.target.backend().kv_page());
        pages - slot.shared.len()
    }

    /// Upper bound of the pages at the end of the next step: those of all admitted requests, and of
    /// the prefix cache without pages that can be evicted.
    fn pages_needed(&self) -> usize {
        self.own_pages_needed() + self.prefix_cache.in_use()
    }

    fn own_pages_needed(&self) -> usize {
        self.running.iter().chain(&self.prefilling).map(|slot| self.own_pages(slot)).sum()
    }

    /// Preempts the youngest requests while the caches could exceed their limit. Preempted requests
    /// keep their text, wait, and resume later.
    pub(super) fn preempt(&mut self) {
        while self.pages_needed() > self.options.kv_pages
            && self.running.len() + self.prefilling.len() > 1
        {
            let all = self.running.iter().chain(&self.prefilling);
            let Some(youngest) = all.map(|slot| slot.number).max() else { break };
            let youngest = |slot: &mut Slot<B>| slot.number == youngest;
            let mut preempted: Vec<_> = self.running.extract_if(.., youngest).collect();
            preempted.extend(self.prefilling.extract_if(.., youngest));
            for mut slot in preempted {
                self.leave_batch(&mut slot);
                self.metrics.preemptions += 1;
                self.metrics.wasted += slot.release();
                self.waiting.push_front(slot);
            }
        }
    }

    /// Evicts pages of the prefix cache that the requests may need in the next step.
    pub(super) fn shrink_prefix_cache(&mut self) {
        let room = self.options.kv_pages.saturating_sub(self.own_pages_needed());
        self.prefix_cache.shrink_to(if self.options.prefix_cache { room } else { 0 });
    }

    /// Pages currently in the target's caches.
    pub(super) fn pages_held(&self) -> usize {
        let page = self.target.backend().kv_page();
        let own = |slot: &Slot<B>| {
            let tokens = slot.sequence.as_ref().map_or(0, Sequence::len);
            tokens.div_ceil(page) - slot.shared.len()
        };
        let admitted = self.running.iter().chain(&self.prefilling);
        admitted.map(own).sum::<usize>() + self.prefix_cache.len()
    }
}
