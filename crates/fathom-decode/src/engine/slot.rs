//! The state of one request in an engine.

use std::sync::Arc;
use std::time::Instant;

use fathom_backend::Backend;
use fathom_model::{Error, Result, Sequence, Transformer};

use super::draft_worker::{Branching, DraftItem, DraftLimits};
use super::guessing::Guesser;
use super::prefix_cache::SharedPages;
use super::request::Ticket;
use super::rules::Checked;
use super::watch::Watcher;
use crate::{
    Acceptance, AcceptedRuns, Branch, Completion, ConstrainedText, Drafted, History, Pearl,
    Sampler, TokenLogprobs, Verification,
};

/// The state of one request.
///
/// Invariant between steps of a running request: the target's cache holds the text without its last
/// token. The draft's cache holds the first `drafted_len` tokens of text and pending drafts
/// together, and never the last of them.
pub(super) struct Slot<B: Backend> {
    pub ticket: Ticket,
    /// The caller's number for it.
    pub request: u64,
    pub submitted: Instant,
    /// From its submission to its first admission.
    pub queue_seconds: Option<f64>,
    /// Key of the draft's sequence, new at every admission.
    pub number: u64,
    /// Prompt length in tokens, for rotary scalings that depend on it.
    pub planned_len: usize,
    pub text: Completion,
    pub sampler: Arc<Sampler>,
    /// Token counts of the text. `None` if logits are not processed.
    pub history: Option<History>,
    /// `None` if the text is free.
    pub constraint: Option<ConstrainedText>,
    /// Number of most likely tokens reported with each token; `None`: no log-probabilities.
    pub logprobs: Option<usize>,
    /// The same for the tokens of the prompt.
    pub prompt_logprobs: Option<usize>,
    /// Those of the prompt so far, until the first update takes them.
    pub of_prompt: Vec<TokenLogprobs>,
    pub pearl: Pearl,
    pub guesser: Guesser,
    /// The branches that the draft considered in this step; see [`Branch`].
    pub branches: Vec<Branch>,
    /// The one that the text took, until the draft knows.
    taken: Option<usize>,
    /// The target's cache. `None` while waiting.
    pub sequence: Option<Sequence<B>>,
    /// The pages of the target's cache that are the prefix cache's.
    pub shared: SharedPages,
    /// Tokens of the prompt whose rows were taken from the prefix cache.
    pub cached: usize,
    drafted_len: usize,
    /// The draft's limits. `None` without a draft.
    limits: Option<DraftLimits>,
    /// Whether the draft can follow this text. Once false, it stays false until a rewind.
    speculates: bool,
    pub runs: AcceptedRuns,
    pub acceptance: Acceptance,
    /// Its share of the passes of target and draft.
    pub target_seconds: f64,
    pub draft_seconds: f64,
    pub watcher: Option<Box<dyn Watcher>>,
    /// The watcher's error.
    pub failure: Option<Error>,
}

impl<B: Backend> Slot<B> {
    pub fn new(request: Checked, limits: Option<DraftLimits>) -> Slot<B> {
        let Checked { logprobs, prompt_logprobs, watcher, .. } = request;
        let Checked { ticket, request, submitted, text, sampler, constraint, .. } = request;
        let planned_len = text.tokens().len();
        let mut history = sampler.history(planned_len);
        if let Some(history) = &mut history {
            history.follow(0, text.tokens());
        }
        let mut slot = Slot {
            ticket,
            request,
            submitted,
            queue_seconds: None,
            number: 0,
            planned_len,
            text,
            sampler,
            history,
            constraint,
            logprobs,
            prompt_logprobs,
            of_prompt: Vec::new(),
            pearl: Pearl::new(),
            guesser: Guesser::default(),
            branches: Vec::new(),
            taken: None,
            sequence: None,
            shared: SharedPages::default(),
            cached: 0,
            drafted_len: 0,
            limits,
            speculates: false,
            runs: AcceptedRuns::default(),
            acceptance: Acceptance::default(),
            target_seconds: 0.0,
            draft_seconds: 0.0,
            watcher,
            failure: None,
        };
        slot.speculates = slot.draft_can_follow();
        slot
    }

    fn draft_can_follow(&self) -> bool {
        self.limits.is_some_and(|limits| limits.allow(self.text.tokens()))
    }

    /// Whether tokens are drafted for this text. If not, every mode decodes it like `ar`.
    pub fn speculates(&self) -> bool {
        self.speculates
    }

