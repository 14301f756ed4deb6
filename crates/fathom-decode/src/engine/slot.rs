//! A request in an engine.

use std::sync::Arc;

use fathom_backend::Backend;
use fathom_model::{Error, Model, Result, Sequence};

use super::draft_worker::{DraftItem, DraftLimits};
use super::request::Ticket;
use super::rules::Checked;
use super::watch::Watcher;
use crate::{Acceptance, Completion, Drafted, History, Pearl, Runs, Sampler};

/// One request and everything that is its own.
///
/// Between steps, while the request runs: the target's cache holds the text but its last token; the
/// draft's holds `drafted_len` tokens of text and pending drafts, at most all but the last.
pub(super) struct Slot<B: Backend> {
    pub ticket: Ticket,
    /// The caller's number for it.
    pub request: u64,
    /// Names the draft's sequence; a new one for every admission.
    pub number: u64,
    /// Length of the prompt, for rotary scalings that depend on it.
    pub planned_len: usize,
    pub text: Completion,
    pub sampler: Arc<Sampler>,
    /// The text, counted, where logits are processed by it.
    pub history: Option<History>,
    pub pearl: Pearl,
    /// The target's cache; `None` while waiting.
    pub sequence: Option<Sequence<B>>,
    drafted_len: usize,
    /// What the draft can follow; `None` without one.
    limits: Option<DraftLimits>,
    /// Whether it can follow this text. Once it cannot, it never can, unless the text is taken
    /// back.
    speculates: bool,
    pub runs: Runs,
    pub acceptance: Acceptance,
    pub watcher: Option<Box<dyn Watcher>>,
    /// What the watcher failed on.
    pub failure: Option<Error>,
}

impl<B: Backend> Slot<B> {
    pub fn new(request: Checked, limits: Option<DraftLimits>) -> Slot<B> {
        let Checked { ticket, request, text, sampler, watcher } = request;
        let planned_len = text.tokens().len();
        let mut history = sampler.history(planned_len);
        if let Some(history) = &mut history {
            history.follow(0, text.tokens());
        }
        let mut slot = Slot {
            ticket,
            request,
            number: 0,
            planned_len,
            text,
            sampler,
            history,
            pearl: Pearl::new(),
            sequence: None,
            drafted_len: 0,
            limits,
            speculates: false,
            runs: Runs::default(),
            acceptance: Acceptance::default(),
            watcher,
            failure: None,
        };
        slot.speculates = slot.is_followed();
        slot
    }

    fn is_followed(&self) -> bool {
        self.limits.is_some_and(|limits| limits.allow(self.text.tokens()))
    }

    /// Whether tokens are drafted for this text, or pending. If not, every way of decoding is plain
    /// decoding.
    pub fn speculates(&self) -> bool {
        self.speculates
    }

    /// Whether its next tokens are the most likely ones of the target's own logits: those are then
    /// not needed.
    pub fn takes_argmax(&self) -> bool {
        self.sampler.takes_argmax(self.text.generated().len())
    }

    /// Counts what was committed from position `before` on.
    pub fn count_from(&mut self, before: usize) {
        if let Some(history) = &mut self.history {
            history.follow(before, &self.text.tokens()[before..]);
        }
    }

    /// What the target is fed to judge `drafts`.
    pub fn feed(&self, drafts: &[Drafted]) -> Vec<u32> {
        let last = self.text.tokens().last().copied();
        last.into_iter().chain(drafts.iter().map(|draft| draft.token)).collect()
    }

    /// The part of the text that must be in both caches before the first step: all but its last
    /// token.
    fn prefix(&self) -> &[u32] {
        let tokens = self.text.tokens();
        &tokens[..tokens.len().saturating_sub(1)]
    }

    /// At most `most` tokens that are still to be prefilled.
    pub fn unfilled(&self, most: usize) -> &[u32] {
        let filled = self.sequence.as_ref().map_or(0, Sequence::len);
        let rest = self.prefix().get(filled..).unwrap_or_default();
        &rest[..most.min(rest.len())]
    }

