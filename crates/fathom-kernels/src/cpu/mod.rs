//! The CPU: instruction set, threads, core affinity, scratch memory.

mod affinity;
#[allow(clippy::module_inception)]
// the file defines the type `Cpu`, the folder everything around it
mod cpu;
mod describe;
mod isa;
mod options;
mod pool;
mod scratch;

pub use affinity::cores;
pub use cpu::Cpu;
pub(crate) use cpu::PARALLEL_THRESHOLD;
pub use describe::KernelPath;
#[cfg(test)]
pub(crate) use isa::Supported;
#[cfg(target_arch = "x86_64")]
pub(crate) use isa::Tiles;
pub use isa::{Feature, Isa, cpu_features};
pub use options::{CpuError, CpuOptions};
pub(crate) use pool::lock;
pub(crate) use scratch::{AttentionScratch, SoftmaxState};
