//! Reads the rows of data sets: JSONL and JSON arrays (plain, gzip or zstd), Parquet, several files
//! at once, and standard input. Every row is the text of one JSON value.
//!
//! Files are untrusted input. Rows are read one at a time (Parquet: 32 at a time), and the
//! compression ratio is limited against decompression bombs.

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

/// Maximum length of a row in bytes: 64 MiB, about ten million token ids.
const MAX_ROW_BYTES: u64 = 64 << 20;

/// The path that means standard input.
pub(crate) const STDIN: &str = "-";

/// One row of a data set.
pub(crate) struct Row {
    /// The file it is in.
    pub file: Arc<Path>,
    /// 1-based number of the line, array element or Parquet row.
    pub line: usize,
    /// JSON, or one line of a text file of prompts.
    pub text: String,
}

/// Reads the rows of several files, one file after the other.
pub(crate) struct Rows {
    files: VecDeque<PathBuf>,
    open: Option<(Arc<Path>, Reader)>,
}

impl Rows {
    /// Opens a file, all data files of a directory, the files that match a pattern such as
    /// `data/*.parquet`, or standard input (`-`). Several files are read in the order of their
    /// names.
    pub(crate) fn open(path: &Path) -> Result<Rows> {
        let mut files = VecDeque::from(files::of(path)?);
        let open = files.pop_front().map(Rows::start).transpose()?;
        Ok(Rows { files, open })
    }

    fn start(path: PathBuf) -> Result<(Arc<Path>, Reader)> {
        let reader = Reader::open(&path)?;
        Ok((Arc::from(path), reader))
    }

    /// The next non-blank row.
    pub(crate) fn next_row(&mut self) -> Result<Option<Row>> {
        while let Some((file, reader)) = &mut self.open {
            match reader.next_row() {
                Ok(Some((line, text))) => {
                    return Ok(Some(Row { file: Arc::clone(file), line, text }));
                }
                Ok(None) => {}
                Err(error) => {
                    // After a bad line, reading can resume at the next one. Any other error is
                    // final.
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

/// The files that [`crate::TraceReader::open`] reads for `path`; `None` for standard input.
///
/// # Errors
/// A pattern matches no file, or a directory has no data files.
pub fn data_files(path: &Path) -> Result<Option<Vec<PathBuf>>> {
    match path.as_os_str() == STDIN {
        true => Ok(None),
        false => files::of(path).map(Some),
    }
}
