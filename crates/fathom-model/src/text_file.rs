//! Reads small text files from untrusted input.

use std::fs;
use std::path::Path;

use crate::file_check::{exists, refuse_lfs_pointer};
use crate::{Error, Result};

/// Maximum file size. The largest published tokenizers and indexes are a tenth as large.
const MAX_BYTES: u64 = 256 << 20;

/// The byte order mark that some editors write at the start of a file.
const MARK: char = '\u{FEFF}';

/// Reads a regular file as text, without a byte order mark; `None` if it does not exist.
///
/// The file is UTF-8, or UTF-16 with a byte order mark as PowerShell writes it. Other file types
/// and files over 256 MiB are rejected before they are opened: reading a pipe may never end, and a
/// sparse file can be larger than memory.
///
/// # Errors
/// The path is a broken link, a Git LFS pointer, larger than 256 MiB or not a regular file; or the
/// bytes are not text.
pub fn read_text(path: &Path) -> Result<Option<String>> {
    let text = read_text_with_mark(path)?;
    Ok(text.map(|text| text.strip_prefix(MARK).map(str::to_owned).unwrap_or(text)))
}

/// Like [`read_text`], but keeps the byte order mark of a UTF-8 file, which is part of a chat
/// template's text.
pub(crate) fn read_text_with_mark(path: &Path) -> Result<Option<String>> {
    if !exists(path)? {
        return Ok(None);
    }
    let metadata = fs::metadata(path).map_err(Error::io(path, "cannot be read"))?;
    if metadata.len() > MAX_BYTES {
        let mib = metadata.len() >> 20;
        let problem = format!("is {mib} MiB long, expected at most {}", MAX_BYTES >> 20);
        return Err(Error::file(path, problem));
    }
    if !metadata.is_file() {
        return Err(Error::file(path, "is not a regular file"));
    }
    let bytes = fs::read(path).map_err(Error::io(path, "cannot be read"))?;
    refuse_lfs_pointer(path, &bytes)?;
    decode(path, bytes).map(Some)
}

/// Decodes the bytes of a file. `path` is only for messages.
fn decode(path: &Path, bytes: Vec<u8>) -> Result<String> {
    match bytes.as_slice() {
        [0xFF, 0xFE, text @ ..] if !text.is_empty() => {
            return utf16(path, text, u16::from_le_bytes);
        }
        [0xFE, 0xFF, text @ ..] if !text.is_empty() => {
            return utf16(path, text, u16::from_be_bytes);
        }
        _ => {}
    }
    String::from_utf8(bytes).map_err(|error| {
        let offset = error.utf8_error().valid_up_to();
        Error::file(path, format!("is not UTF-8 text (byte {offset})"))
    })
}

fn utf16(path: &Path, bytes: &[u8], unit: fn([u8; 2]) -> u16) -> Result<String> {
    let (units, rest) = bytes.as_chunks();
    let text = char::decode_utf16(units.iter().map(|&bytes| unit(bytes))).collect();
    match (text, rest) {
        (Ok(text), []) => Ok(text),
        _ => Err(Error::file(path, "begins like UTF-16 text, but is not; expected UTF-8")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_file_over_the_size_limit_is_refused_unread() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        fs::File::create(&path).unwrap().set_len(1 << 40).unwrap(); // sparse: takes no space
        let message = read_text(&path).unwrap_err().to_string();
        assert!(
            message.ends_with("config.json: is 1048576 MiB long, expected at most 256"),
            "{message}"
        );
    }
}
