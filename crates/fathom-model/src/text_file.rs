//! Reading small text files that come from strangers.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use crate::{Error, Result};

/// The whole of a regular file as UTF-8 text; `None` when it does not exist.
///
/// Anything that is not a regular file is refused before it is opened: a pipe would never end.
pub(crate) fn read_text(path: &Path) -> Result<Option<String>> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => {}
        Ok(_) => return Err(Error::file(path, "is not a regular file")),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io(path, "cannot be read")(error)),
    }
    let bytes = fs::read(path).map_err(Error::io(path, "cannot be read"))?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let offset = error.utf8_error().valid_up_to();
        Error::file(path, format!("is not UTF-8 text (byte {offset})"))
    })?;
    Ok(Some(text))
}
