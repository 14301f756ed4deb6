//! Reading small text files that come from strangers.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use crate::{Error, Result};

/// Longest file that is read: the largest published tokenizers and indexes have a tenth of it.
const MAX_BYTES: u64 = 256 << 20;

/// The whole of a regular file as UTF-8 text; `None` when it does not exist.
///
/// Anything that is not a regular file of a sane size is refused before it is opened: a pipe would never
/// end, and a sparse file can claim more than there is memory.
pub(crate) fn read_text(path: &Path) -> Result<Option<String>> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.len() > MAX_BYTES => {
            let mib = metadata.len() >> 20;
            let problem = format!("is {mib} MiB long, expected at most {}", MAX_BYTES >> 20);
            return Err(Error::file(path, problem));
        }
        Ok(metadata) if metadata.is_file() => {}
        Ok(_) => return Err(Error::file(path, "is not a regular file")),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io(path, "cannot be read")(error)),
    }
    let bytes = fs::read(path).map_err(Error::io(path, "cannot be read"))?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let problem = match error.as_bytes() {
            [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => "is UTF-16 text; save it as UTF-8".to_owned(),
            _ => format!("is not UTF-8 text (byte {})", error.utf8_error().valid_up_to()),
        };
        Error::file(path, problem)
    })?;
    Ok(Some(text))
}

/// JSON text without the byte order mark that some editors begin a file with, and that says nothing.
pub(crate) fn without_bom(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_claims_to_be_huge_is_refused_unread() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        fs::File::create(&path).unwrap().set_len(1 << 40).unwrap(); // sparse: takes no space
        let message = read_text(&path).unwrap_err().to_string();
        assert!(
            message.ends_with("config.json: is 1048576 MiB long, expected at most 256"),
            "{message}"
        );
    }

    #[test]
    fn utf_16_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chat_template.jinja");
        fs::write(&path, b"\xff\xfex\0").unwrap();
        let message = read_text(&path).unwrap_err().to_string();
        assert!(message.ends_with("is UTF-16 text; save it as UTF-8"), "{message}");
    }
}
