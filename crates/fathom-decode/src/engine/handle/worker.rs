//! The thread that owns the engine.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError};

use fathom_backend::Backend;
use fathom_model::{Error, Result};

use super::{Order, Shared, Sink, State};
use crate::engine::draft_worker::panic_message;
use crate::engine::{Engine, Ticket, Update};

pub(super) struct Worker<B: Backend> {
    engine: Engine<B>,
    orders: Receiver<Order>,
    shared: Arc<Shared>,
    /// Of every request that has not ended.
    sinks: BTreeMap<Ticket, Sink>,
    /// Who waits for the last request's end.
    draining: Vec<Sender<Result<()>>>,
    /// Requests taken from `orders` since the last time the status was written.
    taken: usize,
    finished: u64,
    cancelled: u64,
    failed: u64,
}

/// Why the thread ends.
enum End {
    /// Nobody is left who could ask for anything.
    Left,
    Failed(String),
}

impl<B: Backend> Worker<B> {
    pub fn new(engine: Engine<B>, orders: Receiver<Order>, shared: Arc<Shared>) -> Worker<B> {
        Worker {
            engine,
            orders,
            shared,
            sinks: BTreeMap::new(),
            draining: Vec::new(),
            taken: 0,
            finished: 0,
            cancelled: 0,
            failed: 0,
        }
    }

    /// Works until nobody is left, or until a model fails.
    pub fn run(mut self) {
        let work = catch_unwind(AssertUnwindSafe(|| self.work()));
        let end = work.unwrap_or_else(|panic| {
            End::Failed(format!("the engine stopped: {}", panic_message(panic.as_ref())))
        });
        self.end(end);
    }

    fn work(&mut self) -> End {
        while self.obey() {
            match self.engine.advance() {
                Ok(updates) => self.tell(updates),
                Err(error) => return End::Failed(error.to_string()),
            }
        }
        End::Left
    }

    /// Obeys what there is to obey, and sleeps until there is something to do. Whether to go on.
    fn obey(&mut self) -> bool {
        loop {
            let idle = self.engine.pending() == 0;
            let order = match self.orders.try_recv() {
                Ok(order) => order,
                Err(TryRecvError::Disconnected) => return false,
                Err(TryRecvError::Empty) => {
                    self.publish();
                    if !idle {
                        return true;
                    }
                    // Those who drain asked after the last request was submitted.
                    self.draining.drain(..).for_each(|reply| drop(reply.send(Ok(()))));
                    match self.orders.recv() {
                        Ok(order) => order,
                        Err(_) => return false,
                    }
                }
            };
            match order {
                Order::Submit(request, sink) => {
                    self.taken += 1;
                    self.sinks.insert(self.engine.enqueue(*request), sink);
                }
                Order::Cancel(ticket) => self.cancel(ticket),
                Order::Configure(options, reply) => {
                    let result = self.engine.configure(options);
                    let mut status = self.shared.lock();
                    (status.rules, status.options) = (self.engine.rules(), self.engine.options);
                    drop(status);
                    drop(reply.send(result));
                }
                Order::Drain(reply) => self.draining.push(reply),
                Order::Stop => return false,
            }
        }
    }

    fn cancel(&mut self, ticket: Ticket) {
        if let Some(sink) = self.sinks.remove(&ticket) {
            self.engine.cancel(ticket);
            self.cancelled += 1;
            discard(sink);
        }
    }

    /// Hands out what a step brought.
    fn tell(&mut self, updates: Vec<(Ticket, Result<Update>)>) {
        for (_, update) in &updates {
            match update {
                Ok(update) => self.finished += u64::from(update.done.is_some()),
                Err(_) => self.failed += 1,
            }
        }
        // Whoever is told of an end finds it in the metrics.
        self.publish();
        for (ticket, update) in updates {
            let ends = update.as_ref().map_or(true, |update| update.done.is_some());
            let Some(sink) = self.sinks.get_mut(&ticket) else { continue };
            let goes_on = call(sink, update);
            if ends {
                self.sinks.remove(&ticket).into_iter().for_each(discard);
            } else if !goes_on {
                self.cancel(ticket);
            }
        }
    }

    /// Writes down how far things are.
    fn publish(&mut self) {
        let mut status = self.shared.lock();
        status.queued -= std::mem::take(&mut self.taken);
        let queued = status.queued;
        let (engine, metrics) = (&self.engine, &mut status.metrics);
        metrics.engine.clone_from(&engine.metrics);
        metrics.waiting = engine.waiting.len() + queued;
        metrics.prefilling = engine.prefilling.len();
        metrics.running = engine.running.len();
        (metrics.finished, metrics.cancelled) = (self.finished, self.cancelled);
        metrics.failed = self.failed;
    }

    /// Ends every request that is left, and says why to all who have one or come later.
    fn end(mut self, end: End) {
        let why = match &end {
            End::Left => "the engine has stopped: its last handle was dropped",
            End::Failed(why) => why,
        };
        let stopped = || Error::Stopped(why.to_owned());
        // Orders are sent under the lock: these are the last.
        let last: Vec<Order> = {
            let mut status = self.shared.lock();
            status.state = State::Ended(why.to_owned());
            self.orders.try_iter().collect()
        };
        let mut refused = std::mem::take(&mut self.draining);
        for order in last {
            match order {
                Order::Submit(request, sink) => drop(self.sinks.insert(request.ticket, sink)),
                Order::Cancel(ticket) => self.cancel(ticket),
                Order::Configure(_, reply) | Order::Drain(reply) => refused.push(reply),
                Order::Stop => {}
            }
        }
        self.engine.cancel_all();
        let sinks = std::mem::take(&mut self.sinks);
        let ended = sinks.len() as u64;
        match &end {
            End::Left => self.cancelled += ended,
            End::Failed(_) => self.failed += ended,
        }
        self.taken = self.shared.lock().queued;
        self.publish();
        for mut sink in sinks.into_values() {
            call(&mut sink, Err(stopped()));
            discard(sink);
        }
        refused.into_iter().for_each(|reply| drop(reply.send(Err(stopped()))));
    }
}

/// Tells a sink. One that panics wants no more, and disturbs nobody else.
fn call(sink: &mut Sink, update: Result<Update>) -> bool {
    catch_unwind(AssertUnwindSafe(|| sink(update))).unwrap_or(false)
}

/// Drops a sink; what it owns may panic.
fn discard(sink: Sink) {
    drop(catch_unwind(AssertUnwindSafe(|| drop(sink))));
}