    /// Whether its next tokens are the argmax of the target's unprocessed logits.
    pub fn takes_argmax(&self) -> bool {
        self.constraint.is_none() && self.sampler.takes_argmax(self.text.generated().len())
    }

    /// Whether its logits are read, not only their argmax.
    pub fn reads_logits(&self) -> bool {
        self.logprobs.is_some() || !self.takes_argmax()
    }

    /// Updates token counts and constraint with the tokens committed from position `before` on.
    ///
    /// # Errors
    /// Errors of the constraint.
    pub fn follow_text(&mut self, before: usize) -> Result<()> {
        if let Some(history) = &mut self.history {
            history.follow(before, &self.text.tokens()[before..]);
        }
        match &mut self.constraint {
            Some(constraint) if !self.text.is_finished() => {
                constraint.follow(self.text.generated())
            }
            _ => Ok(()),
        }
    }

    /// The target's input to judge `drafts`: the last token of the text and the drafts.
    pub fn feed(&self, drafts: &[Drafted]) -> Vec<u32> {
        let last = self.text.tokens().last().copied();
        last.into_iter().chain(drafts.iter().map(|draft| draft.token)).collect()
    }

    /// Number of tokens of the prompt without the last: what both caches hold after its prefill.
    pub fn prompt_prefix(&self) -> usize {
        self.planned_len.saturating_sub(1)
    }

    /// Whether it may take rows from the prefix cache and leave its own there. Rows that a watcher
    /// edits are no one else's. Log-probabilities of a prompt come from its computation.
    pub fn shares_rows(&self) -> bool {
        let watcher = self.watcher.as_ref();
        let shares = watcher.is_none_or(|watcher| watcher.shares() && !watcher.edits());
        shares && self.prompt_logprobs.is_none()
    }

    /// Whether the rows of its prefill give log-probabilities of its prompt.
    pub fn scores_prompt(&self) -> bool {
        self.prompt_logprobs.is_some() && self.text.generated().is_empty()
    }

    /// Adds the log-probabilities of the prompt's tokens `from` and on. `logits` `[rows, width]`
    /// are those of the tokens before them; ids ≥ `vocab` are padding.
    ///
    /// # Errors
    /// Logits that are not numbers.
    pub fn score_prompt(
        &mut self,
        from: usize,
        logits: &[f32],
        width: usize,
        vocab: usize,
    ) -> Result<()> {
        let top = self.prompt_logprobs.unwrap_or(0);
        for (row, &token) in logits.chunks_exact(width).zip(&self.text.tokens()[from..]) {
            self.of_prompt.push(TokenLogprobs::of(row, token, top, vocab)?);
        }
        Ok(())
    }

    /// The target's input in PEARL: the last token of the text, the pending drafts, and the guesses
    /// to verify after them.
    pub fn feed_pending(&self) -> Vec<u32> {
        let mut feed = self.feed(self.pearl.pending());
        feed.extend(self.guesser.verified().iter().map(|guess| guess.token));
        feed
    }

    /// Number of tokens that a chunk of `gamma` has room for.
    pub fn chunk_len(&self, gamma: usize) -> usize {
        gamma.min(self.room().saturating_sub(self.pearl.pending().len()))
    }

    /// The text without its last token: what both caches hold before the first step.
    pub fn prefix(&self) -> &[u32] {
        let tokens = self.text.tokens();
        &tokens[..tokens.len().saturating_sub(1)]
    }

    /// The tokens that are not prefilled yet.
    pub fn unfilled(&self) -> &[u32] {
        let filled = self.sequence.as_ref().map_or(0, Sequence::len);
        self.prefix().get(filled..).unwrap_or_default()
    }

    /// The draft's work item to prefill the text up to `end`. `None` if the draft cannot follow the
    /// text.
    pub fn prefill_item(&mut self, end: usize) -> Option<DraftItem> {
        if !self.speculates {
            return None;
        }
        let keep = self.drafted_len;
        let item = self.item(keep, self.text.tokens()[keep..end].to_vec(), 0);
        self.drafted_len = end;
        Some(item)
    }

    /// The draft's work item to prefill the whole prompt. `None` if the draft holds some of it.
    pub fn prompt_item(&mut self) -> Option<DraftItem> {
        let end = self.prefix().len();
        let missing = self.drafted_len == 0 && end > 0;
        if missing { self.prefill_item(end) } else { None }
    }

