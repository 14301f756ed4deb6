//! `RUN/explain/parts/`: what was collected from single traces, so that an interrupted explanation
//! continues where it stopped.
//!
//! The next call may request other analyses. A part is therefore used only if its checksum confirms
//! which observer or intervention made it, from which trace, and with which settings. It is removed
//! when all unfinished analyses that use it have their results.

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use fathom_model::{Error, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Analysis;
use super::scanned::ScannedTrace;
use crate::run::durable;

/// Version of the parts' layout.
pub(super) const FORMAT: u32 = 3;
/// The file that holds a [`Note`].
const NOTE: &str = "made-with";
/// Bytes of the checksum at the beginning of a part's file.
const CHECKSUM: usize = 32;

/// Whether an analysis uses the parts of an observer or intervention.
fn uses(analysis: Analysis, producer: &str) -> bool {
    analysis.name() == producer || analysis.description().shared_parts.contains(&producer)
}

/// Identifies a part: the observer or intervention that made it, the trace, and the settings.
#[derive(Clone, Copy)]
pub(super) struct PartId<'a> {
    /// Name of the observer or intervention.
    producer: &'static str,
    trace: &'a ScannedTrace<'a>,
    settings: &'a [u8],
}

impl<'a> PartId<'a> {
    /// A part of the plain pass.
    pub fn new(producer: &'static str, trace: &'a ScannedTrace<'a>) -> PartId<'a> {
        PartId { producer, trace, settings: &[] }
    }

    /// A part of edited passes, made with these settings.
    pub fn with(self, settings: &'a [u8]) -> PartId<'a> {
        PartId { settings, ..self }
    }
}

/// The parts of one run.
#[derive(Debug)]
pub(super) struct Parts {
    dir: PathBuf,
    note: Note,
    /// `RUN/explain`, locked: two processes must not explain one run.
    _lock: File,
}

/// What the parts of a directory have in common.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Note {
    /// What every part depends on.
    made_with: String,
    /// Analyses that have started and have no result yet.
    in_progress: BTreeSet<Analysis>,
}

impl Note {
    /// Reads the note of the parts in `dir`; `None` if it is missing or damaged.
    fn read(dir: &Path) -> Option<Note> {
        serde_json::from_slice(&fs::read(dir.join(NOTE)).ok()?).ok()
    }
}

impl Parts {
    /// Opens the parts of the run in `run_dir` for `analyses`, which start now. Removes parts that
    /// were made with another key than `key`, and parts that are used only by analyses for which
    /// `have_result` is true.
    ///
    /// # Errors
    /// A directory that cannot be written, or that another process is writing.
    pub fn open(
        run_dir: &Path,
        key: &str,
        analyses: &[Analysis],
        have_result: &dyn Fn(Analysis) -> bool,
    ) -> Result<Parts> {
        let explain = run_dir.join("explain");
        fs::create_dir_all(&explain).map_err(Error::io(&explain, "cannot be created"))?;
        let _lock = lock(&explain)?;
        let dir = explain.join("parts");
        let mut note = match Note::read(&dir).filter(|note| note.made_with == key) {
            Some(note) => note,
            None => {
                if dir.exists() {
                    fs::remove_dir_all(&dir).map_err(Error::io(&dir, "cannot be removed"))?;
                }
                fs::create_dir_all(&dir).map_err(Error::io(&dir, "cannot be created"))?;
                Note { made_with: key.to_owned(), in_progress: BTreeSet::new() }
            }
        };
        note.in_progress.retain(|analysis| !have_result(*analysis));
        note.in_progress.extend(analyses);
        let parts = Parts { dir, note, _lock };
        parts.remove_unused()?;
        Ok(parts)
    }

    /// A part; `None` if it is missing or damaged, or if `id` does not match.
    pub fn read(&self, id: PartId<'_>) -> Option<Vec<u8>> {
        let mut part = fs::read(self.file(id)).ok()?;
        let checksum = part.get(..CHECKSUM)?.to_vec();
        part.drain(..CHECKSUM);
        (checksum == self.checksum(id, &part)).then_some(part)
    }

    /// Whether [`Parts::read`] finds it.
    pub fn has(&self, id: PartId<'_>) -> bool {
        self.read(id).is_some()
    }

