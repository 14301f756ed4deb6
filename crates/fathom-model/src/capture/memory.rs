//! Captured values in memory.

use super::{CaptureStore, TensorSpec};
use crate::{Error, Result};

/// The values of each tensor.
pub(super) struct MemoryStore {
    pub values: Vec<Vec<f32>>,
}

impl MemoryStore {
    /// Allocates zeros for `tensors`.
    ///
    /// # Errors
    /// There is not enough memory.
    pub fn for_tensors(tensors: &[TensorSpec]) -> Result<MemoryStore> {
        let values = tensors.iter().map(|tensor| {
            let full = || {
                let (site, shape) = (tensor.site, &tensor.shape);
                Error::Request(format!("not enough memory for `{site}` of shape {shape:?}"))
            };
            let product = |product: usize, n: &usize| product.checked_mul(*n);
            let len = tensor.shape.iter().try_fold(1, product).ok_or_else(full)?;
            let mut values = Vec::new();
            values.try_reserve_exact(len).map_err(|_| full())?;
            values.resize(len, 0.0);
            Ok(values)
        });
        Ok(MemoryStore { values: values.collect::<Result<_>>()? })
    }
}

impl CaptureStore for MemoryStore {
    fn put(&mut self, tensor: usize, index: usize, values: &[f32]) -> Result<()> {
        self.values[tensor][index..index + values.len()].copy_from_slice(values);
        Ok(())
    }
}
