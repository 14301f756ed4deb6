//! Requests to an engine and their updates.

use std::sync::Arc;

use super::watch::Watcher;
use crate::{Acceptance, Finish, SamplingParams, StopCheck};

/// A prompt to continue.
pub struct Request {
    /// The caller's number for it. With the seed it keys the random numbers, so the text of a
    /// request does not depend on the rest of the batch. Ids may repeat.
    pub id: u64,
    /// Token ids, at least one.
    pub prompt: Vec<u32>,
    /// How tokens are chosen and when the text ends.
    pub params: SamplingParams,
    /// Tokens that end the text.
    pub eos: Arc<[u32]>,
    /// Detects the stop strings of `params`: the engine has token ids only, not text.
    pub stop: Option<StopCheck>,
    /// Observes the target's computation of the text, or edits it.
    pub watcher: Option<Box<dyn Watcher>>,
}

/// The engine's own number of a request. Unlike the caller's ids it is unique.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub(super) u64);

/// Result of one step for one request.
#[derive(Clone, Debug, PartialEq)]
pub struct Update {
    /// The request.
    pub ticket: Ticket,
    /// The caller's number for it, [`Request::id`].
    pub request: u64,
    /// The new tokens of its text.
    pub tokens: Vec<u32>,
    /// Set in the last update.
    pub done: Option<Done>,
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Done {
    /// Why the text ended.
    pub finish: Finish,
    /// Mean accepted tokens.
    pub mat: f64,
    /// Judged and accepted drafts.
    pub acceptance: Acceptance,
}
