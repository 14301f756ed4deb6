//! Numbers only: packed matrix product, attention, norms, rotary embedding.
//!
//! [`Backend`] is what a forward pass asks of a machine; [`Cpu`] answers it here.

mod activation;
mod affinity;
mod aligned;
mod amx;
mod attention;
mod backend;
mod column_sums;
mod cpu;
mod describe;
mod epilogue;
mod exp;
mod isa;
mod kv;
mod linear;
mod microkernel;
mod norm;
mod operand;
mod pack;
mod pass;
pub mod peak;
mod pool;
mod product;
pub mod reference;
mod rope;
mod row_ops;
mod rows;
mod simd;

pub use affinity::cores;
pub use column_sums::ColumnSums;
pub use cpu::{Cpu, CpuError, CpuOptions};
pub use describe::KernelPath;
pub use fathom_backend::{
    Attention, Backend, BackendError, DType, KvShape, Precision, Rotary, RowChange, RowEdit, Span,
    WeightView,
};
pub use isa::{Feature, Isa, cpu_features};
pub use kv::Kv;
pub use linear::Linear;
pub use operand::Operand;
pub use pass::Pass;
pub use rows::{Rows, Vector};