    /// Stores a part.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn write(&self, id: PartId<'_>, part: &[u8]) -> Result<()> {
        let file = [self.checksum(id, part).as_slice(), part].concat();
        durable::replace_bytes(&self.file(id), &file)
    }

    /// Removes the parts that are used only by these analyses, whose results are now stored.
    ///
    /// # Errors
    /// A directory that cannot be written.
    pub fn finish(mut self, analyses: &[Analysis]) -> Result<()> {
        self.note.in_progress.retain(|analysis| !analyses.contains(analysis));
        self.remove_unused()
    }

    /// Removes all parts of a run if `have_result` is true for every analysis in progress, which
    /// happens when an explanation was killed between its last result and its clean-up. Best
    /// effort: nothing depends on it.
    pub fn tidy(run_dir: &Path, have_result: &dyn Fn(Analysis) -> bool) {
        let explain = run_dir.join("explain");
        let dir = explain.join("parts");
        let (true, Ok(_lock)) = (dir.exists(), lock(&explain)) else { return };
        let in_progress = Note::read(&dir).unwrap_or_default().in_progress;
        if in_progress.into_iter().all(have_result) {
            drop(fs::remove_dir_all(&dir));
        }
    }

    /// Writes the note, and removes the parts that no analysis in progress uses.
    fn remove_unused(&self) -> Result<()> {
        let Parts { dir, note, .. } = self;
        if note.in_progress.is_empty() {
            return match dir.exists() {
                true => fs::remove_dir_all(dir).map_err(Error::io(dir, "cannot be removed")),
                false => Ok(()),
            };
        }
        let text = serde_json::to_string(note)
            .map_err(|error| Error::file(dir, format!("cannot be noted: {error}")))?;
        durable::replace_bytes(&dir.join(NOTE), format!("{text}\n").as_bytes())?;
        for entry in fs::read_dir(dir).map_err(Error::io(dir, "cannot be read"))? {
            let path = entry.map_err(Error::io(dir, "cannot be read"))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let Some((producer, _)) = name.split_once('-') else { continue };
            let known = Analysis::ALL.iter().any(|analysis| uses(*analysis, producer));
            if known && !note.in_progress.iter().any(|analysis| uses(*analysis, producer)) {
                fs::remove_file(&path).map_err(Error::io(&path, "cannot be removed"))?;
            }
        }
        Ok(())
    }

    fn file(&self, id: PartId<'_>) -> PathBuf {
        self.dir.join(format!("{}-{}.cbor", id.producer, id.trace.number))
    }

    /// SHA-256 of everything that identifies a part, and of its bytes.
    fn checksum(&self, id: PartId<'_>, part: &[u8]) -> [u8; CHECKSUM] {
        let ScannedTrace { number, prompt_len, ids, .. } = id.trace;
        let mut checksum = Sha256::new();
        for field in [self.note.made_with.as_bytes(), id.producer.as_bytes(), id.settings] {
            checksum.update((field.len() as u64).to_le_bytes());
            checksum.update(field);
        }
        for number in [*number, *prompt_len, ids.len()] {
            checksum.update((number as u64).to_le_bytes());
        }
        ids.iter().for_each(|id| checksum.update(id.to_le_bytes()));
        checksum.update(part);
        checksum.finalize().into()
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

/// A part as stored: CBOR, which preserves all bits of every float.
///
/// # Errors
/// None in practice: every part can be encoded.
pub(super) fn encode<T: Serialize>(part: &T) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let written = ciborium::into_writer(part, &mut bytes);
    written.map_err(|error| Error::Request(format!("a part cannot be stored: {error}")))?;
    Ok(bytes)
}

/// A stored part; `None` if it is damaged.
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    ciborium::from_reader(bytes).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::TraceDetection;

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

    fn detection() -> TraceDetection {
        TraceDetection {
            sample_index: 0,
            prompt_len: 0,
            response_len: 2,
            full_text_len: 2,
            sinks: Vec::new(),
            other_phases: Vec::new(),
            scan: None,
        }
    }

