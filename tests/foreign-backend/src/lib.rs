//! A [`Backend`](fathom_backend::Backend) for tests, deliberately unlike a CPU.
//!
//! - **Its memory is not the host's.** Matrices, caches and weights are numbers that name objects
//!   on another thread. The host can copy rows out of it and into it, and nothing else.
//! - **It is lazy.** Calls are queued, and nothing is done until somebody waits for a result or the
//!   queue is full.
//! - **It fails when it is told to**, at any operation: it is out of memory once, or lost for good,
//!   and like a real device it may tell of that only later.
//!
//! What it computes it computes with a CPU, so its results have that CPU's bits: whatever comes out
//! differently assumed something of the host.

mod backend;
mod device;
mod edit;
mod memory;
mod pass;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use fathom_backend::{BackendError, Result};
use fathom_kernels::Cpu;

use device::{Command, Device};
pub use pass::Pass;

/// How an operation fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// There is no room for it, said at once; the next operation is done.
    OutOfMemory,
    /// The device is lost when the operation's turn comes; whoever waits next is told.
    Lost,
}

/// The device, as the host sees it.
pub struct Foreign {
    queue: Queue,
    operations: AtomicU64,
    fails: Option<(u64, Failure)>,
    /// Whether its products depend on how many rows there are.
    flawed: bool,
    name: String,
    precision: fathom_backend::Precision,
    thread: Option<JoinHandle<()>>,
}

impl Foreign {
    /// A device that computes with `cpu` and never fails.
    pub fn new(cpu: Cpu) -> Foreign {
        Foreign::start(cpu, None, false)
    }

    /// A device whose operation number `at`, counted from 0 through its life, fails.
    pub fn failing(cpu: Cpu, at: u64, failure: Failure) -> Foreign {
        Foreign::start(cpu, Some((at, failure)), false)
    }

    /// A device that breaks the law of row invariance: what a test of the law must find.
    pub fn flawed(cpu: Cpu) -> Foreign {
        Foreign::start(cpu, None, true)
    }

    fn start(cpu: Cpu, fails: Option<(u64, Failure)>, flawed: bool) -> Foreign {
        use fathom_backend::Backend;
        let (name, precision) = (format!("foreign, {}", cpu.name()), cpu.precision());
        let (sender, commands) = channel();
        let run = move || Device::new(cpu).run(commands);
        let thread = std::thread::Builder::new().name("foreign-device".to_owned()).spawn(run);
        let queue = Queue { sender: Arc::new(Mutex::new(Some(sender))), next: Arc::default() };
        let thread = thread.ok(); // without it, every wait finds the device lost
        Foreign { queue, operations: AtomicU64::new(0), fails, flawed, name, precision, thread }
    }

    /// Operations asked for so far.
    pub fn operations(&self) -> u64 {
        self.operations.load(Ordering::Relaxed)
    }

    /// Queues an operation.
    fn launch(&self, work: impl FnOnce(&mut Device) -> Result<()> + Send + 'static) -> Result<()> {
        let number = self.operations.fetch_add(1, Ordering::Relaxed);
        match self.fails.filter(|(at, _)| *at == number) {
            Some((_, Failure::OutOfMemory)) => {
                let device = "foreign device";
                Err(BackendError::OutOfMemory { device, what: "an operation", bytes: 1 << 40 })
            }
            Some((_, Failure::Lost)) => {
                let lost = |_: &mut Device| Err(BackendError::Lost("it was unplugged".to_owned()));
                self.queue.send(Command::Work(Box::new(lost)));
                Ok(())
            }
            None => {
                self.queue.send(Command::Work(Box::new(work)));
                Ok(())
            }
        }
    }

    /// Waits for everything queued, then for an answer.
    fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Device) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (reply, answer) = channel();
        self.launch(|_| Ok(()))?; // a question can fail like any operation
        self.queue.send(Command::Answer(Box::new(move |device: &mut Device| {
            let answer = match &device.failed {
                Some(error) => Err(error.clone()),
                None => question(device),
            };
            // Fails only where nobody waits any more.
            drop(reply.send(answer));
        })));
        answer.recv().unwrap_or_else(|_| Err(BackendError::Lost("its thread ended".to_owned())))
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        self.queue.close();
        if let Some(thread) = self.thread.take() {
            // Nothing is left to tell of a panic.
            drop(thread.join());
        }
    }
}

/// The way to the device, and the names of its objects.
#[derive(Clone)]
struct Queue {
    /// `None` once the device is gone.
    sender: Arc<Mutex<Option<Sender<Command>>>>,
    next: Arc<AtomicU64>,
}

impl Queue {
    fn send(&self, command: Command) {
        let sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = &*sender {
            // Fails only where the thread has ended; whoever waits is told.
            drop(sender.send(command));
        }
    }

    fn close(&self) {
        self.sender.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// A name for a new object.
    fn object(&self) -> Object {
        Object { id: self.next.fetch_add(1, Ordering::Relaxed), queue: self.clone() }
    }
}

/// An object in the device's memory, which goes when this does.
struct Object {
    id: u64,
    queue: Queue,
}

impl Drop for Object {
    fn drop(&mut self) {
        self.queue.send(Command::Free(self.id));
    }
}
