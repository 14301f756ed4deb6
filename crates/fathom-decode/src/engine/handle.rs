//! An engine on its own thread, for callers on any number of threads.

mod generating;
mod worker;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use fathom_backend::Backend;
use fathom_model::{Error, Result};

use super::metrics::HandleMetrics;
use super::rules::{Checked, Rules};
use super::{Engine, EngineOptions, Request, Ticket, Update};
use crate::StopCheck;
use crate::panics::panic_message;
pub use generating::{Canceller, RequestUpdates};
use worker::Worker;

/// Callback for the updates of a request. It runs on the engine's thread and returns whether to
/// continue. The last call has an update with [`Update::done`] or an error. After it has returned
/// `false`, or the request was cancelled, it is not called again and is dropped.
///
/// All requests of the engine wait while the callback runs, so it must pass the update on without
/// blocking. It may submit and cancel requests. Draining or configuring the engine from it is an
/// error.
pub type UpdateCallback = Box<dyn FnMut(Result<Update>) -> bool + Send>;

/// Handle of an engine on its own thread, which runs steps while there are requests and sleeps
/// otherwise.
///
/// Clones are handles of the same engine, usable from any thread. The queue of waiting requests has
/// no limit; [`HandleMetrics::waiting`] returns its length, for callers that reject requests above
/// a limit of their own.
///
/// Dropping the last handle cancels the remaining requests and returns when the engine's threads
/// have ended, after the step in progress.
///
/// ```
/// use fathom_decode::engine::{Engine, EngineOptions, Gamma, ModeChoice, Request};
/// use fathom_decode::{Mode, SamplingParams};
/// use std::thread;
/// # use fathom_kernels::{Cpu, CpuOptions};
/// # use fathom_model::{SyntheticShape, Transformer, write_synthetic};
/// # use std::sync::Arc;
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let (hidden, intermediate, vocab) = (32, 64, 100);
/// # let shape = SyntheticShape {
/// #     layers: 1, hidden, intermediate, heads: 2, kv_heads: 1, vocab, tied: true,
/// # };
/// # write_synthetic(dir.path(), &shape, 1)?;
/// # let cpu = Cpu::new(CpuOptions { threads: Some(1), ..CpuOptions::default() })?;
/// # let target = Transformer::load(dir.path(), cpu)?;
/// # let options = EngineOptions {
/// #     mode: ModeChoice::Always(Mode::Ar),
/// #     gamma: Gamma::Fixed(1),
/// #     batch_size: 4,
/// #     kv_pages: 1000,
/// #     vocab: 100,
/// #     prefix_cache: true,
/// # };
/// let engine = Engine::new(target, None, options)?.spawn()?;
/// let request = |id, max_tokens| {
///     let params = SamplingParams { max_tokens, ..SamplingParams::default() };
///     Request::new(id, vec![1, 2], params, Arc::default())
/// };
/// thread::scope(|scope| {
///     for id in 0..4 {
///         let engine = engine.clone();
///         scope.spawn(move || {
///             let updates = engine.submit(request(id, 12)).expect("a valid request");
///             let tokens = updates.map(|update| update.map_or(0, |update| update.tokens.len()));
///             assert_eq!(tokens.sum::<usize>(), 12);
///         });
///     }
/// });
///
/// // An invalid request is an error at once.
/// assert!(engine.submit(Request { prompt: vec![100], ..request(9, 1) }).is_err());
///
/// // Cancel a request, or just drop its updates.
/// let mut long = engine.submit(request(5, 10_000))?;
/// assert_eq!(long.next().transpose()?.map(|update| update.tokens.len()), Some(1));
/// long.cancel();
/// assert!(long.next().is_none());
///
/// engine.drain()?;
/// assert_eq!(engine.metrics().finished, 4);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct EngineHandle(Arc<Inner>);

