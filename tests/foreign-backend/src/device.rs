//! The thread that is the device.

use std::any::Any;
use std::collections::HashMap;
use std::sync::mpsc::Receiver;

use fathom_backend::{BackendError, Result};
use fathom_kernels::Cpu;

type Work = Box<dyn FnOnce(&mut Device) -> Result<()> + Send>;

/// What is sent to the device.
pub enum Command {
    /// An operation, done when somebody waits.
    Work(Work),
    /// An object is no longer needed.
    Free(u64),
    /// Somebody waits.
    Answer(Box<dyn FnOnce(&mut Device) + Send>),
}

/// Commands that are put off at most.
const QUEUE: usize = 500;

/// The device's memory, and what it computes with.
pub struct Device {
    pub cpu: Cpu,
    memory: HashMap<u64, Box<dyn Any + Send>>,
    /// Why nothing is done any more.
    pub failed: Option<BackendError>,
}

impl Device {
    pub fn new(cpu: Cpu) -> Device {
        Device { cpu, memory: HashMap::new(), failed: None }
    }

    /// Does as little as possible as late as possible.
    pub fn run(mut self, commands: Receiver<Command>) {
        let mut late: Vec<Command> = Vec::new();
        for command in commands {
            let waits = matches!(command, Command::Answer(_));
            late.push(command);
            if waits || late.len() >= QUEUE {
                late.drain(..).for_each(|command| self.obey(command));
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Work(work) if self.failed.is_none() => {
                if let Err(error) = work(self) {
                    self.failed = Some(error);
                    self.memory.clear(); // what was there is lost
                }
            }
            Command::Work(_) => {}
            Command::Free(id) => drop(self.memory.remove(&id)),
            Command::Answer(answer) => answer(self),
        }
    }

    /// An object, to be looked at.
    pub fn get<T: 'static>(&self, id: u64) -> Result<&T> {
        self.memory.get(&id).and_then(|object| object.downcast_ref()).ok_or_else(|| absent(id))
    }

    /// Takes an object out, to be changed and [`Device::put`] back.
    pub fn take<T: 'static>(&mut self, id: u64) -> Result<Box<T>> {
        let object = self.memory.remove(&id).ok_or_else(|| absent(id))?;
        object.downcast().map_err(|_| absent(id))
    }

    pub fn put<T: Send + 'static>(&mut self, id: u64, object: Box<T>) {
        self.memory.insert(id, object);
    }
}

/// An object nobody wrote: what uses it forgot to.
fn absent(id: u64) -> BackendError {
    BackendError::Lost(format!("object {id} was used before it was written, or as another kind"))
}
