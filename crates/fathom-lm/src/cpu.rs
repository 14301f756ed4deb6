//! The CPU backend that models run on: the one place that names a concrete backend.

use fathom_backend::Precision;
use fathom_kernels::{Cpu, CpuError, CpuOptions, Isa};
use fathom_model::{Error, Result};

/// A model with its weights packed for this CPU.
pub type Weights = fathom_model::Transformer<Cpu>;

/// The precision with this name, `f32` or `bf16`.
///
/// # Errors
/// An unknown name.
pub fn parse_precision(name: &str) -> Result<Precision> {
    let all = [Precision::F32, Precision::Bf16];
    all.into_iter().find(|precision| precision.name() == name).ok_or_else(|| {
        Error::Request(format!("precision `{name}` is unknown: expected `f32` or `bf16`"))
    })
}

/// The instruction set with this name; `fathom doctor` lists the names.
///
/// # Errors
/// An unknown name.
pub fn parse_isa(name: &str) -> Result<Isa> {
    Isa::ALL.into_iter().find(|isa| isa.name() == name).ok_or_else(|| {
        let names = Isa::ALL.map(Isa::name).join(", ");
        Error::Request(format!("instruction set `{name}` is unknown: expected one of {names}"))
    })
}

/// The CPU backend with these options.
///
/// # Errors
/// An instruction set that this CPU lacks; more threads than the operating system allows.
pub fn cpu(options: CpuOptions) -> Result<Cpu> {
    Cpu::new(options).map_err(cpu_error)
}

/// Converts an error of the CPU backend.
pub(crate) fn cpu_error(error: CpuError) -> Error {
    Error::Request(error.to_string())
}
