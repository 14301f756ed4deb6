//! The rows of data sets as they lie about: JSONL and JSON arrays, plain or compressed, Parquet,
//! several files at once, and standard input. Every row is the text of one JSON value.
//!
//! Files come from strangers: only one row is held at a time, and what is decompressed may not
//! exceed what a data set's own redundancy explains.

mod array;
mod files;
mod open;
mod parquet;
mod text;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::{Error, Result};
use open::Reader;

/// A row longer than this is refused before it is read: 64 MiB, ten million token ids.
const MAX_ROW_BYTES: u64 = 64 << 20;

/// What stands for standard input.
pub(crate) const STDIN: &str = "-";

/// One row of a data set.
pub(crate) struct Row {
    /// The file it is in.
    pub file: Arc<Path>,
    /// 1-based: the line of a JSONL file, the number of a row or element of another.
    pub line: usize,
    /// JSON, but for text files of prompts.
    pub text: String,
}

/// Reads rows, one file after the other.
pub(crate) struct Rows {
    files: VecDeque<PathBuf>,
    open: Option<(Arc<Path>, Reader)>,
}

impl Rows {
    /// The rows of a file, of all data files of a directory, of the files that a pattern such as
    /// `data/*.parquet` names, in the order of their names, or of standard input (`-`).
    pub(crate) fn open(path: &Path) -> Result<Rows> {
        let mut files = VecDeque::from(files::of(path)?);
        let open = files.pop_front().map(Rows::start).transpose()?;
        Ok(Rows { files, open })
    }

    fn start(path: PathBuf) -> Result<(Arc<Path>, Reader)> {
        let reader = Reader::open(&path)?;
        Ok((Arc::from(path), reader))
    }

    /// The next row that is not blank.
    pub(crate) fn next_row(&mut self) -> Result<Option<Row>> {
        while let Some((file, reader)) = &mut self.open {
            match reader.next_row() {
                Ok(Some((line, text))) => {
                    return Ok(Some(Row { file: Arc::clone(file), line, text }));
                }
                Ok(None) => {}
                Err(error) => {
                    // A line that cannot be read has an end; nothing else can be found again.
                    if !matches!(reader, Reader::Lines(_)) || !matches!(error, Error::Line { .. }) {
                        (self.open, self.files) = (None, VecDeque::new());
                    }
                    return Err(error);
                }
            }
            self.open = self.files.pop_front().map(Rows::start).transpose()?;
        }
        Ok(None)
    }
}

/// The files that `path` names, as [`crate::TraceReader::open`] reads them; `None` for standard
/// input.
///
/// # Errors
/// A pattern that names none, or a directory without data files.
pub fn data_files(path: &Path) -> Result<Option<Vec<PathBuf>>> {
    match path.as_os_str() == STDIN {
        true => Ok(None),
        false => files::of(path).map(Some),
    }
}
