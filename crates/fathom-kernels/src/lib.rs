#![doc = include_str!("../README.md")]

// What may import what: a module uses those above it in this list, and nothing from the crate's
// root. Within a folder no file uses, in a circle, a file that uses it. `tests/layers.rs` checks
// both.
//
// memory      arrays on cache-line boundaries, rows, vectors simd        vector operations, one
// implementation per instruction set; functions made of them gemm        layouts, packing, the
// register tile amx         tile registers cpu         instruction set, threads, places, scratch
// memory linear      weight matrices, operands, products ops         norms, rotary embedding,
// activations, what probes need attention   keys and values, passes, attention, column sums backend
// the trait; peak, what is measured; reference, the slow doubles for tests
//
// One exception: `simd` names `gemm::product`, for each instruction set has a table of the register
// tiles that exist for it, which must be compiled with its instructions.
mod amx;
mod attention;
mod backend;
mod cpu;
mod gemm;
mod linear;
mod memory;
mod ops;
pub mod peak;
pub mod reference;
mod simd;

pub use attention::{ColumnSums, Kv, Pass};
pub use cpu::{Cpu, CpuError, CpuOptions, Feature, Isa, KernelPath, cores, cpu_features};
pub use linear::{Linear, Operand};
pub use memory::{Rows, Vector};
