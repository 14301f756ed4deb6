//! What goes into an engine and what comes out.

use std::sync::Arc;

use super::watch::Watcher;
use crate::{Acceptance, Finish, SamplingParams, StopCheck};

/// A prompt to be continued.
pub struct Request {
    /// The caller's number for it: part of the key of its randomness, with its seed, so the same
    /// request has the same text whatever else is in the batch. Several may have the same.
    pub id: u64,
    /// Token ids, at least one.
    pub prompt: Vec<u32>,
    /// How tokens are chosen and when the text ends.
    pub params: SamplingParams,
    /// Tokens that end the text.
    pub eos: Arc<[u32]>,
    /// Watches for the stop strings of `params`, which are text; the engine knows tokens only.
    pub stop: Option<StopCheck>,
    /// Sees what the target computes of the text.
    pub watcher: Option<Box<dyn Watcher>>,
}

/// Which request of an engine is meant. An engine numbers its requests itself: a caller's ids may
/// repeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub(super) u64);

/// What a step added to a request's text.
#[derive(Clone, Debug, PartialEq)]
pub struct Update {
    /// The request.
    pub ticket: Ticket,
    /// The caller's number for it, [`Request::id`].
    pub request: u64,
    /// The tokens it got.
    pub tokens: Vec<u32>,
    /// Set with the last of them.
    pub done: Option<Done>,
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Done {
    /// Why.
    pub finish: Finish,
    /// Mean accepted tokens.
    pub mat: f64,
    /// How its drafts fared.
    pub acceptance: Acceptance,
}
