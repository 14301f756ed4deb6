//! One kind of error: what cannot be used, said in one sentence.

use std::path::{Path, PathBuf};

use fathom_backend::BackendError;

/// Why something cannot be done. Displayed, it is one sentence that names the file, and the field,
/// line or tensor in it, and says what was expected; nothing was written over, and nothing is half
/// done.
///
/// What to do about it:
///
/// | variant | whose matter it is |
/// |---|---|
/// | [`Error::Io`] | the disk's: a file is not there, may not be read, or there is no room |
/// | [`Error::File`], [`Error::Field`], [`Error::Tensor`] | another file is needed |
/// | [`Error::Line`] | one row's of a data set: it can be mended or left out, the others are fine |
/// | [`Error::Request`] | the caller's: an argument without meaning, or not of this model |
/// | [`Error::Backend`] | the machine's: a smaller batch, or another machine |
/// | [`Error::Stopped`] | an engine's that has ended: start another one |
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
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
    /// What was asked for has no meaning, or does not fit the model: token ids, lengths, sites,
    /// layers, options, a model that is not here.
    #[error("{0}")]
    Request(String),
    /// The machine failed: out of memory, or a device that was lost.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// No fault of the request: what would have done it has failed, was closed, or is gone.
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
