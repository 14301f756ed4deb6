//! Progress and cancellation of loading a model.

use crate::Result;

/// Receives the progress of loading a model, and can stop it. A closure `|done, layers|` only
/// receives the progress.
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