    fn scanned<'a>(
        number: usize,
        detection: &'a TraceDetection,
        ids: &'a [u32],
    ) -> ScannedTrace<'a> {
        ScannedTrace { number, ids, prompt_len: 0, detection, reference: 0 }
    }

    fn open(run: &Path, key: &str) -> Result<Parts> {
        Parts::open(run, key, &[Analysis::Stages], &|_| false)
    }

    #[test]
    fn parts_made_with_another_key_are_removed() {
        let run = tempfile::tempdir().unwrap();
        let detection = detection();
        let of = |number| scanned(number, &detection, &[1, 2]);
        let parts = open(run.path(), "one").unwrap();
        parts.write(PartId::new("stages", &of(3)), b"part").unwrap();
        let error = open(run.path(), "one").unwrap_err().to_string();
        assert!(error.ends_with("explain: is being written by another process"), "{error}");
        drop(parts);
        let parts = open(run.path(), "one").unwrap();
        assert_eq!(parts.read(PartId::new("stages", &of(3))).as_deref(), Some(&b"part"[..]));
        assert!(
            parts.has(PartId::new("stages", &of(3))) && !parts.has(PartId::new("stages", &of(2)))
        );
        assert!(!parts.has(PartId::new("pca", &of(3))));
        drop(parts);
        let parts = open(run.path(), "another").unwrap();
        assert_eq!(parts.read(PartId::new("stages", &of(3))), None);
        parts.finish(&[Analysis::Stages]).unwrap();
        assert!(!run.path().join("explain/parts").exists());
        let nothing = Parts::open(run.path(), "another", &[], &|_| false).unwrap();
        nothing.finish(&[]).unwrap();
        assert!(!run.path().join("explain/parts").exists());
    }

    #[test]
    fn a_part_is_read_only_as_what_it_was_written() {
        let run = tempfile::tempdir().unwrap();
        let detection = detection();
        let trace = scanned(0, &detection, &[1, 2]);
        let parts = open(run.path(), "one").unwrap();
        let suppress = PartId::new("suppress", &trace);
        parts.write(suppress.with(b"layer 3"), b"part").unwrap();
        assert_eq!(parts.read(suppress.with(b"layer 3")).as_deref(), Some(&b"part"[..]));
        assert!(!parts.has(suppress), "a plain pass");
        assert!(!parts.has(suppress.with(b"layer 4")), "other settings");
        let other = scanned(0, &detection, &[1, 3]);
        let other = PartId::new("suppress", &other);
        assert!(!parts.has(other.with(b"layer 3")), "other tokens");

        let file = parts.file(suppress);
        let other = parts.file(PartId::new("neurons", &trace));
        fs::copy(&file, &other).unwrap();
        assert!(!parts.has(PartId::new("neurons", &trace).with(b"layer 3")));
        let bytes = fs::read(&file).unwrap();
        for damaged in [&bytes[..bytes.len() - 1], &bytes[..CHECKSUM], &bytes[..CHECKSUM - 1], b""]
        {
            fs::write(&file, damaged).unwrap();
            assert_eq!(parts.read(suppress.with(b"layer 3")), None);
        }
    }

    #[test]
    fn parts_stay_until_every_analysis_that_uses_them_has_its_result() {
        let run = tempfile::tempdir().unwrap();
        let detection = detection();
        let trace = scanned(0, &detection, &[1, 2]);
        let begin = |analyses: &[Analysis], done: &[Analysis]| {
            Parts::open(run.path(), "one", analyses, &|one| done.contains(&one)).unwrap()
        };
        let (suppress, neurons) = (Analysis::Suppress, Analysis::Neurons);
        let parts = begin(&[suppress, neurons], &[]);
        let all = ["suppress", "neurons", "creation"];
        all.iter().for_each(|name| parts.write(PartId::new(name, &trace), b"part").unwrap());
        drop(parts);
        let there = |parts: &Parts| all.map(|name| parts.has(PartId::new(name, &trace)));

        let parts = begin(&[neurons], &[]);
        parts.finish(&[neurons]).unwrap();
        let parts = begin(&[Analysis::Stages], &[]);
        assert_eq!(there(&parts), [true, false, true]);
        parts.finish(&[Analysis::Stages]).unwrap();
        Parts::tidy(run.path(), &|analysis| analysis == neurons);
        // `suppress` was killed after its result was stored.
        let parts = begin(&[Analysis::Stages], &[suppress]);
        assert_eq!(there(&parts), [false; 3]);
        drop(parts);
        Parts::tidy(run.path(), &|analysis| analysis == Analysis::Stages);
        assert!(!run.path().join("explain/parts").exists());
    }
}