struct Inner {
    commands: Sender<EngineCommand>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// Commands to the engine's thread, processed before the next step.
enum EngineCommand {
    Submit(Box<Checked>, UpdateCallback),
    Cancel(Ticket),
    Configure(EngineOptions, Sender<Result<()>>),
    /// Answered when all requests have ended.
    Drain(Sender<Result<()>>),
    /// The last handle was dropped.
    Stop,
}

/// State that handles read without waiting for the engine's thread, which may be in a step.
struct Shared(Mutex<Status>);

struct Status {
    state: State,
    rules: Rules,
    options: EngineOptions,
    /// As of the last step, except `submitted` and `waiting`, which are current.
    metrics: HandleMetrics,
    /// Requests sent to the thread but not yet received.
    queued: usize,
}

enum State {
    Open,
    Draining,
    /// Why the engine has stopped.
    Ended(String),
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Status> {
        // Nothing panics while it holds the lock, and every state is valid.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Status {
    /// Checks that new requests are accepted.
    fn check_open(&self) -> Result<()> {
        match &self.state {
            State::Open => Ok(()),
            State::Draining => {
                Err(Error::Stopped("the engine was drained and takes no more requests".to_owned()))
            }
            State::Ended(why) => Err(Error::Stopped(why.clone())),
        }
    }

    /// Checks that the engine's thread has not ended.
    fn check_alive(&self) -> Result<()> {
        match &self.state {
            State::Open | State::Draining => Ok(()),
            State::Ended(why) => Err(Error::Stopped(why.clone())),
        }
    }
}

impl<B: Backend> Engine<B> {
    /// Moves the engine to its own thread.
    ///
    /// # Errors
    /// An engine that already has requests, whose updates would be lost, or a thread that cannot be
    /// started.
    pub fn spawn(self) -> Result<EngineHandle> {
        let pending = self.pending();
        if pending > 0 {
            return Err(Error::Request(format!(
                "the engine has {pending} requests; expected none: submit them to the handle"
            )));
        }
        let (commands, inbox) = channel();
        let status = Status {
            state: State::Open,
            rules: self.rules(),
            options: self.options,
            metrics: HandleMetrics { engine: self.metrics.clone(), ..HandleMetrics::default() },
            queued: 0,
        };
        let shared = Arc::new(Shared(Mutex::new(status)));
        let worker = Worker::new(self, inbox, Arc::clone(&shared));
        let thread = std::thread::Builder::new().name("fathom-engine".to_owned());
        let thread = thread.spawn(move || worker.run()).map_err(|error| {
            Error::Request(format!("the engine's thread cannot be started: {error}"))
        })?;
        Ok(EngineHandle(Arc::new(Inner { commands, shared, thread: Some(thread) })))
    }
}

impl EngineHandle {
    /// Queues a request. It is validated at once, without waiting for the engine.
    ///
    /// # Errors
    /// See [`Engine::submit`]; [`Error::Stopped`] if the engine was drained or has failed.
    pub fn submit(&self, request: Request) -> Result<RequestUpdates> {
        let (outbox, updates) = channel();
        // Fails if the reader was dropped, which also cancels the request.
        let canceller =
            self.submit_with(request, Box::new(move |update| outbox.send(update).is_ok()))?;
        Ok(RequestUpdates { updates, canceller, ended: false })
    }

    /// Queues a request with a callback for its updates: for an asynchronous server, for example,
    /// whose callback sends to a channel of its runtime. Dropping the [`Canceller`] does not cancel
    /// the request.
    ///
    /// ```
    /// use std::sync::mpsc::channel;
    /// use fathom_decode::engine::{Engine, EngineOptions, Gamma, ModeChoice, Request};
    /// use fathom_decode::{Mode, SamplingParams};
    /// # use fathom_kernels::{Cpu, CpuOptions};
    /// # use fathom_model::{SyntheticShape, Transformer, write_synthetic};
    /// # use std::sync::Arc;
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// # let (hidden, intermediate, vocab) = (32, 64, 100);
    /// # let shape = SyntheticShape {
    /// #     layers: 1, hidden, intermediate, heads: 2, kv_heads: 1, vocab, tied: true,
    /// # };
    /// # write_synthetic(dir.path(), &shape, 1)?;
    /// # let cpu = Cpu::new(CpuOptions { threads: Some(1), ..CpuOptions::default() })?;
    /// # let target = Transformer::load(dir.path(), cpu)?;
    /// # let options = EngineOptions {
    /// #     mode: ModeChoice::Always(Mode::Ar),
    /// #     gamma: Gamma::Fixed(1),
    /// #     batch_size: 4,
    /// #     kv_pages: 1000,
    /// #     vocab: 100,
    /// #     prefix_cache: true,
    /// # };
    /// # let params = SamplingParams { max_tokens: 10, ..SamplingParams::default() };
    /// # let eos = Arc::default();
    /// # let prompt = vec![1, 2];
    /// # let request = Request::new(0, prompt, params, eos);
    /// let engine = Engine::new(target, None, options)?.spawn()?;
    /// let (outbox, inbox) = channel();
    /// let callback = move |update| outbox.send(update).is_ok(); // false if the receiver is gone
    /// let canceller = engine.submit_with(request, Box::new(callback))?;
    /// let tokens = inbox.iter().map(|update| update.map_or(0, |update| update.tokens.len()));
    /// assert_eq!(tokens.sum::<usize>(), 10);
    /// canceller.cancel(); // no effect: it has ended
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// See [`EngineHandle::submit`]. `callback` is then dropped without a call.
    pub fn submit_with(&self, mut request: Request, callback: UpdateCallback) -> Result<Canceller> {
        let rules = {
            let status = self.0.shared.lock();
            status.check_open()?;
            status.rules.clone()
        };
        request.stop = request.stop.map(catch_panics);
        let checked = Box::new(rules.check(request)?);
        let ticket = checked.ticket;
        let commands = &self.0.commands;
        let mut status = self.0.shared.lock();
        status.check_open()?;
        // Sent under the lock, so that an engine that ends or drains has received every accepted
        // request.
        let sent = commands.send(EngineCommand::Submit(checked, callback));
        if sent.is_ok() {
            status.queued += 1;
            status.metrics.submitted += 1;
            status.metrics.waiting += 1;
        }
        drop(status);
        sent.map_err(|_| stopped())?;
        Ok(Canceller { ticket, commands: commands.clone() })
    }

