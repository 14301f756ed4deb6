//! Options for creating a [`Cpu`](super::Cpu), and its errors.

use fathom_backend::Precision;

use super::isa::Isa;

/// Options for [`Cpu::new`](super::Cpu::new).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuOptions {
    /// Threads, including the calling thread; `None`: one per core.
    pub threads: Option<usize>,
    /// Operand precision.
    pub precision: Precision,
    /// Instruction set; `None`: the best this CPU supports.
    pub isa: Option<Isa>,
}

impl Default for CpuOptions {
    /// f32, all cores, the best instruction set.
    fn default() -> Self {
        CpuOptions { threads: None, precision: Precision::F32, isa: None }
    }
}

/// Why a [`Cpu`](super::Cpu) could not be created.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CpuError {
    /// The requested instruction set is not supported.
    #[error("this CPU does not support {isa}: {reason}")]
    UnsupportedIsa {
        /// The requested set.
        isa: Isa,
        /// [`Isa::unavailable`]
        reason: String,
    },
    /// Zero threads were requested.
    #[error("0 threads cannot compute anything: expected 1 or more")]
    NoThreads,
    /// Pinning needs one distinct core per thread.
    #[error("pinning {threads} threads needs {threads} different cores: {cores:?} were given")]
    Cores {
        /// Number of threads to pin.
        threads: usize,
        /// The cores passed.
        cores: Vec<usize>,
    },
    /// The operating system refused to pin a thread to this core.
    #[error("cannot pin a thread to core {core}: {source}")]
    Pin {
        /// The core.
        core: usize,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// The operating system refused to start a thread.
    #[error("cannot start a worker thread: {0}")]
    Spawn(#[from] std::io::Error),
}
