//! An engine on a thread of its own, for callers on any number of threads.

mod generating;
mod worker;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use fathom_backend::Backend;
use fathom_model::{Error, Result};

use super::draft_worker::panic_message;
use super::metrics::HandleMetrics;
use super::rules::{Checked, Rules};
use super::{Engine, EngineOptions, Request, Ticket, Update};
use crate::StopCheck;
pub use generating::{Canceller, Generating};
use worker::Worker;

/// Told what a request's text gets, step by step, on the engine's thread; answers whether to go on.
/// The last thing it is told is an update with [`Update::done`] or an error; after answering
/// `false`, or when the request is cancelled, nothing. Then it is dropped.
///
/// All requests of the engine wait while it runs: it must hand over what it is told and return,
/// without waiting for anybody. It may submit and cancel; it cannot drain or configure, and is told
/// so.
pub type Sink = Box<dyn FnMut(Result<Update>) -> bool + Send>;

/// An engine on a thread of its own, which takes steps while there are requests and sleeps while
/// there are none.
///
/// Clones are handles on the same engine; any thread may use any of them. The number of requests
/// that wait is not limited: [`HandleMetrics::waiting`] says how many there are, for those who want
/// to refuse some.
///
/// Dropping the last handle cancels what is left, and returns when the engine's threads have ended,
/// a step under way included.
///
/// ```
/// use fathom_decode::engine::{Engine, EngineOptions, Gamma, ModeChoice, Request};
/// use fathom_decode::{Mode, SamplingParams};
/// use std::thread;
/// # use fathom_kernels::{Cpu, CpuOptions};
/// # use fathom_model::{Model, SyntheticShape, write_synthetic};
/// # use std::sync::Arc;
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let (hidden, intermediate, vocab) = (32, 64, 100);
/// # let shape = SyntheticShape {
/// #     layers: 1, hidden, intermediate, heads: 2, kv_heads: 1, vocab, tied: true,
/// # };
/// # write_synthetic(dir.path(), &shape, 1)?;
/// # let cpu = Cpu::new(CpuOptions { threads: Some(1), ..CpuOptions::default() })?;
/// # let target = Model::load(dir.path(), cpu)?;
/// # let options = EngineOptions {
/// #     mode: ModeChoice::Always(Mode::Ar),
/// #     gamma: Gamma::Fixed(1),
/// #     batch_size: 4,
/// #     kv_pages: 1000,
/// #     vocab: 100,
/// # };
/// let engine = Engine::new(target, None, options)?.spawn()?;
/// let request = |id, max_tokens| {
///     let params = SamplingParams { max_tokens, ..SamplingParams::default() };
///     Request { id, prompt: vec![1, 2], params, eos: Arc::default(), stop: None, watcher: None }
/// };
/// thread::scope(|scope| {
///     for id in 0..4 {
///         let engine = engine.clone();
///         scope.spawn(move || {
///             let updates = engine.submit(request(id, 12)).expect("a request that is right");
///             let tokens = updates.map(|update| update.map_or(0, |update| update.tokens.len()));
///             assert_eq!(tokens.sum::<usize>(), 12);
///         });
///     }
/// });
///
/// // A mistake is said at once.
/// assert!(engine.submit(Request { prompt: vec![100], ..request(9, 1) }).is_err());
///
/// // Whoever loses interest cancels, or just drops the updates.
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
    orders: Sender<Order>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What the engine's thread is told. Each is obeyed before the next step.
enum Order {
    Submit(Box<Checked>, Sink),
    Cancel(Ticket),
    Configure(EngineOptions, Sender<Result<()>>),
    /// Answered when no request is left.
    Drain(Sender<Result<()>>),
    /// The last handle was dropped.
    Stop,
}

/// What handles know of the engine without asking its thread, which may be in the middle of a step.
struct Shared(Mutex<Status>);

struct Status {
    state: State,
    rules: Rules,
    options: EngineOptions,
    /// As of the last step, but for `submitted` and `waiting`, which are as of now.
    metrics: HandleMetrics,
    /// Requests on their way to the thread.
    queued: usize,
}

