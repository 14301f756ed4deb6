//! The CPU that models are loaded on: the one place that names a concrete backend.

use fathom_backend::Precision;
use fathom_kernels::{Cpu, CpuError, CpuOptions, Isa};
use fathom_model::{Error, Result};

/// A model's weights, packed for this machine's CPU: what forward passes run on.
pub type Weights = fathom_model::Model<Cpu>;

/// The precision of this name.
///
/// # Errors
/// There is none.
pub fn parse_precision(name: &str) -> Result<Precision> {
    let all = [Precision::F32, Precision::Bf16];
    all.into_iter().find(|precision| precision.name() == name).ok_or_else(|| {
        Error::Request(format!("precision `{name}` is unknown: expected `f32` or `bf16`"))
    })
}

/// The instruction set of this name, as `fathom doctor` lists them.
///
/// # Errors
/// There is none.
pub fn parse_isa(name: &str) -> Result<Isa> {
    Isa::ALL.into_iter().find(|isa| isa.name() == name).ok_or_else(|| {
        let names = Isa::ALL.map(Isa::name).join(", ");
        Error::Request(format!("instruction set `{name}` is unknown: expected one of {names}"))
    })
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
