//! What may lie in a file's place without being it: a link to nothing, a Git LFS pointer.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::Path;

use crate::sanitize::sanitize;
use crate::{Error, Result};

/// How every Git LFS pointer begins.
const LFS: &[u8] = b"version https://git-lfs.github.com/spec/";

/// A pointer is shorter than this, says its specification.
const LONGEST_LFS: u64 = 1024;

/// Refuses a link to nothing and a Git LFS pointer, which `git clone` leaves in place of large
/// files where Git LFS is not installed. For any input file, before it is opened: a pipe is not
/// touched, and a file that does not exist is left to whoever opens it.
///
/// # Errors
/// As said, with what to do about it.
pub fn check_file(path: &Path) -> Result<()> {
    if !exists(path)? {
        return Ok(());
    }
    let metadata = fs::metadata(path).map_err(Error::io(path, "cannot be read"))?;
    if !metadata.is_file() || metadata.len() >= LONGEST_LFS {
        return Ok(());
    }
    let mut start = Vec::new();
    let file = File::open(path).map_err(Error::io(path, "cannot be opened"))?;
    file.take(LONGEST_LFS).read_to_end(&mut start).map_err(Error::io(path, "cannot be read"))?;
    refuse_lfs_pointer(path, &start)
}

/// Refuses the bytes of a file that are a Git LFS pointer.
pub(crate) fn refuse_lfs_pointer(path: &Path, bytes: &[u8]) -> Result<()> {
    match bytes.starts_with(LFS) && (bytes.len() as u64) < LONGEST_LFS {
        false => Ok(()),
        true => Err(Error::file(
            path,
            "is a Git LFS pointer, not the file itself; run `git lfs pull` in the repository it is from",
        )),
    }
}

/// Whether there is something of this name.
///
/// # Errors
/// It is a link to nothing, or it cannot be found out.
pub(crate) fn exists(path: &Path) -> Result<bool> {
    match fs::metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => match fs::read_link(path) {
            Err(_) => Ok(false),
            Ok(target) => {
                let target = sanitize(&target.to_string_lossy());
                let problem = format!(
                    "is a link to {target}, which does not exist (an interrupted download?)"
                );
                Err(Error::file(path, problem))
            }
        },
        Err(error) => Err(Error::io(path, "cannot be read")(error)),
    }
}
