//! Detects broken links and Git LFS pointers in place of input files.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::Path;

use crate::sanitize::sanitize;
use crate::{Error, Result};

/// The beginning of every Git LFS pointer.
const LFS: &[u8] = b"version https://git-lfs.github.com/spec/";

/// Limit of the Git LFS specification: pointers are shorter than this number of bytes.
const LONGEST_LFS: u64 = 1024;

/// Checks an input file before it is opened.
///
/// `git clone` leaves Git LFS pointers in place of large files if Git LFS is not installed. Pipes
/// are not read. A file that does not exist is no error here; opening it will fail.
///
/// # Errors
/// The path is a broken link or a Git LFS pointer. The message says what to do.
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

/// Rejects file contents that are a Git LFS pointer.
pub(crate) fn refuse_lfs_pointer(path: &Path, bytes: &[u8]) -> Result<()> {
    match bytes.starts_with(LFS) && (bytes.len() as u64) < LONGEST_LFS {
        false => Ok(()),
        true => Err(Error::file(
            path,
            "is a Git LFS pointer, not the file itself; run `git lfs pull` in the repository it \
             is from",
        )),
    }
}

/// Whether a file of any type exists at the path.
///
/// # Errors
/// The path is a broken link, or its metadata cannot be read.
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
