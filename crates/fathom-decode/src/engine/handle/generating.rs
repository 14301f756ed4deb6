//! The caller's side of one request to an engine that runs on its own thread.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError};
use std::time::Duration;

use fathom_model::Result;

use super::EngineCommand;
use crate::engine::{Ticket, Update};

/// The updates of a request: an iterator that blocks until the next update.
///
/// The last update has [`Update::done`]. A failed request ends with its error, a cancelled one ends
/// without either. Unread updates are queued without limit, so a slow reader delays no other
/// request and costs only the memory of its own tokens.
///
/// Dropping it cancels the request, if it has not ended.
#[derive(Debug)]
pub struct RequestUpdates {
    pub(super) updates: Receiver<Result<Update>>,
    pub(super) canceller: Canceller,
    pub(super) ended: bool,
}

impl RequestUpdates {
    /// The next update, without waiting. `None` if there is none yet, and after the last.
    ///
    /// # Errors
    /// The error of a failed request, once.
    pub fn try_next(&mut self) -> Result<Option<Update>> {
        let received = self.updates.try_recv();
        self.take(received.map_err(|error| error == TryRecvError::Disconnected))
    }

    /// The next update, waiting for at most `timeout`. `None` if none came, and after the last.
    ///
    /// # Errors
    /// The error of a failed request, once.
    pub fn next_timeout(&mut self, timeout: Duration) -> Result<Option<Update>> {
        if self.ended {
            return Ok(None);
        }
        let received = self.updates.recv_timeout(timeout);
        self.take(received.map_err(|error| error == RecvTimeoutError::Disconnected))
    }

    /// Whether there are no more updates.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Cancels the request. There are no more updates, not even queued ones.
    pub fn cancel(&mut self) {
        if !self.ended {
            self.canceller.cancel();
            self.ended = true;
        }
    }

    /// A handle to cancel this request from another thread.
    pub fn canceller(&self) -> Canceller {
        self.canceller.clone()
    }

    /// Returns a received update and tracks the end. `Err` holds whether the channel is
    /// disconnected.
    fn take(&mut self, received: Result<Result<Update>, bool>) -> Result<Option<Update>> {
        if self.ended {
            return Ok(None);
        }
        match received {
            Ok(update) => {
                self.ended = update.as_ref().map_or(true, |update| update.done.is_some());
                update.map(Some)
            }
            Err(disconnected) => {
                self.ended = disconnected;
                Ok(None)
            }
        }
    }
}

impl Iterator for RequestUpdates {
    type Item = Result<Update>;

    fn next(&mut self) -> Option<Result<Update>> {
        if self.ended {
            return None;
        }
        let received = self.updates.recv();
        self.take(received.map_err(|_| true)).transpose()
    }
}

impl Drop for RequestUpdates {
    fn drop(&mut self) {
        self.cancel();
    }
}

/// Cancels a request from any thread.
#[derive(Clone, Debug)]
pub struct Canceller {
    pub(super) ticket: Ticket,
    pub(super) commands: Sender<EngineCommand>,
}

impl Canceller {
    /// Cancels the request before the engine's next step. No effect if it has ended.
    pub fn cancel(&self) {
        // Fails only if the engine has ended, and the request with it.
        drop(self.commands.send(EngineCommand::Cancel(self.ticket)));
    }
}
