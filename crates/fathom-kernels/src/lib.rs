#![doc = include_str!("../README.md")]

// Layering: a module may use the modules above it in this list, and nothing from the crate's root.
// Within a folder, files do not import each other in a cycle. `tests/layers.rs` checks both.
//
// memory      cache-line-aligned arrays, row matrices, vectors
// simd        vector operations, one implementation per instruction set; exp and silu
// gemm        memory layouts, packing, the micro-kernel
// amx         tile registers
// cpu         instruction set, threads, core affinity, scratch memory
// linear      weight matrices, operands, matrix products
// ops         norms, rotary embedding, activations, row operations of probes
// attention   KV cache, passes, attention, column sums
// backend     the trait implementation
// peak        loops that reach the CPU's peak rates
// reference   slow reference implementations for tests
//
// One exception: `simd` uses `gemm::product`. Each instruction set has a table of its register
// tiles, which must be compiled with that set's instructions enabled.
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
