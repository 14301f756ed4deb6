//! Captured values in memory.

use super::{Store, Tensor};
use crate::{Error, Result};

/// The values of each tensor.
pub(super) struct Memory {
    pub values: Vec<Vec<f32>>,
}

impl Memory {
    /// Room for tensors.
    ///
    /// # Errors
    /// There is not enough memory.
    pub fn for_tensors(tensors: &[Tensor]) -> Result<Memory> {
        let values = tensors.iter().map(|tensor| {
            let full = || {
                let (site, shape) = (tensor.site, &tensor.shape);
                Error::Request(format!("there is no memory for `{site}` of shape {shape:?}"))
            };
            let product = |product: usize, n: &usize| product.checked_mul(*n);
            let len = tensor.shape.iter().try_fold(1, product).ok_or_else(full)?;
            let mut values = Vec::new();
            values.try_reserve_exact(len).map_err(|_| full())?;
            values.resize(len, 0.0);
            Ok(values)
        });
        Ok(Memory { values: values.collect::<Result<_>>()? })
    }
}

impl Store for Memory {
    fn put(&mut self, tensor: usize, index: usize, values: &[f32]) -> Result<()> {
        self.values[tensor][index..index + values.len()].copy_from_slice(values);
        Ok(())
    }
}
