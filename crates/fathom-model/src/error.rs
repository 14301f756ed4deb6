//! The error type of this crate.

use std::path::{Path, PathBuf};

use fathom_backend::BackendError;

/// An error of this crate. Displayed, it is one sentence that names the file, the field, line or
/// tensor in it, and what was expected.
///
/// | variant | cause and remedy |
/// |---|---|
/// | [`Error::Io`] | the disk: a file is missing or unreadable, or the disk is full |
/// | [`Error::File`], [`Error::Field`], [`Error::Tensor`] | invalid file: use another one |
/// | [`Error::Line`] | invalid row of a data set: correct or remove it; other rows are valid |
/// | [`Error::Request`] | invalid argument, or one that does not fit the model |
/// | [`Error::Backend`] | the device: use a smaller batch or another device |
/// | [`Error::Stopped`] | the engine has ended: start another one |
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be opened, read, mapped or written.
    #[error("{}: {action}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What failed ("cannot be read").
        action: &'static str,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// A field of a JSON file is missing, of the wrong type, or out of range.
    #[error("{}: `{field}` {problem}", path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// The field, dotted if nested.
        field: String,
        /// What is wrong and what was expected.
        problem: String,
    },
    /// A line of a JSONL file is invalid.
    #[error("{}: line {line}: {problem}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// 1-based line number.
        line: usize,
        /// What is wrong and what was expected.
        problem: String,
    },
    /// A file is invalid.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong and what was expected.
        problem: String,
    },
    /// A tensor of a checkpoint is invalid.
    #[error("{}: tensor `{tensor}` {problem}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// HuggingFace tensor name.
        tensor: String,
        /// What is wrong and what was expected.
        problem: String,
    },
    /// An argument is invalid or does not fit the model: token ids, lengths, sites, layers,
    /// options, an unknown model.
    #[error("{0}")]
    Request(String),
    /// The device failed: out of memory, or the device was lost.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The request was valid, but the engine that should have run it failed or was closed.
    #[error("{0}")]
    Stopped(String),
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
