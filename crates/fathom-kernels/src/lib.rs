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
pub mod limits;
mod linear;
pub mod machine;
mod microkernel;
mod norm;
mod operand;
mod pack;
mod pool;
mod product;
pub mod reference;
mod rope;
mod rows;
mod simd;
pub mod workload;

pub use fathom_backend::{DType, WeightView};

pub use affinity::cores;
pub use backend::{Attention, Backend, KvShape, Precision, Span};
pub use column_sums::ColumnSums;
pub use cpu::{Cpu, CpuError, CpuOptions};
pub use describe::KernelPath;
pub use isa::{Feature, Isa, cpu_features};
pub use kv::Kv;
pub use linear::Linear;
pub use operand::Operand;
pub use rope::Table as RopeTable;
pub use rows::{Rows, Vector};
