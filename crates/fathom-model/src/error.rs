//! One kind of error: input that cannot be used, said in one sentence.

use std::path::{Path, PathBuf};

use fathom_backend::BackendError;

/// Input that cannot be used. Every message names the file and what was expected of it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be opened, read, mapped or written.
    #[error("{}: {action}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was being done ("cannot be read").
        action: &'static str,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A field of a JSON file is missing, of the wrong kind, or out of range.
    #[error("{}: `{field}` {problem}", path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// The field, dotted where nested.
        field: String,
        /// What is wrong and what was expected.
        problem: String,
    },
    /// A line of a JSONL file cannot be used.
    #[error("{}: line {line}: {problem}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// 1-based line number.
        line: usize,
        /// What is wrong and what was expected.
        problem: String,
    },
    /// A file as a whole cannot be used.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong and what was expected.
        problem: String,
    },
    /// A tensor of a checkpoint cannot be used.
    #[error("{}: tensor `{tensor}` {problem}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// HuggingFace tensor name.
        tensor: String,
        /// What is wrong and what was expected.
        problem: String,
    },
    /// A request that does not fit the model (token ids, lengths, sites, layers).
    #[error("{0}")]
    Request(String),
    /// The machine failed: out of memory, or a device that was lost.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

/// `Result` with [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An [`Error::Io`]; use as `.map_err(Error::io(path, "cannot be read"))`.
    pub fn io(path: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::Io { path, action, source }
    }

    /// An [`Error::Field`].
    pub fn field(path: &Path, field: impl Into<String>, problem: impl Into<String>) -> Error {
        Error::Field { path: path.to_owned(), field: field.into(), problem: problem.into() }
    }

    /// An [`Error::File`].
    pub fn file(path: &Path, problem: impl Into<String>) -> Error {
        Error::File { path: path.to_owned(), problem: problem.into() }
    }

    /// An [`Error::Line`]; `line` counts from 1.
    pub fn line(path: &Path, line: usize, problem: impl Into<String>) -> Error {
        Error::Line { path: path.to_owned(), line, problem: problem.into() }
    }

    /// An [`Error::Tensor`].
    pub fn tensor(path: &Path, tensor: impl Into<String>, problem: impl Into<String>) -> Error {
        Error::Tensor { path: path.to_owned(), tensor: tensor.into(), problem: problem.into() }
    }
}
