//! Requests to an engine and their updates.

use std::sync::Arc;

use super::watch::Watcher;
use crate::{Acceptance, Constraint, Finish, Outcome, SamplingParams, StopCheck, TokenLogprobs};

/// A prompt to continue.
pub struct Request {
    /// The caller's number for it. With the seed it keys the random numbers, so the text of a
    /// request does not depend on the rest of the batch, and different ids give different texts for
    /// one prompt and seed. Ids may repeat.
    pub id: u64,
    /// Token ids, at least one.
    pub prompt: Vec<u32>,
    /// How tokens are chosen and when the text ends.
    pub params: SamplingParams,
    /// Tokens that end the text.
    pub eos: Arc<[u32]>,
    /// Detects the stop strings of `params`: the engine has token ids only, not text.
    pub stop: Option<StopCheck>,
    /// Restricts the text, token by token.
    pub constraint: Option<Box<dyn Constraint>>,
    /// Number of most likely tokens whose log-probabilities are reported with each token. `None`:
    /// no log-probabilities.
    pub logprobs: Option<usize>,
    /// The same for each token of the prompt but the first, in the first update. The whole prompt
    /// is then computed: no rows come from the prefix cache.
    pub prompt_logprobs: Option<usize>,
    /// Observes the target's computation of the text, or edits it. A watched text takes rows from
    /// the prefix cache only if the watcher can take over what others saw when they were computed
    /// ([`Watcher::shares`]), and edited rows are not those of other texts.
    pub watcher: Option<Box<dyn Watcher>>,
}

impl Request {
    /// A request with everything optional absent. Other fields can be set afterwards, or with
    /// `Request { logprobs: Some(5), ..Request::new(…) }`.
    pub fn new(id: u64, prompt: Vec<u32>, params: SamplingParams, eos: Arc<[u32]>) -> Request {
        Request {
            id,
            prompt,
            params,
            eos,
            stop: None,
            constraint: None,
            logprobs: None,
            prompt_logprobs: None,
            watcher: None,
        }
    }
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
    /// How the drafts were judged. The first `outcome.accepted` of `tokens` were drafts.
    pub outcome: Outcome,
    /// One per token, if requested.
    pub logprobs: Vec<TokenLogprobs>,
    /// One per token of the prompt but the first, if requested, in the first update.
    pub prompt_logprobs: Vec<TokenLogprobs>,
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
    /// Tokens of the prompt whose rows were taken from the prefix cache.
    pub cached_prompt_tokens: usize,
    /// Seconds from its submission to its place in the batch. After a preemption it waits again,
    /// which does not count.
    pub queue_seconds: f64,
    /// The request's share of the target's passes in seconds, by its rows in each pass.
    pub target_seconds: f64,
    /// The request's share of the draft's passes in seconds, by its rows in each pass.
    pub draft_seconds: f64,
}
