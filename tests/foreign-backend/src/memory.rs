//! Handles of objects in the device's memory, and operations that create or change them.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use fathom_backend::Result;
use fathom_kernels::{Cpu, Rows};

use crate::device::{Command, Device};
use crate::{Foreign, Object};

/// A matrix.
pub struct ForeignRows {
    pub(crate) object: Object,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
}

/// A matrix in the format of an operand of matrix products.
pub struct ForeignOperand(pub(crate) Object);

/// A weight matrix.
pub struct ForeignLinear {
    pub(crate) object: Object,
    pub(crate) bytes: usize,
}

/// A vector.
pub struct ForeignVector(pub(crate) Object);

/// A KV cache.
pub struct ForeignKv {
    pub(crate) object: Object,
    pub(crate) len: usize,
}

/// Attention column sums.
pub struct ForeignSums {
    pub(crate) object: Object,
}

/// A point in time, set when the device reaches it.
pub struct ForeignMark(pub(crate) Arc<OnceLock<Instant>>);

impl Foreign {
    /// Launches an operation that changes the object `out` and may read others.
    pub(crate) fn change<T: Send + 'static>(
        &self,
        out: &Object,
        work: impl FnOnce(&Device, &mut T) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        let id = out.id;
        self.launch(move |device| {
            let mut object = device.take::<T>(id)?;
            let done = work(device, &mut object);
            device.put(id, object);
            done
        })
    }

    /// [`Foreign::change`] for a matrix.
    pub(crate) fn write(
        &self,
        out: &ForeignRows,
        work: impl FnOnce(&Device, &mut Rows) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        self.change(&out.object, work)
    }

    /// Launches an operation that creates an object.
    pub(crate) fn make<T: Send + 'static>(
        &self,
        make: impl FnOnce(&Cpu) -> Result<T> + Send + 'static,
    ) -> Result<Object> {
        let object = self.queue.object();
        let id = object.id;
        self.launch(move |device| {
            let made = make(&device.cpu)?;
            device.put(id, Box::new(made));
            Ok(())
        })?;
        Ok(object)
    }

    /// Creates an object that takes no device memory. This cannot fail, so it is not counted as an
    /// operation.
    pub(crate) fn make_empty<T: Send + 'static>(
        &self,
        make: impl FnOnce(&Cpu) -> T + Send + 'static,
    ) -> Object {
        let object = self.queue.object();
        let id = object.id;
        self.queue.send(Command::Work(Box::new(move |device: &mut Device| {
            let made = make(&device.cpu);
            device.put(id, Box::new(made));
            Ok(())
        })));
        object
    }
}
