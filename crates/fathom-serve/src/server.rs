//! A running server: its threads, and how it ends.

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use fathom_model::{Error, Result};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::app::{App, Phase};
use crate::model::ServedModel;
use crate::options::ServerOptions;
use crate::{connection, limits, routes};

/// Threads that talk to clients. The engine needs the processors.
const THREADS: usize = 2;

/// Time for the connections to tell their clients that the engine has failed.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Time between two rounds of bookkeeping.
const UPKEEP: Duration = Duration::from_secs(5);

/// A running server. Dropping it closes all connections.
pub struct Server {
    app: Arc<App>,
    address: SocketAddr,
    runtime: Handle,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Server {
    /// Starts a server on threads of its own.
    ///
    /// # Errors
    /// An address that cannot be listened at; threads that cannot be started.
    pub fn start(model: ServedModel, options: ServerOptions) -> Result<Server> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(THREADS)
            .max_blocking_threads(limits::PREPARING)
            .thread_name("fathom-serve")
            .enable_all()
            .build()
            .map_err(|error| refuse(format!("the server's threads cannot be started: {error}")))?;
        let address = options.address;
        let listener = runtime.block_on(TcpListener::bind(address));
        let listener = listener
            .map_err(|error| refuse(format!("the server cannot listen at {address}: {error}")))?;
        let address = listener.local_addr().unwrap_or(address);
        let app = Arc::new(App::new(model, options)?);
        let handle = runtime.handle().clone();
        let thread = std::thread::Builder::new().name("fathom-serve".to_owned());
        let shared = Arc::clone(&app);
        let thread = thread
            .spawn(move || run(&runtime, shared, listener))
            .map_err(|error| refuse(format!("the server's thread cannot be started: {error}")))?;
        Ok(Server { app, address, runtime: handle, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes no more requests, and ends when those in progress are answered.
    pub fn drain(&self) {
        self.app.end(Phase::Draining);
    }

    /// Closes all connections now.
    pub fn abort(&self) {
        self.app.end(Phase::Aborting);
    }

    /// Drains the server at the first interrupt or termination signal, and closes all connections
    /// at the second.
    pub fn end_on_signals(&self) {
        let app = Arc::clone(&self.app);
        self.runtime.spawn(async move {
            // Fails where no signals can be received.
            let Ok(mut signals) = Signals::new() else { return };
            for next in [Phase::Draining, Phase::Aborting] {
                signals.next().await;
                tracing::info!(phase = ?next, "signal");
                app.end(next);
            }
        });
    }

    /// Waits until the server has ended.
    ///
    /// # Errors
    /// [`Error::Stopped`] with the reason if the engine has failed.
    pub fn wait(mut self) -> Result<()> {
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            _ => Err(Error::Stopped("the server's thread stopped".to_owned())),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.abort();
            // Its result is for `wait`.
            drop(thread.join());
        }
    }
}

fn refuse(problem: String) -> Error {
    Error::Request(problem)
}

/// Interrupts and termination signals.
#[cfg(unix)]
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn new() -> std::io::Result<Signals> {
        use tokio::signal::unix::{SignalKind, signal};
        let interrupt = signal(SignalKind::interrupt())?;
        Ok(Signals { interrupt, terminate: signal(SignalKind::terminate())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Interrupts.
#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn new() -> std::io::Result<Signals> {
        Ok(Signals)
    }

    async fn next(&mut self) {
        // Without signals, the wait never ends.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

fn run(runtime: &Runtime, app: Arc<App>, listener: TcpListener) -> Result<()> {
    runtime.block_on(async {
        let mut connections = JoinSet::new();
        accept(&app, listener, &mut connections).await;
        end(&app, connections).await
    })
}

/// Accepts connections while the server is serving.
async fn accept(app: &Arc<App>, listener: TcpListener, connections: &mut JoinSet<()>) {
    let router = routes::router(Arc::clone(app));
    let mut phase = app.phase.subscribe();
    let mut upkeep = interval(UPKEEP);
    upkeep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let places = Arc::new(Semaphore::new(limits::CONNECTIONS));
    let next = || async {
        let place = Arc::clone(&places).acquire_owned().await;
        (place, listener.accept().await)
    };
    loop {
        tokio::select! {
            (place, accepted) = next() => match accepted {
                Ok((stream, _)) => {
                    let serve = connection::serve(stream, router.clone(), Arc::clone(app));
                    connections.spawn(async move {
                        let _place = place;
                        serve.await;
                    });
                }
                // Too many open files, or a client that has gone. The former passes.
                Err(error) => {
                    tracing::warn!(%error, "a connection was not accepted");
                    sleep(Duration::from_millis(100)).await;
                }
            },
            _ = upkeep.tick() => app.metrics.tidy(),
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            _ = phase.wait_for(|phase| *phase != Phase::Serving) => return,
        }
    }
}

/// Waits for the connections as long as the phase says.
async fn end(app: &App, mut connections: JoinSet<()>) -> Result<()> {
    let (mut aborted, mut failed) = (app.phase.subscribe(), app.phase.subscribe());
    let drained = async { while connections.join_next().await.is_some() {} };
    let failed = async {
        drop(failed.wait_for(|phase| matches!(phase, Phase::Failed(_))).await);
        sleep(LAST_WORDS).await;
    };
    tokio::select! {
        () = drained => {}
        () = failed => {}
        _ = aborted.wait_for(|phase| *phase == Phase::Aborting) => {}
    }
    connections.shutdown().await;
    match &*app.phase.borrow() {
        Phase::Failed(why) => Err(Error::Stopped(why.clone())),
        _ => Ok(()),
    }
}
