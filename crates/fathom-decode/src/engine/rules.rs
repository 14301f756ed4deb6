//! Validation of requests before they are queued.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use fathom_model::{Error, Result};

use super::request::{Request, Ticket};
use super::watch::Watcher;
use crate::{Completion, ConstrainedText, EndRules, Sampler};

/// Numbers the requests of an engine across threads.
#[derive(Clone, Debug, Default)]
pub(super) struct Tickets(Arc<AtomicU64>);

impl Tickets {
    fn next(&self) -> Ticket {
        Ticket(self.0.fetch_add(1, Ordering::Relaxed))
    }
}

/// The limits that requests are checked against. A copy checks them on any thread without the
/// engine.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    /// Ids < `vocab` are tokens.
    pub vocab: usize,
    /// Maximum number of tokens of prompt and text together.
    pub longest: usize,
    pub tickets: Tickets,
}

/// A valid request.
pub(super) struct Checked {
    pub ticket: Ticket,
    /// The caller's number for it.
    pub request: u64,
    /// When it was submitted.
    pub submitted: Instant,
    pub text: Completion,
    pub sampler: Arc<Sampler>,
    pub constraint: Option<ConstrainedText>,
    pub logprobs: Option<usize>,
    pub prompt_logprobs: Option<usize>,
    pub watcher: Option<Box<dyn Watcher>>,
}

impl Rules {
    /// Validates a request and assigns its ticket.
    ///
    /// # Errors
    /// See [`super::Engine::submit`].
    pub fn check(&self, request: Request) -> Result<Checked> {
        let Request { id, prompt, params, eos, stop, constraint, .. } = request;
        let Request { logprobs, prompt_logprobs, watcher, .. } = request;
        let Rules { vocab, longest, .. } = *self;
        let sampler = Sampler::new(params, id, vocab)?.with_eos(&eos)?;
        let refuse =
            |problem: String| Err(Error::Request(format!("the prompt of request {id} {problem}")));
        if prompt.is_empty() {
            return refuse("is empty; expected at least one token".to_owned());
        }
        if prompt.len() >= longest {
            return refuse(format!(
                "has {} tokens; expected fewer than {longest}, the target's context or the \
                 size of the key/value cache",
                prompt.len()
            ));
        }
        if let Some(token) = prompt.iter().find(|&&token| token as usize >= vocab) {
            return refuse(format!(
                "holds token {token}; expected ids below {vocab}, the target's vocabulary"
            ));
        }
        let params = sampler.params();
        if !params.stop.is_empty() && stop.is_none() {
            return Err(Error::Request(format!(
                "request {id} has stop strings; expected a check that watches for them"
            )));
        }
        if params.ignore_eos && constraint.is_some() {
            return Err(Error::Request(format!(
                "request {id} has a constraint, which decides where its text ends, and ignore-eos; \
                 expected one of them"
            )));
        }
        let eos = if params.ignore_eos { Arc::default() } else { eos };
        let stop_tokens = params.stop_token_ids.as_slice().into();
        let max_tokens = params.max_tokens.min(longest - prompt.len());
        let text = Completion::new(prompt, EndRules { eos, stop_tokens, max_tokens, stop });
        let (ticket, sampler) = (self.tickets.next(), Arc::new(sampler));
        let constraint = constraint.map(ConstrainedText::new);
        let submitted = Instant::now();
        Ok(Checked {
            ticket,
            request: id,
            submitted,
            text,
            sampler,
            constraint,
            logprobs,
            prompt_logprobs,
            watcher,
        })
    }
}
