//! Golden checkpoints on any backend.

use std::path::Path;

use fathom_backend::{Backend, Precision};
use fathom_kernels::{Cpu, CpuOptions};
use fathom_model::Transformer;

pub fn load<B: Backend>(name: &str, backend: B) -> Transformer<B> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/golden").join(name);
    Transformer::load(&dir, backend).unwrap()
}

/// One thread, f32.
pub fn cpu() -> Cpu {
    let precision = Precision::F32;
    Cpu::new(CpuOptions { threads: Some(1), precision, isa: None }).unwrap()
}
