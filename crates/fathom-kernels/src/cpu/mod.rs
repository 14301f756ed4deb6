//! The CPU this runs on: its instruction set, its threads and their places, their memory.

mod affinity;
#[allow(clippy::module_inception)] // the folder is about the machine, the file about the type
mod cpu;
mod describe;
mod isa;
mod options;
mod pool;
mod scratch;

pub use affinity::cores;
pub use cpu::Cpu;
pub(crate) use cpu::WORTH_A_HAND_OFF;
pub use describe::KernelPath;
#[cfg(test)]
pub(crate) use isa::Supported;
#[cfg(target_arch = "x86_64")]
pub(crate) use isa::Tiles;
pub use isa::{Feature, Isa, cpu_features};
pub use options::{CpuError, CpuOptions};
pub(crate) use pool::lock;
pub(crate) use scratch::{AttentionScratch, SoftmaxState};
