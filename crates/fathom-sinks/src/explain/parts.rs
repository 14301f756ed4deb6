//! `RUN/explain/parts/`: what has been learnt of single traces while an explanation is under way, so that
//! one that was killed goes on where it stopped.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use fathom_model::{Error, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::run::durable;

/// What every part of a directory was made with.
const KEY: &str = "made-with";

/// The parts of one run.
#[derive(Debug)]
pub(super) struct Parts {
    dir: PathBuf,
    /// The directory above, locked: two processes must not explain one run.
    _lock: File,
}

impl Parts {
    /// The parts of the run in `run_dir` that were made with `key`; those made with anything else go.
    ///
    /// # Errors
    /// A directory that cannot be written, or that another process is writing.
    pub fn open(run_dir: &Path, key: &str) -> Result<Parts> {
        let explain = run_dir.join("explain");
        fs::create_dir_all(&explain).map_err(Error::io(&explain, "cannot be created"))?;
        let _lock = lock(&explain)?;
        let dir = explain.join("parts");
        let made_with = dir.join(KEY);
        if fs::read_to_string(&made_with).is_ok_and(|found| found == key) {
            return Ok(Parts { dir, _lock });
        }
        if dir.exists() {
            fs::remove_dir_all(&dir).map_err(Error::io(&dir, "cannot be removed"))?;
        }
        fs::create_dir_all(&dir).map_err(Error::io(&dir, "cannot be created"))?;
        durable::replace_bytes(&made_with, key.as_bytes())?;
        Ok(Parts { dir, _lock })
    }

    /// What `name` learnt of a trace; `None` where that is not, or not wholly, there.
    pub fn read(&self, name: &str, trace: usize) -> Option<Vec<u8>> {
        fs::read(self.file(name, trace)).ok()
    }

    /// Whether `name` has learnt of a trace.
    pub fn has(&self, name: &str, trace: usize) -> bool {
        self.file(name, trace).exists()
    }

    /// Keeps what `name` learnt of a trace.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn write(&self, name: &str, trace: usize, part: &[u8]) -> Result<()> {
        durable::replace_bytes(&self.file(name, trace), part)
    }

    /// Drops all parts: the results are there.
    ///
    /// # Errors
    /// A directory that cannot be removed.
    pub fn remove(self) -> Result<()> {
        fs::remove_dir_all(&self.dir).map_err(Error::io(&self.dir, "cannot be removed"))
    }

    fn file(&self, name: &str, trace: usize) -> PathBuf {
        self.dir.join(format!("{name}-{trace}.cbor"))
    }
}

fn lock(dir: &Path) -> Result<File> {
    let file = File::open(dir).map_err(Error::io(dir, "cannot be opened"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(Error::file(dir, "is being written by another process"))
        }
        Err(TryLockError::Error(error)) => Err(Error::io(dir, "cannot be locked")(error)),
    }
}

/// A part as it is kept: CBOR, which gives every float back in all its bits.
///
/// # Errors
/// None: parts have no state that could not be written.
pub(super) fn encode<T: Serialize>(part: &T) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let written = ciborium::into_writer(part, &mut bytes);
    written.map_err(|error| Error::Request(format!("a part cannot be kept: {error}")))?;
    Ok(bytes)
}

/// A part that was kept; `None` where it is damaged.
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    ciborium::from_reader(bytes).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn floats_come_back_in_all_their_bits() {
        let values = vec![0.1f64, -0.0, f64::MIN_POSITIVE, 1.0 / 3.0, 1e300, f64::INFINITY];
        let back: Vec<f64> = decode(&encode(&values).unwrap()).unwrap();
        let bits = |values: &[f64]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&back), bits(&values));
        let values = vec![0.1f32, -0.0, f32::MIN_POSITIVE, f32::EPSILON];
        assert_eq!(decode::<Vec<f32>>(&encode(&values).unwrap()).unwrap(), values);
        assert_eq!(decode::<Vec<f32>>(&encode(&values).unwrap()[..9]), None);
    }

    #[test]
    fn parts_of_something_else_go() {
        let run = tempfile::tempdir().unwrap();
        let parts = Parts::open(run.path(), "one").unwrap();
        parts.write("stages", 3, b"part").unwrap();
        let error = Parts::open(run.path(), "one").unwrap_err().to_string();
        assert!(error.ends_with("explain: is being written by another process"), "{error}");
        drop(parts);
        let parts = Parts::open(run.path(), "one").unwrap();
        assert_eq!(parts.read("stages", 3).as_deref(), Some(&b"part"[..]));
        assert!(parts.has("stages", 3) && !parts.has("stages", 2) && !parts.has("pca", 3));
        drop(parts);
        let parts = Parts::open(run.path(), "another").unwrap();
        assert_eq!(parts.read("stages", 3), None);
        parts.remove().unwrap();
        assert!(!run.path().join("explain/parts").exists());
    }
}