enum State {
    Open,
    Draining,
    /// Why nothing is done any more.
    Ended(String),
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Status> {
        // Nothing panics while it holds the lock, and every value is as good as any other.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Status {
    /// Whether requests are taken.
    fn check_open(&self) -> Result<()> {
        match &self.state {
            State::Open => Ok(()),
            State::Draining => {
                Err(Error::Stopped("the engine was drained and takes no more requests".to_owned()))
            }
            State::Ended(why) => Err(Error::Stopped(why.clone())),
        }
    }

    /// Whether there is anybody to give orders to.
    fn check_alive(&self) -> Result<()> {
        match &self.state {
            State::Open | State::Draining => Ok(()),
            State::Ended(why) => Err(Error::Stopped(why.clone())),
        }
    }
}

impl<B: Backend> Engine<B> {
    /// Moves the engine to a thread of its own.
    ///
    /// # Errors
    /// An engine that has requests already, whose updates nobody would get; or a thread the
    /// operating system refuses.
    pub fn spawn(self) -> Result<EngineHandle> {
        let pending = self.pending();
        if pending > 0 {
            return Err(Error::Request(format!(
                "the engine has {pending} requests; expected none, they are submitted to the handle"
            )));
        }
        let (orders, inbox) = channel();
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
        Ok(EngineHandle(Arc::new(Inner { orders, shared, thread: Some(thread) })))
    }
}

impl EngineHandle {
    /// Queues a request. What is wrong with it is said at once; the engine is not waited for.
    ///
    /// # Errors
    /// As [`Engine::submit`]; [`Error::Stopped`] where the engine was drained or has failed.
    pub fn submit(&self, request: Request) -> Result<Generating> {
        let (outbox, updates) = channel();
        // Fails where the reader is gone, who then has cancelled too.
        let canceller =
            self.submit_with(request, Box::new(move |update| outbox.send(update).is_ok()))?;
        Ok(Generating { updates, canceller, ended: false })
    }

    /// The same, for those who do not wait for updates but are called: an asynchronous server, say,
    /// whose sink sends to a channel of its runtime. The request is not cancelled when the
    /// [`Canceller`] is dropped.
    ///
    /// ```
    /// use std::sync::mpsc::channel;
    /// use fathom_decode::engine::{Engine, EngineOptions, Gamma, ModeChoice, Request};
    /// use fathom_decode::{Mode, SamplingParams};
    /// # use fathom_kernels::{Cpu, CpuOptions};
    /// # use fathom_model::{Model, SyntheticShape, write_synthetic};
    /// # use std::sync::Arc;
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// # let (hidden, intermediate, vocab) = (32, 64, 100);
    /// # let shape = SyntheticShape {
    /// #     layers: 1, hidden, intermediate, heads: 2, kv_heads: 1, vocab, tied: true,
    /// # };
    /// # write_synthetic(dir.path(), &shape, 1)?;
    /// # let cpu = Cpu::new(CpuOptions { threads: Some(1), ..CpuOptions::default() })?;
    /// # let target = Model::load(dir.path(), cpu)?;
    /// # let options = EngineOptions {
    /// #     mode: ModeChoice::Always(Mode::Ar),
    /// #     gamma: Gamma::Fixed(1),
    /// #     batch_size: 4,
    /// #     kv_pages: 1000,
    /// #     vocab: 100,
    /// # };
    /// # let params = SamplingParams { max_tokens: 10, ..SamplingParams::default() };
    /// # let eos = Arc::default();
    /// # let prompt = vec![1, 2];
    /// # let request = Request { id: 0, prompt, params, eos, stop: None, watcher: None };
    /// let engine = Engine::new(target, None, options)?.spawn()?;
    /// let (outbox, inbox) = channel();
    /// let sink = move |update| outbox.send(update).is_ok(); // whether anybody still listens
    /// let canceller = engine.submit_with(request, Box::new(sink))?;
    /// let tokens = inbox.iter().map(|update| update.map_or(0, |update| update.tokens.len()));
    /// assert_eq!(tokens.sum::<usize>(), 10);
    /// canceller.cancel(); // too late, and no harm
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`EngineHandle::submit`]; `sink` is then dropped, without being told.
    pub fn submit_with(&self, mut request: Request, sink: Sink) -> Result<Canceller> {
        let rules = {
            let status = self.0.shared.lock();
            status.check_open()?;
            status.rules.clone()
        };
        request.stop = request.stop.map(no_panic);
        let checked = Box::new(rules.check(request)?);
        let ticket = checked.ticket;
        let orders = &self.0.orders;
        let mut status = self.0.shared.lock();
        status.check_open()?;
        // Sent under the lock, so that an engine that ends or drains knows of all it has taken.
        let sent = orders.send(Order::Submit(checked, sink));
        if sent.is_ok() {
            status.queued += 1;
            status.metrics.submitted += 1;
            status.metrics.waiting += 1;
        }
        drop(status);
        sent.map_err(|_| gone())?;
        Ok(Canceller { ticket, orders: orders.clone() })
    }

