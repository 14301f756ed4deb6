//! Reads a text file; each line is a row.

use std::io::{BufRead, Read};
use std::path::{Path, PathBuf};

use super::MAX_ROW_BYTES;
use super::open::Text;
use crate::{Error, Result};

/// Reads lines. Blank lines are skipped but counted.
pub(super) struct Lines {
    path: PathBuf,
    text: Text,
    /// Number of lines read so far.
    count: usize,
    /// Whether the last line was too long, so that its rest must be skipped.
    cut: bool,
}

impl Lines {
    pub(super) fn new(path: &Path, text: Text) -> Lines {
        Lines { path: path.to_owned(), text, count: 0, cut: false }
    }

    /// Skips the rest of the current line.
    fn skip_line(&mut self) -> Result<()> {
        loop {
            let buffer = self.text.fill_buf().map_err(Error::io(&self.path, "cannot be read"))?;
            let (length, ends) = match buffer.iter().position(|byte| *byte == b'\n') {
                Some(at) => (at + 1, true),
                None => (buffer.len(), buffer.is_empty()),
            };
            self.text.consume(length);
            if ends {
                return Ok(());
            }
        }
    }

    /// The next non-blank line, without its line ending, and its 1-based number.
    pub(super) fn next_line(&mut self) -> Result<Option<(usize, String)>> {
        if std::mem::take(&mut self.cut) {
            self.skip_line()?;
        }
        loop {
            let mut bytes = Vec::new();
            let read = (&mut self.text)
                .take(MAX_ROW_BYTES + 1)
                .read_until(b'\n', &mut bytes)
                .map_err(Error::io(&self.path, "cannot be read"))?;
            if read == 0 {
                return Ok(None);
            }
            self.count += 1;
            if bytes.len() as u64 > MAX_ROW_BYTES {
                self.cut = true;
                let problem = format!("is longer than {} MiB", MAX_ROW_BYTES >> 20);
                return Err(Error::line(&self.path, self.count, problem));
            }
            let mut text = String::from_utf8(bytes).map_err(|error| {
                let offset = error.utf8_error().valid_up_to();
                Error::line(&self.path, self.count, format!("is not UTF-8 text (byte {offset})"))
            })?;
            text.truncate(text.trim_end_matches(['\n', '\r']).len());
            if self.count == 1 && text.starts_with('\u{FEFF}') {
                text.drain(..'\u{FEFF}'.len_utf8());
            }
            if !text.trim().is_empty() {
                return Ok(Some((self.count, text)));
            }
        }
    }
}
