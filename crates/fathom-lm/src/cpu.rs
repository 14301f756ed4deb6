//! The CPU that models are loaded on: the one place that names a concrete backend.

use fathom_backend::Precision;
use fathom_kernels::{Cpu, CpuError, CpuOptions};
use fathom_model::{Error, Result};

/// A model's weights, packed for this machine's CPU: what forward passes run on.
pub type Weights = fathom_model::Model<Cpu>;

/// The name of a precision in options, runs and generated traces: `f32` or `bf16`.
pub fn precision_name(precision: Precision) -> &'static str {
    match precision {
        Precision::F32 => "f32",
        Precision::Bf16 => "bf16",
    }
}

/// The CPU, set up as asked.
///
/// # Errors
/// An instruction set that this CPU lacks; more threads than the operating system allows.
pub fn cpu(options: CpuOptions) -> Result<Cpu> {
    Cpu::new(options).map_err(refused)
}

/// What the CPU refused, as an error of the library.
pub(crate) fn refused(error: CpuError) -> Error {
    Error::Request(error.to_string())
}

/// Which kernels a model computes with, as runs record it: `cpu avx512-bf16`. Results of different
/// ones agree, but not in every bit.
pub fn engine_name(weights: &Weights) -> String {
    format!("cpu {}", weights.backend().isa())
}
