//! Metrics of an engine.

use std::collections::BTreeMap;

use crate::{Acceptance, Line, Mean, Mode, Outcome, Phase};

/// Counts and times of an engine.
#[derive(Clone, Debug, Default)]
pub struct EngineMetrics {
    /// The mode of the last step.
    pub mode: Option<Mode>,
    /// Steps by mode.
    pub steps: BTreeMap<Mode, usize>,
    /// Tokens committed.
    pub tokens: usize,
    /// Drafts that did not become text.
    pub wasted: usize,
    /// Rows that the target scored in decoding steps.
    pub target_rows: usize,
    /// Steps of sequences in `pearl` and `forked` for which nothing was pending: the target scored
    /// a single token.
    pub bubbles: usize,
    /// Free guesses that the target scored besides the drafts of a model.
    pub guesses: usize,
    /// Branches of `forked`.
    pub branches: BranchMetrics,
    /// Steps of sequences whose text the draft cannot follow: longer than its context, or with a
    /// token outside its vocabulary.
    pub steps_without_draft: usize,
    /// Judged and accepted drafts.
    pub acceptance: Acceptance,
    /// γ of the last step.
    pub gamma: usize,
    /// γ of the PEARL steps with all sequences in pre-verify.
    pub gamma_pre_verify: Mean,
    /// γ of the other steps with drafts.
    pub gamma_post_verify: Mean,
    /// Requests preempted because the caches were full.
    pub preemptions: usize,
    /// Pages now in the target's caches: those of the requests in the batch, and of the prefix
    /// cache.
    pub pages_used: usize,
    /// Those of them that no text uses: the prefix cache keeps them until a text needs the room.
    pub pages_cached: usize,
    /// The limit of `pages_used`.
    pub pages_total: usize,
    /// Largest number of pages in the target's caches after a pass.
    pub kv_pages: usize,
    /// Tokens prefilled by the target: of prompts, and of texts that were preempted.
    pub prefill_tokens: usize,
    /// Prompt tokens looked up in the prefix cache.
    pub prefix_queries: usize,
    /// Prompt tokens taken from the prefix cache.
    pub prefix_hits: usize,
    /// Seconds of prefill in both models, which overlap.
    pub prefill_seconds: f64,
    /// Seconds of the draft's jobs in decoding steps: catch-up prefill and drafting. In PEARL they
    /// overlap with the target's.
    pub draft_seconds: f64,
    /// Seconds to draft one token for every sequence, without catch-up prefill.
    pub draft_cost: Mean,
    /// Seconds of a target pass by the tokens it scores.
    pub pass_cost: Line,
    /// Seconds of the target's passes.
    pub verify_seconds: f64,
    /// Seconds in which the target waited for the draft.
    pub wait_seconds: f64,
    /// Seconds of judging, sampling and rolling back.
    pub judge_seconds: f64,
}

impl EngineMetrics {
    /// Records a step of `mode` for one text, which began in `phase`, with this many free guesses.
    pub(super) fn record(&mut self, mode: Mode, phase: Phase, guesses: usize, outcome: &Outcome) {
        self.bubbles += usize::from(mode.is_parallel() && phase == Phase::PreVerify);
        self.guesses += if mode.needs_draft_model() { guesses } else { 0 };
        if outcome.ends_run && outcome.judged > 0 {
            self.branches.rejections += 1;
            self.branches.taken += usize::from(outcome.pending > 0);
        }
        self.acceptance.record(outcome);
        self.tokens += outcome.committed;
        self.wasted += outcome.wasted;
    }

    /// Rows that the target scored without a token for the text.
    pub fn wasted_rows(&self) -> usize {
        self.target_rows.saturating_sub(self.tokens)
    }
}

/// Counts of the branches of `forked`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BranchMetrics {
    /// Tokens drafted in branches.
    pub drafted: usize,
    /// Rejections of drafts.
    pub rejections: usize,
    /// Those of them after which the text went on in a branch.
    pub taken: usize,
}

impl BranchMetrics {
    /// Share of rejections after which the text went on in a branch; 0 without rejections.
    pub fn rate(&self) -> f64 {
        self.taken as f64 / self.rejections.max(1) as f64
    }
}

/// Metrics of an engine on its own thread. Every submitted request is counted in exactly one of the
/// states `waiting` to `failed`.
#[derive(Clone, Debug, Default)]
pub struct HandleMetrics {
    /// The engine's metrics.
    pub engine: EngineMetrics,
    /// Requests submitted so far.
    pub submitted: u64,
    /// Waiting for a place in the batch.
    pub waiting: usize,
    /// In the batch, with an incomplete prefill.
    pub prefilling: usize,
    /// In the batch, decoding.
    pub running: usize,
    /// Ended normally.
    pub finished: u64,
    /// Cancelled, or unfinished when the last handle was dropped.
    pub cancelled: u64,
    /// Ended with an error.
    pub failed: u64,
}
