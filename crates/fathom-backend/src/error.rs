//! The error type of backend operations.

/// Why an operation failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// An allocation failed. Memory that was already allocated is unaffected.
    #[error("the {device} is out of memory: cannot allocate {bytes} bytes for {what}")]
    OutOfMemory {
        /// The kind of device, such as `CPU`.
        device: &'static str,
        /// What the memory was to hold.
        what: &'static str,
        /// Size of the allocation in bytes.
        bytes: u64,
    },
    /// The device is lost, with everything in its memory.
    #[error("the device was lost: {0}")]
    Lost(String),
}

/// `Result` with [`BackendError`].
pub type Result<T, E = BackendError> = std::result::Result<T, E>;
