//! The thread that owns the engine.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError};

use fathom_backend::Backend;
use fathom_model::{Error, Result};

use super::{EngineCommand, Shared, State, UpdateCallback};
use crate::engine::{Engine, Ticket, Update};
use crate::panics::panic_message;

pub(super) struct Worker<B: Backend> {
    engine: Engine<B>,
    commands: Receiver<EngineCommand>,
    shared: Arc<Shared>,
    /// Sinks of the unfinished requests.
    callbacks: BTreeMap<Ticket, UpdateCallback>,
    /// Replies to callers that wait until no request is left.
    draining: Vec<Sender<Result<()>>>,
    /// Requests received from `commands` since the status was last published.
    received: usize,
    finished: u64,
    cancelled: u64,
    failed: u64,
}

/// Why the thread ends.
enum End {
    /// All handles were dropped.
    Dropped,
    Failed(String),
}

impl<B: Backend> Worker<B> {
    pub fn new(
        engine: Engine<B>,
        commands: Receiver<EngineCommand>,
        shared: Arc<Shared>,
    ) -> Worker<B> {
        Worker {
            engine,
            commands,
            shared,
            callbacks: BTreeMap::new(),
            draining: Vec::new(),
            received: 0,
            finished: 0,
            cancelled: 0,
            failed: 0,
        }
    }

    /// Runs until all handles are dropped or a model fails.
    pub fn run(mut self) {
        let work = catch_unwind(AssertUnwindSafe(|| self.work()));
        let end = work.unwrap_or_else(|panic| {
            End::Failed(format!("the engine stopped: {}", panic_message(panic.as_ref())))
        });
        self.end(end);
    }

    fn work(&mut self) -> End {
        while self.process_commands() {
            match self.engine.advance() {
                Ok(updates) => self.deliver(updates),
                Err(error) => return End::Failed(error.to_string()),
            }
        }
        End::Dropped
    }

    /// Processes all queued commands, and waits for one while there are no requests. Returns
    /// whether to continue.
    fn process_commands(&mut self) -> bool {
        loop {
            let idle = self.engine.pending() == 0;
            let command = match self.commands.try_recv() {
                Ok(command) => command,
                Err(TryRecvError::Disconnected) => return false,
                Err(TryRecvError::Empty) => {
                    self.publish();
                    if !idle {
                        return true;
                    }
                    // No requests are submitted after a drain: all have ended now.
                    self.draining.drain(..).for_each(|reply| drop(reply.send(Ok(()))));
                    match self.commands.recv() {
                        Ok(command) => command,
                        Err(_) => return false,
                    }
                }
            };
            match command {
                EngineCommand::Submit(request, callback) => {
                    self.received += 1;
                    self.callbacks.insert(self.engine.enqueue(*request), callback);
                }
                EngineCommand::Cancel(ticket) => self.cancel(ticket),
                EngineCommand::Configure(options, reply) => {
                    let result = self.engine.configure(options);
                    let mut status = self.shared.lock();
                    (status.rules, status.options) = (self.engine.rules(), self.engine.options);
                    drop(status);
                    drop(reply.send(result));
                }
                EngineCommand::Drain(reply) => self.draining.push(reply),
                EngineCommand::Stop => return false,
            }
        }
    }

    fn cancel(&mut self, ticket: Ticket) {
        if let Some(callback) = self.callbacks.remove(&ticket) {
            self.engine.cancel(ticket);
            self.cancelled += 1;
            discard(callback);
        }
    }

    /// Delivers the updates of a step to the callbacks.
    fn deliver(&mut self, updates: Vec<(Ticket, Result<Update>)>) {
        for (_, update) in &updates {
            match update {
                Ok(update) => self.finished += u64::from(update.done.is_some()),
                Err(_) => self.failed += 1,
            }
        }
        // The metrics count the end of a request before its callback sees it.
        self.publish();
        for (ticket, update) in updates {
            let ends = update.as_ref().map_or(true, |update| update.done.is_some());
            let Some(callback) = self.callbacks.get_mut(&ticket) else { continue };
            let continues = call(callback, update);
            if ends {
                self.callbacks.remove(&ticket).into_iter().for_each(discard);
            } else if !continues {
                self.cancel(ticket);
            }
        }
    }

    /// Publishes the metrics to the handles.
    fn publish(&mut self) {
        let mut status = self.shared.lock();
        status.queued -= std::mem::take(&mut self.received);
        let queued = status.queued;
        let (engine, metrics) = (&self.engine, &mut status.metrics);
        metrics.engine.clone_from(&engine.metrics);
        // Requests may have been cancelled since the last step.
        metrics.engine.pages_used = engine.pages_held();
        metrics.engine.pages_cached = engine.prefix_cache.unused();
        metrics.waiting = engine.waiting.len() + queued;
        metrics.prefilling = engine.prefilling.len();
        metrics.running = engine.running.len();
        (metrics.finished, metrics.cancelled) = (self.finished, self.cancelled);
        metrics.failed = self.failed;
    }

    /// Ends all remaining requests with an error that states the reason. Later calls return it too.
    fn end(mut self, end: End) {
        let why = match &end {
            End::Dropped => "the engine has stopped: its last handle was dropped",
            End::Failed(why) => why,
        };
        let stopped = || Error::Stopped(why.to_owned());
        // Requests and commands with a reply are sent under the lock and only before the end, so
        // these are the last ones.
        let last: Vec<EngineCommand> = {
            let mut status = self.shared.lock();
            status.state = State::Ended(why.to_owned());
            self.commands.try_iter().collect()
        };
        let mut refused = std::mem::take(&mut self.draining);
        for command in last {
            match command {
                EngineCommand::Submit(request, callback) => {
                    drop(self.callbacks.insert(request.ticket, callback));
                }
                EngineCommand::Cancel(ticket) => self.cancel(ticket),
                EngineCommand::Configure(_, reply) | EngineCommand::Drain(reply) => {
                    refused.push(reply);
                }
                EngineCommand::Stop => {}
            }
        }
        self.engine.cancel_all();
        let callbacks = std::mem::take(&mut self.callbacks);
        let ended = callbacks.len() as u64;
        match &end {
            End::Dropped => self.cancelled += ended,
            End::Failed(_) => self.failed += ended,
        }
        self.received = self.shared.lock().queued;
        self.publish();
        for mut callback in callbacks.into_values() {
            call(&mut callback, Err(stopped()));
            discard(callback);
        }
        refused.into_iter().for_each(|reply| drop(reply.send(Err(stopped()))));
    }
}

/// Calls a callback. A panic counts as `false` and affects no other request.
fn call(callback: &mut UpdateCallback, update: Result<Update>) -> bool {
    catch_unwind(AssertUnwindSafe(|| callback(update))).unwrap_or(false)
}

/// Drops a callback. The destructors of its captures may panic.
fn discard(callback: UpdateCallback) {
    drop(catch_unwind(AssertUnwindSafe(|| drop(callback))));
}
