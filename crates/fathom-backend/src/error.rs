//! How an operation fails.

/// Why a backend could not do its work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// There is no room for what was asked for. What was there before is untouched.
    #[error("the {device} is out of memory: {bytes} bytes for {what} are not there")]
    OutOfMemory {
        /// What kind of machine, such as `CPU`.
        device: &'static str,
        /// What the memory was for.
        what: &'static str,
        /// How much of it.
        bytes: u64,
    },
    /// The device is gone, and everything in its memory with it.
    #[error("the device was lost: {0}")]
    Lost(String),
}

/// `Result` with [`BackendError`].
pub type Result<T, E = BackendError> = std::result::Result<T, E>;
