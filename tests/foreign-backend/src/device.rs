//! The device, which runs on a separate thread.

use std::any::Any;
use std::collections::HashMap;
use std::sync::mpsc::Receiver;

use fathom_backend::{BackendError, Result};
use fathom_kernels::Cpu;

type Work = Box<dyn FnOnce(&mut Device) -> Result<()> + Send>;

/// A command to the device.
pub enum Command {
    /// An operation, which may be deferred.
    Work(Work),
    /// Frees an object.
    Free(u64),
    /// Reads a result for a caller that waits, so all earlier commands are executed first.
    Read(Box<dyn FnOnce(&mut Device) + Send>),
}

/// Maximum number of deferred commands.
const QUEUE: usize = 500;

/// The device's memory, and the CPU backend it computes with.
pub struct Device {
    pub cpu: Cpu,
    memory: HashMap<u64, Box<dyn Any + Send>>,
    /// The error of the first operation that failed. All later operations are skipped.
    pub failed: Option<BackendError>,
}

impl Device {
    pub fn new(cpu: Cpu) -> Device {
        Device { cpu, memory: HashMap::new(), failed: None }
    }

    /// Executes commands as late as possible, until the host drops its handle.
    pub fn run(mut self, commands: Receiver<Command>) {
        let mut deferred: Vec<Command> = Vec::new();
        for command in commands {
            let waits = matches!(command, Command::Read(_));
            deferred.push(command);
            if waits || deferred.len() >= QUEUE {
                deferred.drain(..).for_each(|command| self.execute(command));
            }
        }
    }

    fn execute(&mut self, command: Command) {
        match command {
            Command::Work(work) if self.failed.is_none() => {
                if let Err(error) = work(self) {
                    self.failed = Some(error);
                    self.memory.clear();
                }
            }
            Command::Work(_) => {}
            Command::Free(id) => drop(self.memory.remove(&id)),
            Command::Read(read) => read(self),
        }
    }

    /// A shared reference to an object.
    pub fn get<T: 'static>(&self, id: u64) -> Result<&T> {
        self.memory.get(&id).and_then(|object| object.downcast_ref()).ok_or_else(|| absent(id))
    }

    /// Removes an object from memory, to be changed and [`Device::put`] back.
    pub fn take<T: 'static>(&mut self, id: u64) -> Result<Box<T>> {
        let object = self.memory.remove(&id).ok_or_else(|| absent(id))?;
        object.downcast().map_err(|_| absent(id))
    }

    pub fn put<T: Send + 'static>(&mut self, id: u64, object: Box<T>) {
        self.memory.insert(id, object);
    }
}

/// The error for an object that does not exist, or has another type: a bug of the caller.
fn absent(id: u64) -> BackendError {
    BackendError::Lost(format!("object {id} was used before it was written, or with another type"))
}
