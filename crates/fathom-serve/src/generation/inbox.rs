//! The updates of a text between the engine's thread and the connection.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use fathom_decode::engine::{Done, Ticket, TokenLogprobs, Update, UpdateCallback};
use fathom_model::{Error, Result};
use tokio::sync::Notify;

use crate::app::{App, Place};
use crate::log::RequestLog;

/// Updates that the connection has not taken yet, merged. Its size is bounded by the length of the
/// text, however slow the reader is.
pub struct Inbox {
    state: Mutex<State>,
    /// Wakes the reader. All texts of a request share it.
    ready: Arc<Notify>,
    /// Whether the reader wants every update, or only the whole text.
    streamed: bool,
}

#[derive(Default)]
struct State {
    pending: Pending,
    reader_gone: bool,
}

/// New tokens of a text.
#[derive(Default)]
pub struct Pending {
    /// The engine's number of the request; absent before the first update.
    pub ticket: Option<Ticket>,
    /// The tokens, in order.
    pub tokens: Vec<NewToken>,
    /// One per token, if requested.
    pub logprobs: Vec<TokenLogprobs>,
    /// Those of the prompt, with the first tokens.
    pub prompt_logprobs: Vec<TokenLogprobs>,
    /// Set after the last token, or if the text failed.
    pub end: Option<Result<Done>>,
}

/// A new token.
#[derive(Clone, Copy, Debug)]
pub struct NewToken {
    /// The token id.
    pub id: u32,
    /// Whether it was drafted and accepted.
    pub drafted: bool,
}

impl Inbox {
    /// An empty inbox.
    pub fn new(ready: Arc<Notify>, streamed: bool) -> Inbox {
        Inbox { state: Mutex::default(), ready, streamed }
    }

    /// Takes at most `most` tokens; the end only with the last of them. `None` if there is nothing
    /// to take yet.
    pub fn take(&self, most: usize) -> Option<Pending> {
        let mut state = self.lock();
        let pending = &mut state.pending;
        if pending.end.is_none() && (!self.streamed || pending.tokens.is_empty()) {
            return None;
        }
        if pending.tokens.len() <= most {
            return Some(std::mem::take(pending));
        }
        let tokens = pending.tokens.drain(..most).collect();
        let most = most.min(pending.logprobs.len());
        let logprobs = pending.logprobs.drain(..most).collect();
        let prompt_logprobs = std::mem::take(&mut pending.prompt_logprobs);
        Some(Pending { ticket: pending.ticket, tokens, logprobs, prompt_logprobs, end: None })
    }

    /// Tells the engine's side that nobody reads any more.
    pub fn close(&self) {
        self.lock().reader_gone = true;
    }

    /// Adds an update. Returns whether somebody still reads.
    fn put(&self, update: Result<Update>) -> bool {
        let mut state = self.lock();
        if state.reader_gone {
            return false;
        }
        let pending = &mut state.pending;
        let has_ended = match update {
            Ok(update) => {
                pending.ticket = Some(update.ticket);
                let accepted = update.outcome.accepted;
                let new = |(place, id)| NewToken { id, drafted: place < accepted };
                pending.tokens.extend(update.tokens.into_iter().enumerate().map(new));
                pending.logprobs.extend(update.logprobs);
                pending.prompt_logprobs.extend(update.prompt_logprobs);
                pending.end = update.done.map(Ok);
                pending.end.is_some()
            }
            Err(error) => {
                pending.end = Some(Err(error));
                true
            }
        };
        drop(state);
        if self.streamed || has_ended {
            self.ready.notify_one();
        }
        true
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The engine's side of an inbox: measures times and passes updates on.
pub struct Outlet {
    inbox: Arc<Inbox>,
    app: Arc<App>,
    /// The text's place in the queue, given back when the engine drops the callback.
    _place: Place,
    log: Arc<RequestLog>,
    /// When the last tokens came.
    last: Option<Instant>,
}

impl Outlet {
    /// An outlet for a text of the request of `log`.
    pub fn new(inbox: Arc<Inbox>, app: Arc<App>, place: Place, log: Arc<RequestLog>) -> Outlet {
        Outlet { inbox, app, _place: place, log, last: None }
    }

    /// The callback for the engine.
    pub fn into_callback(mut self) -> UpdateCallback {
        Box::new(move |update| {
            match &update {
                Ok(update) => self.measure(update),
                Err(Error::Stopped(why)) => self.app.engine_failed(why),
                Err(_) => {}
            }
            self.inbox.put(update)
        })
    }

    fn measure(&mut self, update: &Update) {
        let metrics = &self.app.metrics;
        if let Some(done) = &update.done {
            metrics.queued(done.queue_seconds);
        }
        let tokens = update.tokens.len();
        if tokens == 0 {
            return;
        }
        let now = Instant::now();
        match self.last {
            None => metrics.first_token(now - self.log.arrived()),
            Some(last) => metrics.next_tokens(now - last, tokens),
        }
        metrics.tokens(tokens);
        self.log.tokens(tokens);
        self.last = Some(now);
    }
}