    /// The metrics as of the last completed step.
    pub fn metrics(&self) -> HandleMetrics {
        self.0.shared.lock().metrics.clone()
    }

    /// The engine's options.
    pub fn options(&self) -> EngineOptions {
        self.0.shared.lock().options
    }

    /// Changes the options after the step in progress; see [`Engine::configure`].
    ///
    /// # Errors
    /// See [`Engine::configure`]; [`Error::Stopped`] if the engine has failed.
    pub fn configure(&self, options: EngineOptions) -> Result<()> {
        let answer = self.command(|reply| EngineCommand::Configure(options, reply), |_| {})?;
        answer.recv().unwrap_or_else(|_| Err(stopped()))
    }

    /// Rejects new requests from now on, and returns when all current requests have ended.
    ///
    /// # Errors
    /// [`Error::Stopped`] if the engine has failed.
    pub fn drain(&self) -> Result<()> {
        let answer = self.command(EngineCommand::Drain, |status| status.state = State::Draining)?;
        answer.recv().unwrap_or_else(|_| Err(stopped()))
    }

    /// Applies `change` to the status and sends a command. Returns the channel of its answer.
    fn command(
        &self,
        command: impl FnOnce(Sender<Result<()>>) -> EngineCommand,
        change: impl FnOnce(&mut Status),
    ) -> Result<std::sync::mpsc::Receiver<Result<()>>> {
        if self.0.is_engine_thread() {
            let problem =
                "a callback cannot drain or configure its engine, which waits for the callback";
            return Err(Error::Request(problem.to_owned()));
        }
        let (reply, answer) = channel();
        let mut status = self.0.shared.lock();
        status.check_alive()?;
        change(&mut status);
        self.0.commands.send(command(reply)).map_err(|_| stopped())?;
        Ok(answer)
    }
}

impl fmt::Debug for EngineHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EngineHandle").field("options", &self.options()).finish_non_exhaustive()
    }
}

impl fmt::Debug for EngineCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            EngineCommand::Submit(..) => "Submit",
            EngineCommand::Cancel(_) => "Cancel",
            EngineCommand::Configure(..) => "Configure",
            EngineCommand::Drain(_) => "Drain",
            EngineCommand::Stop => "Stop",
        })
    }
}

impl Inner {
    fn is_engine_thread(&self) -> bool {
        let current = std::thread::current().id();
        self.thread.as_ref().is_some_and(|thread| thread.thread().id() == current)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Fails only if the thread has ended.
        drop(self.commands.send(EngineCommand::Stop));
        // A callback may own the last handle. The engine's thread then cannot join itself and ends
        // later.
        if !self.is_engine_thread()
            && let Some(thread) = self.thread.take()
        {
            // A panic was already reported to all requests as an error.
            drop(thread.join());
        }
    }
}

/// The error if the engine's thread has ended without a reason.
fn stopped() -> Error {
    Error::Stopped("the engine has stopped".to_owned())
}

/// Turns a panic of a stop check into an error of its request.
fn catch_panics(mut check: StopCheck) -> StopCheck {
    Box::new(move |token| {
        catch_unwind(AssertUnwindSafe(|| check(token))).unwrap_or_else(|panic| {
            let message = panic_message(panic.as_ref());
            Err(Error::Request(format!("the request's stop check stopped: {message}")))
        })
    })
}