    /// Where the time went, what speculation was worth, and how many requests are where: as of the
    /// last step, which is not waited for.
    pub fn metrics(&self) -> HandleMetrics {
        self.0.shared.lock().metrics.clone()
    }

    /// How the engine is set up.
    pub fn options(&self) -> EngineOptions {
        self.0.shared.lock().options
    }

    /// Goes on with other options, as [`Engine::configure`], after the step under way.
    ///
    /// # Errors
    /// As [`Engine::configure`]; [`Error::Stopped`] where the engine has failed.
    pub fn configure(&self, options: EngineOptions) -> Result<()> {
        let answer = self.order(|reply| Order::Configure(options, reply), |_| {})?;
        answer.recv().unwrap_or_else(|_| Err(gone()))
    }

    /// Takes no more requests from now on, and returns when all there are have ended.
    ///
    /// # Errors
    /// [`Error::Stopped`] where the engine has failed.
    pub fn drain(&self) -> Result<()> {
        let answer = self.order(Order::Drain, |status| status.state = State::Draining)?;
        answer.recv().unwrap_or_else(|_| Err(gone()))
    }

    /// Gives an order that is answered.
    fn order(
        &self,
        order: impl FnOnce(Sender<Result<()>>) -> Order,
        change: impl FnOnce(&mut Status),
    ) -> Result<std::sync::mpsc::Receiver<Result<()>>> {
        if self.0.is_engine_thread() {
            let problem = "a sink cannot drain or configure its engine, which waits for the sink";
            return Err(Error::Request(problem.to_owned()));
        }
        let (reply, answer) = channel();
        let mut status = self.0.shared.lock();
        status.check_alive()?;
        change(&mut status);
        self.0.orders.send(order(reply)).map_err(|_| gone())?;
        Ok(answer)
    }
}

impl fmt::Debug for EngineHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EngineHandle").field("options", &self.options()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Order::Submit(..) => "Submit",
            Order::Cancel(_) => "Cancel",
            Order::Configure(..) => "Configure",
            Order::Drain(_) => "Drain",
            Order::Stop => "Stop",
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
        // Fails only where the thread has ended.
        drop(self.orders.send(Order::Stop));
        // A sink may own the last handle: its thread cannot wait for itself, and ends on its own.
        if !self.is_engine_thread()
            && let Some(thread) = self.thread.take()
        {
            // A panic was told to all who had requests.
            drop(thread.join());
        }
    }
}

/// Where the engine's thread is gone and has not said why.
fn gone() -> Error {
    Error::Stopped("the engine has stopped".to_owned())
}

/// A stop check whose panic is an error of its request, not of the engine.
fn no_panic(mut check: StopCheck) -> StopCheck {
    Box::new(move |token| {
        catch_unwind(AssertUnwindSafe(|| check(token))).unwrap_or_else(|panic| {
            let said = panic_message(panic.as_ref());
            Err(Error::Request(format!("the request's stop check stopped: {said}")))
        })
    })
}