    /// What the draft is told to do so that it prefills `tokens`, the next of the text. `None`
    /// where it cannot follow the text.
    pub fn prefill_item(&mut self, tokens: &[u32]) -> Option<DraftItem> {
        if !self.speculates {
            return None;
        }
        let keep = self.drafted_len;
        self.drafted_len += tokens.len();
        Some(self.item(keep, tokens.to_vec(), 0))
    }

    /// The same for all of the prompt, where the draft holds nothing of it.
    pub fn prompt_item(&mut self) -> Option<DraftItem> {
        let prefix = self.prefix().to_vec();
        let missing = self.drafted_len == 0 && !prefix.is_empty();
        if missing { self.prefill_item(&prefix) } else { None }
    }

    /// What the draft is told to do in a step: to continue text and pending drafts by a chunk, as
    /// far as there is room. `None` where there is none.
    pub fn draft_item(&mut self, gamma: usize) -> Option<DraftItem> {
        let prefix = self.pearl.prefix(&self.text);
        let gamma = gamma.min(self.room().saturating_sub(self.pearl.pending().len()));
        if gamma == 0 {
            return None;
        }
        let keep = self.drafted_len.min(prefix.len() - 1);
        self.drafted_len = prefix.len() + gamma - 1;
        Some(self.item(keep, prefix[keep..].to_vec(), gamma))
    }

    fn item(&self, keep: usize, tail: Vec<u32>, gamma: usize) -> DraftItem {
        let sampler = Arc::clone(&self.sampler);
        let (slot, planned_len) = (self.number, self.planned_len);
        DraftItem { slot, planned_len, keep, tail, gamma, sampler }
    }

    /// Most drafts after the text: as many as it may still get, and as the draft can follow. Its
    /// context need not hold the last of them.
    fn room(&self) -> usize {
        let followed = match self.limits {
            Some(limits) if self.speculates => limits.context + 1 - self.text.tokens().len(),
            _ => 0,
        };
        followed.min(self.text.remaining())
    }

    /// Most tokens that a cache holds at the end of a step with chunks of at most `gamma`: text,
    /// pending drafts and the chunk, as far as there is room; without room, text and the target's
    /// next token.
    pub fn reach(&self, gamma: usize) -> usize {
        let drafts = (self.pearl.pending().len() + gamma).min(self.room());
        self.text.tokens().len() + drafts.max(1)
    }

    /// Whether the draft could follow the text before the last step and no longer can. It then
    /// holds nothing of it.
    pub fn outgrows_draft(&mut self) -> bool {
        if !self.speculates || self.is_followed() {
            return false;
        }
        self.speculates = false;
        self.drafted_len = 0;
        true
    }

    /// Takes both caches back to what holds.
    pub fn roll_back(&mut self, target: &Model<B>) -> Result<()> {
        let text = self.text.tokens().len();
        self.drafted_len = self.drafted_len.min(text + self.pearl.pending().len() - 1);
        self.watcher_keeps(text - 1);
        match &mut self.sequence {
            Some(sequence) => target.truncate(sequence, text - 1),
            None => Ok(()),
        }
    }

    fn watcher_keeps(&mut self, len: usize) {
        if let Some(watcher) = &mut self.watcher {
            watcher.keep(len);
        }
    }

    /// Takes text and caches back to the prompt, as if it had just been prefilled.
    pub fn rewind(&mut self, target: &Model<B>) -> Result<()> {
        self.drop_pending();
        self.text.rewind();
        self.count_from(self.text.tokens().len());
        self.speculates = self.is_followed();
        (self.runs, self.acceptance) = (Runs::default(), Acceptance::default());
        self.roll_back(target)
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
        self.watcher_keeps(0);
        let dropped = self.drop_pending();
        self.drafted_len = 0;
        dropped
    }
}
