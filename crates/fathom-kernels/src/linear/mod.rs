//! Matrix products of a forward pass, `x · Wᵀ + bias`, with fused epilogues.

mod epilogue;
mod matrix;
mod multiply;
pub(crate) mod operand;
mod products;

pub use matrix::Linear;
pub(crate) use matrix::{embed, pack};
pub use operand::Operand;
pub(crate) use products::{argmax, gated, linear_add, linears};
