//! Host memory: cache-line-aligned arrays, and matrices and vectors made of them.

mod aligned;
mod rows;

pub(crate) use aligned::Aligned;
pub(crate) use rows::{ACTIVATIONS, SharedMut};
pub use rows::{Rows, Vector};
