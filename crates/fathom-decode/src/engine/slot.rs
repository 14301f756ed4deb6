//! A request in an engine.

use std::sync::Arc;

use fathom_kernels::Backend;
use fathom_model::{Model, Result, Sequence};

use super::draft_worker::DraftItem;
use crate::{Acceptance, Completion, Drafted, Pearl, Runs, Sampler};

/// One request and everything that is its own.
///
/// Between steps, while the request runs: the target's cache holds the text but its last token; the
/// draft's holds `drafted_len` tokens of text and pending drafts, at most all but the last.
pub(super) struct Slot<'a, B: Backend> {
    pub request: u64,
    /// Names the draft's sequence; a new one for every admission.
    pub number: u64,
    /// Length of the prompt, for rotary scalings that depend on it.
    pub planned_len: usize,
    pub text: Completion<'a>,
    pub sampler: Arc<Sampler>,
    pub pearl: Pearl,
    /// The target's cache; `None` while waiting.
    pub sequence: Option<Sequence<B>>,
    drafted_len: usize,
    pub runs: Runs,
    pub acceptance: Acceptance,
}

impl<'a, B: Backend> Slot<'a, B> {
    pub fn new(
        request: u64,
        planned_len: usize,
        text: Completion<'a>,
        sampler: Arc<Sampler>,
    ) -> Slot<'a, B> {
        Slot {
            request,
            number: 0,
            planned_len,
            text,
            sampler,
            pearl: Pearl::new(),
            sequence: None,
            drafted_len: 0,
            runs: Runs::default(),
            acceptance: Acceptance::default(),
        }
    }

    /// What the target is fed to judge `drafts`.
    pub fn feed(&self, drafts: &[Drafted]) -> Vec<u32> {
        let last = self.text.tokens().last().copied();
        last.into_iter().chain(drafts.iter().map(|draft| draft.token)).collect()
    }

    /// What the draft is told to do: with `gamma` 0, to catch up with all of the text but its last token;
    /// otherwise to continue text and pending drafts by a chunk, as long as the text may still get.
    pub fn draft_item(&mut self, gamma: usize) -> DraftItem {
        let prefix = self.pearl.prefix(&self.text);
        let room = self.text.remaining() - self.pearl.pending().len().min(self.text.remaining());
        let gamma = gamma.min(room);
        let end = if gamma == 0 { prefix.len() - 1 } else { prefix.len() };
        let keep = self.drafted_len.min(end);
        self.drafted_len = (prefix.len() + gamma).saturating_sub(1);
        DraftItem {
            slot: self.number,
            planned_len: self.planned_len,
            keep,
            tail: prefix[keep..end].to_vec(),
            gamma,
            sampler: Arc::clone(&self.sampler),
        }
    }

    /// Takes both caches back to what holds.
    pub fn roll_back(&mut self, target: &Model<B>) -> Result<()> {
        let text = self.text.tokens().len();
        self.drafted_len = self.drafted_len.min(text + self.pearl.pending().len() - 1);
        match &mut self.sequence {
            Some(sequence) => target.truncate(sequence, text - 1),
            None => Ok(()),
        }
    }

    /// Drops pending drafts, as when the way of decoding changes; returns how many.
    pub fn drop_pending(&mut self) -> usize {
        let dropped = self.pearl.clear();
        self.drafted_len = self.drafted_len.min(self.text.tokens().len() - 1);
        dropped
    }

    /// Gives up both caches; returns how many drafts were pending.
    pub fn release(&mut self) -> usize {
        self.sequence = None;
        let dropped = self.drop_pending();
        self.drafted_len = 0;
        dropped
    }
}
