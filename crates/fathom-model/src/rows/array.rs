//! Streams the elements of a JSON array, `[{...}, {...}]`. Each element is a row.

use std::io::BufRead;
use std::path::{Path, PathBuf};

use super::MAX_ROW_BYTES;
use super::open::Text;
use crate::{Error, Result};

/// Reads the elements of a text that is one JSON array. It only tracks strings and brackets to find
/// where elements end; the parser of the rows checks their content.
pub(super) struct Elements {
    path: PathBuf,
    text: Text,
    /// Number of elements started so far.
    count: usize,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before `[`.
    Before,
    Inside,
    /// After `]`.
    After,
}

impl Elements {
    pub(super) fn new(path: &Path, text: Text) -> Elements {
        Elements { path: path.to_owned(), text, count: 0, state: State::Before }
    }

    /// The next element and its 1-based number.
    pub(super) fn next_element(&mut self) -> Result<Option<(usize, String)>> {
        if self.state == State::Before {
            self.begin()?;
        }
        if self.state == State::After {
            return Ok(None);
        }
        self.count += 1;
        let mut element = Vec::new();
        let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
        loop {
            let Some(byte) = self.next_byte()? else {
                return Err(self.error("ends in the middle of the array"));
            };
            match byte {
                _ if escaped => escaped = false,
                b'\\' if in_string => escaped = true,
                b'"' => in_string = !in_string,
                _ if in_string => {}
                b'[' | b'{' => depth += 1,
                b',' if depth == 0 => break,
                b']' if depth == 0 => {
                    self.end()?;
                    break;
                }
                b']' | b'}' => depth = depth.saturating_sub(1),
                _ => {}
            }
            element.push(byte);
            if element.len() as u64 > MAX_ROW_BYTES {
                return Err(self.error(&format!("is longer than {} MiB", MAX_ROW_BYTES >> 20)));
            }
        }
        let element = String::from_utf8(element).map_err(|error| {
            let offset = error.utf8_error().valid_up_to();
            self.error(&format!("is not UTF-8 text (byte {offset})"))
        })?;
        match (element.trim().is_empty(), self.state) {
            (true, State::After) => Ok(None), // an empty array or a trailing comma
            _ => Ok(Some((self.count, element))),
        }
    }

    /// Skips everything up to `[`.
    fn begin(&mut self) -> Result<()> {
        while self.next_byte()?.is_some_and(|byte| byte != b'[') {}
        self.state = State::Inside;
        Ok(())
    }

    /// Checks that only white space follows the array.
    fn end(&mut self) -> Result<()> {
        self.state = State::After;
        while let Some(byte) = self.next_byte()? {
            if !byte.is_ascii_whitespace() {
                return Err(self.error("is followed by text after the end of the array"));
            }
        }
        Ok(())
    }

    fn next_byte(&mut self) -> Result<Option<u8>> {
        let buffer = self.text.fill_buf().map_err(Error::io(&self.path, "cannot be read"))?;
        let byte = buffer.first().copied();
        self.text.consume(usize::from(byte.is_some()));
        Ok(byte)
    }

    fn error(&self, problem: &str) -> Error {
        Error::line(&self.path, self.count, problem)
    }
}