    /// The draft's work item of a step: to draft up to `gamma` tokens after the text and the
    /// pending drafts, and branches. `None` if there is no room.
    pub fn draft_item(
        &mut self,
        gamma: usize,
        branches: usize,
        verification: Verification,
    ) -> Option<DraftItem> {
        let prefix = self.pearl.prefix(&self.text);
        let gamma = self.chunk_len(gamma);
        if gamma == 0 {
            return None;
        }
        let keep = self.drafted_len.min(prefix.len() - 1);
        let mut item = self.item(keep, prefix[keep..].to_vec(), gamma);
        let text_len = self.text.tokens().len();
        item.branching = (branches > 0).then_some(Branching { branches, text_len, verification });
        self.drafted_len = prefix.len() + gamma - 1;
        Some(item)
    }

    fn item(&mut self, keep: usize, tail: Vec<u32>, gamma: usize) -> DraftItem {
        let sampler = Arc::clone(&self.sampler);
        let (slot, planned_len) = (self.number, self.planned_len);
        // The first item brings the draft its own copy. If it cannot be made, the target's fails
        // too, and ends the request.
        let constraint = self.constraint.as_mut().filter(|_| self.drafted_len == 0);
        let constraint = constraint.and_then(|constraint| constraint.fork().ok());
        let taken = self.taken.take();
        let branching = None;
        DraftItem { slot, planned_len, keep, tail, gamma, sampler, constraint, taken, branching }
    }

    /// Records the branch that the text took. If it has pending drafts, the draft's cache is that
    /// branch's from now on.
    pub fn take_branch(&mut self, branch: Option<usize>) {
        self.taken = branch.filter(|_| !self.pearl.pending().is_empty());
        self.branches.clear();
    }

    /// Maximum number of drafts after the text: limited by the remaining tokens of the text and by
    /// the draft's context, which need not hold the last draft.
    fn room(&self) -> usize {
        let draftable = match self.limits {
            Some(limits) if self.speculates => limits.context + 1 - self.text.tokens().len(),
            _ => 0,
        };
        draftable.min(self.text.remaining())
    }

    /// Upper bound of the tokens in either cache during a step with chunks of at most `gamma`: the
    /// text and the drafts (pending and chunk) or guesses that there is room for, or the text and
    /// one token.
    pub fn reach(&self, gamma: usize) -> usize {
        let drafts = (self.pearl.pending().len() + gamma).min(self.text.remaining());
        self.text.tokens().len() + drafts.max(1)
    }

    /// Whether the draft can no longer follow the text since the last step. The caller must then
    /// drop the draft's sequence.
    pub fn outgrows_draft(&mut self) -> bool {
        if !self.speculates || self.draft_can_follow() {
            return false;
        }
        self.speculates = false;
        (self.drafted_len, self.taken) = (0, None);
        true
    }

    /// Rolls both caches back to the text and the pending drafts.
    pub fn roll_back(&mut self, target: &Transformer<B>) -> Result<()> {
        let text = self.text.tokens().len();
        self.drafted_len = self.drafted_len.min(text + self.pearl.pending().len() - 1);
        self.truncate_watcher(text - 1);
        match &mut self.sequence {
            Some(sequence) => target.truncate(sequence, text - 1),
            None => Ok(()),
        }
    }

    fn truncate_watcher(&mut self, len: usize) {
        if let Some(watcher) = &mut self.watcher {
            watcher.truncate(len);
        }
    }

    /// Resets text and caches to the prompt, as after its prefill.
    pub fn rewind(&mut self, target: &Transformer<B>) -> Result<()> {
        self.drop_pending();
        self.text.rewind();
        self.guesser = Guesser::default();
        Arc::make_mut(&mut self.sampler).start_run(0);
        self.follow_text(self.text.tokens().len())?;
        self.speculates = self.draft_can_follow();
        (self.runs, self.acceptance) = (AcceptedRuns::default(), Acceptance::default());
        self.roll_back(target)
    }

    /// Drops pending drafts, as when the mode changes. Returns their number.
    pub fn drop_pending(&mut self) -> usize {
        let dropped = self.pearl.clear();
        self.drafted_len = self.drafted_len.min(self.text.tokens().len() - 1);
        dropped
    }

    /// Drops the caches. Returns the number of pending drafts.
    pub fn release(&mut self) -> usize {
        self.sequence = None;
        if self.text.generated().is_empty() {
            self.cached = 0;
            self.of_prompt.clear();
        }
        self.truncate_watcher(0);
        let dropped = self.drop_pending();
        (self.drafted_len, self.taken) = (0, None);
        dropped
    }
}
