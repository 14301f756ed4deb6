#![doc = include_str!("../README.md")]

mod backend;
pub mod conformance;
mod error;
mod key_mask;
mod massive;
mod types;

pub use backend::Backend;
pub use error::{BackendError, Result};
pub use key_mask::KeyMask;
pub use massive::Massive;
pub use types::{
    Attention, DType, KvShape, Precision, Rotary, RowChange, RowEdit, Span, WeightView,
};
