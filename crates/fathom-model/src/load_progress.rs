//! Following and interrupting the loading of a model.

use crate::Result;

/// Follows the loading of a model, and can stop it. A closure `|done, layers|` follows without
/// stopping it.
pub trait LoadProgress {
    /// Called after each layer is packed, with the layers done so far and their total number.
    fn layer(&mut self, done: usize, layers: usize);

    /// Called before each tensor is read.
    ///
    /// # Errors
    /// Any error stops the loading and is returned from it.
    fn check(&mut self) -> Result<()> {
        Ok(())
    }
}

impl<F: FnMut(usize, usize)> LoadProgress for F {
    fn layer(&mut self, done: usize, layers: usize) {
        self(done, layers);
    }
}
