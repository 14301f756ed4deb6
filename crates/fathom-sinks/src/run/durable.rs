//! Atomic, durable file writes: after a crash or power loss there is either the old file or the new
//! one.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use fathom_model::{Error, Result};

/// The temporary path a file is written to before it is renamed.
pub(super) fn temporary(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    PathBuf::from(name)
}

/// Atomically replaces the file at `path` by one that `write` fills.
pub(super) fn replace(path: &Path, write: impl FnOnce(&File) -> Result<()>) -> Result<()> {
    let temporary = temporary(path);
    let failed = |_: &Error| drop(fs::remove_file(&temporary)); // best effort
    let written = File::create(&temporary)
        .map_err(Error::io(&temporary, "cannot be created"))
        .and_then(|file| {
            write(&file)?;
            file.sync_all().map_err(Error::io(&temporary, "cannot be written"))
        })
        .and_then(|()| fs::rename(&temporary, path).map_err(Error::io(path, "cannot be written")));
    written.inspect_err(failed)?;
    sync_parent(path)
}

/// Replaces the file `path` by `bytes`, atomically and durably.
///
/// # Errors
/// The path cannot be written or the disk is full. The old file is then unchanged, and no temporary
/// file is left.
pub fn replace_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    replace(path, |mut file| file.write_all(bytes).map_err(Error::io(path, "cannot be written")))
}

/// Makes the entries of `path`'s directory durable.
pub(super) fn sync_parent(path: &Path) -> Result<()> {
    match path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        Some(parent) => sync_dir(parent),
        None => sync_dir(Path::new(".")),
    }
}

/// Makes the entries of a directory durable.
pub(super) fn sync_dir(dir: &Path) -> Result<()> {
    let synced = File::open(dir).and_then(|dir| dir.sync_all());
    synced.map_err(Error::io(dir, "cannot be written"))
}
