//! A [`Backend`](fathom_backend::Backend) for tests, deliberately unlike a CPU.
//!
//! - **Its memory is not the host's.** Matrices, caches and weights are ids of objects on another
//!   thread. The host can copy rows to and from it, but has no other access.
//! - **It is lazy.** Calls are queued, and nothing is executed until a caller waits for a result or
//!   the queue is full.
//! - **It fails on demand**, at any operation. It can be out of memory once or lost permanently,
//!   and like a real device it may report a loss only later.
//!
//! It computes with a [`Cpu`] backend, so its results must have the same bits. Code whose results
//! differ has made an assumption about the host.

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
    /// The operation fails at once for lack of memory; later operations succeed.
    OutOfMemory,
    /// The device is lost when it executes the operation; the next call that waits gets the error.
    Lost,
}

/// The host's handle of the device.
pub struct Foreign {
    queue: Queue,
    operations: AtomicU64,
    fails: Option<(u64, Failure)>,
    /// Whether the results of matrix products depend on the number of rows.
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

    /// A device whose operation number `at`, counted from 0, fails.
    pub fn failing(cpu: Cpu, at: u64, failure: Failure) -> Foreign {
        Foreign::start(cpu, Some((at, failure)), false)
    }

    /// A device that violates row invariance, which the conformance check must detect.
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
        let thread = thread.ok(); // without a thread, every call that waits finds the device lost
        Foreign { queue, operations: AtomicU64::new(0), fails, flawed, name, precision, thread }
    }

    /// Number of operations launched so far.
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

    /// Waits until everything queued is executed, then reads a result.
    fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&mut Device) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (reply, result) = channel();
        self.launch(|_| Ok(()))?; // reads count as operations, so that they can fail too
        self.queue.send(Command::Read(Box::new(move |device: &mut Device| {
            let result = match &device.failed {
                Some(error) => Err(error.clone()),
                None => read(device),
            };
            // Fails only if the caller no longer waits.
            drop(reply.send(result));
        })));
        result.recv().unwrap_or_else(|_| Err(BackendError::Lost("its thread ended".to_owned())))
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        self.queue.close();
        if let Some(thread) = self.thread.take() {
            // A panic of the device's thread is ignored here.
            drop(thread.join());
        }
    }
}

/// The queue of commands to the device, and the ids of its objects.
#[derive(Clone)]
struct Queue {
    /// `None` once the device has been dropped.
    sender: Arc<Mutex<Option<Sender<Command>>>>,
    next: Arc<AtomicU64>,
}

impl Queue {
    fn send(&self, command: Command) {
        let sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = &*sender {
            // Fails only if the thread has ended; the next read reports that.
            drop(sender.send(command));
        }
    }

    fn close(&self) {
        self.sender.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// A new object id.
    fn object(&self) -> Object {
        Object { id: self.next.fetch_add(1, Ordering::Relaxed), queue: self.clone() }
    }
}

/// The handle of an object in the device's memory, which is freed when the handle is dropped.
struct Object {
    id: u64,
    queue: Queue,
}

impl Drop for Object {
    fn drop(&mut self) {
        self.queue.send(Command::Free(self.id));
    }
}
