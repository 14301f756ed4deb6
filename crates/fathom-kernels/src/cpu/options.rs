//! How a [`Cpu`](super::Cpu) is made, and why it could not be.

use fathom_backend::Precision;

use super::isa::Isa;

/// How to make a [`Cpu`](super::Cpu).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuOptions {
    /// Threads, the calling one included; `None`: one per core.
    pub threads: Option<usize>,
    /// Operand precision.
    pub precision: Precision,
    /// Instruction set; `None`: the best this machine has.
    pub isa: Option<Isa>,
}

impl Default for CpuOptions {
    /// f32, all cores, the best instruction set.
    fn default() -> Self {
        CpuOptions { threads: None, precision: Precision::F32, isa: None }
    }
}

/// Why a [`Cpu`](super::Cpu) could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CpuError {
    /// The instruction set was asked for by name and is not there.
    #[error("this machine does not run {isa}: {reason}")]
    UnsupportedIsa {
        /// What was asked for.
        isa: Isa,
        /// [`Isa::unavailable`]
        reason: String,
    },
    /// Zero threads were asked for.
    #[error("0 threads cannot compute anything: expected 1 or more")]
    NoThreads,
    /// Threads were to stay on cores that are too few, or not each its own.
    #[error("{threads} threads need {threads} different cores to stay on: {cores:?} were given")]
    Cores {
        /// Threads that work at the same time.
        threads: usize,
        /// What was given.
        cores: Vec<usize>,
    },
    /// The operating system keeps no thread on this core.
    #[error("cannot keep a thread on core {core}: {source}")]
    Pin {
        /// The core.
        core: usize,
        /// Why.
        source: std::io::Error,
    },
    /// The operating system refused a thread.
    #[error("cannot start a worker thread: {0}")]
    Spawn(#[from] std::io::Error),
}
