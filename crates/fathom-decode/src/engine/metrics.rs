//! Where an engine's time goes.

use std::collections::BTreeMap;

use crate::{Acceptance, Line, Mean, Mode};

/// What an engine has done so far.
#[derive(Clone, Debug, Default)]
pub struct EngineMetrics {
    /// Steps made, by way of decoding.
    pub steps: BTreeMap<Mode, usize>,
    /// Tokens committed.
    pub tokens: usize,
    /// Drafts that never became text.
    pub wasted: usize,
    /// Steps of a sequence whose text the draft cannot follow: longer than its context, or with a
    /// token it does not have.
    pub beyond_draft: usize,
    /// Judged and accepted drafts.
    pub acceptance: Acceptance,
    /// γ of the last step.
    pub gamma: usize,
    /// γ of the steps of PEARL in which all sequences were in pre-verify.
    pub gamma_pre_verify: Mean,
    /// γ of the other steps that drafted.
    pub gamma_post_verify: Mean,
    /// Requests sent back to wait because the caches were full.
    pub preemptions: usize,
    /// Most pages the target's caches held at a time; the draft's hold no more.
    pub kv_pages: usize,
    /// Both models' prefill, which overlap.
    pub prefill_seconds: f64,
    /// The draft's work on chunks; in PEARL it overlaps with the target's.
    pub draft_seconds: f64,
    /// Seconds in which the draft drafts one token for every sequence.
    pub draft_cost: Mean,
    /// Seconds of a pass of the target, by the tokens it scores.
    pub pass_cost: Line,
    /// The target's passes.
    pub verify_seconds: f64,
    /// The target waiting for the draft.
    pub wait_seconds: f64,
    /// Judging, sampling and rolling back.
    pub judge_seconds: f64,
}

/// What an engine behind a handle has done so far, and what it has to do. Every request submitted
/// is in one of the places.
#[derive(Clone, Debug, Default)]
pub struct HandleMetrics {
    /// The engine's own.
    pub engine: EngineMetrics,
    /// Requests taken so far.
    pub submitted: u64,
    /// Of those: waiting for a place in the batch.
    pub waiting: usize,
    /// In the batch, their prompts not yet all in the caches.
    pub prefilling: usize,
    /// In the batch, with new tokens at every step.
    pub running: usize,
    /// Ended as their parameters say.
    pub finished: u64,
    /// Cancelled, or left when the last handle was dropped.
    pub cancelled: u64,
    /// Ended with an error.
    pub failed: u64,
}
