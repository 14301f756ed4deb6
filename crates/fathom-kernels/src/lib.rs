//! Numbers only: packed matrix product, attention, norms, rotary embedding.
//!
//! [`Backend`] is what a forward pass asks of a machine; [`Cpu`] answers it here.

mod backend;
mod weight;

pub use backend::{Attention, Backend, KvShape, Precision, Span};
pub use weight::{DType, WeightView};
