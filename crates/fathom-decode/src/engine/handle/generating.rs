//! One request's side of an engine on a thread of its own.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError};
use std::time::Duration;

use fathom_model::Result;

use super::Order;
use crate::engine::{Ticket, Update};

/// The updates of a request, as they come: an iterator that waits for each.
///
/// The last update has [`Update::done`]. A request that fails ends with its error. One that is
/// cancelled ends without either. Updates that nobody reads yet are kept: a slow reader holds up no
/// other request, and costs the memory of its own tokens.
///
/// Dropping it cancels the request, unless that has ended.
#[derive(Debug)]
pub struct Generating {
    pub(super) updates: Receiver<Result<Update>>,
    pub(super) canceller: Canceller,
    pub(super) ended: bool,
}

impl Generating {
    /// The next update if it is there already: `None` if not, and after the last.
    ///
    /// # Errors
    /// What the request failed on, once.
    pub fn try_next(&mut self) -> Result<Option<Update>> {
        let received = self.updates.try_recv();
        self.take(received.map_err(|error| error == TryRecvError::Disconnected))
    }

    /// The next update if it comes within `timeout`: `None` if not, and after the last.
    ///
    /// # Errors
    /// What the request failed on, once.
    pub fn next_timeout(&mut self, timeout: Duration) -> Result<Option<Update>> {
        if self.ended {
            return Ok(None);
        }
        let received = self.updates.recv_timeout(timeout);
        self.take(received.map_err(|error| error == RecvTimeoutError::Disconnected))
    }

    /// Whether no update will come any more.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Ends the request where it is. No update comes any more, not even those made already.
    pub fn cancel(&mut self) {
        if !self.ended {
            self.canceller.cancel();
            self.ended = true;
        }
    }

    /// Cancels this request from elsewhere, such as another thread while this one waits.
    pub fn canceller(&self) -> Canceller {
        self.canceller.clone()
    }

    /// What was received, or whether that is because there is no sender any more.
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

impl Iterator for Generating {
    type Item = Result<Update>;

    fn next(&mut self) -> Option<Result<Update>> {
        if self.ended {
            return None;
        }
        let received = self.updates.recv();
        self.take(received.map_err(|_| true)).transpose()
    }
}

impl Drop for Generating {
    fn drop(&mut self) {
        self.cancel();
    }
}

/// Cancels a request, from any thread.
#[derive(Clone, Debug)]
pub struct Canceller {
    pub(super) ticket: Ticket,
    pub(super) orders: Sender<Order>,
}

impl Canceller {
    /// Ends the request where it is, before the engine's next step. One that has ended stays as it
    /// is.
    pub fn cancel(&self) {
        // Fails only where the engine has ended, and the request with it.
        drop(self.orders.send(Order::Cancel(self.ticket)));
    }
}
