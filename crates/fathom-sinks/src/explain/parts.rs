//! `RUN/explain/parts/`: what has been learnt of single traces while an explanation is under way,
//! so that one that was killed goes on where it stopped.
//!
//! What is asked for next may be something else. So a part is written only by who learnt it, it is
//! believed only where its seal says that it is this learner's, of this trace, and made with the
//! same, and it stays until every analysis that was begun and could use it has its result.

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use fathom_model::{Error, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Analysis;
use super::subjects::Subject;
use crate::run::durable;

/// Version of the parts' layout.
pub(super) const FORMAT: u32 = 2;
/// What says with what the parts of a directory were made, and for which analyses.
const NOTE: &str = "made-with";
/// Bytes of a part's seal, which stands before what was learnt.
const SEAL: usize = 32;

/// Who learns of traces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Learner {
    /// An analysis, for itself alone.
    For(Analysis),
    /// [`super::creation::CreationObserver`]
    Creation,
    /// [`super::neurons::HeadObserver`]
    Heads,
}

impl Learner {
    fn name(self) -> &'static str {
        match self {
            Learner::For(analysis) => analysis.name(),
            Learner::Creation => "creation",
            Learner::Heads => "heads",
        }
    }

    /// Whose file this is, if it is a part.
    fn of_file(name: &str) -> Option<Learner> {
        let (learner, _) = name.split_once('-')?;
        let all = Analysis::ALL.map(Learner::For).into_iter();
        all.chain([Learner::Creation, Learner::Heads]).find(|any| any.name() == learner)
    }

    /// Whether an analysis uses what it learns.
    fn serves(self, analysis: Analysis) -> bool {
        match self {
            Learner::For(own) => own == analysis,
            Learner::Creation => matches!(analysis, Analysis::Suppress | Analysis::Neurons),
            Learner::Heads => analysis == Analysis::Neurons,
        }
    }

    /// What it learns of a trace in a plain pass.
    pub fn of<'a>(self, subject: &'a Subject<'a>) -> PartId<'a> {
        PartId { learner: self, subject, changes: &[] }
    }
}

/// Which part: who learnt it, of which trace, and in which pass.
#[derive(Clone, Copy)]
pub(super) struct PartId<'a> {
    learner: Learner,
    subject: &'a Subject<'a>,
    changes: &'a [u8],
}

impl<'a> PartId<'a> {
    /// The same of a pass with something changed.
    pub fn with(self, changes: &'a [u8]) -> PartId<'a> {
        PartId { changes, ..self }
    }
}

/// The parts of one run.
#[derive(Debug)]
pub(super) struct Parts {
    dir: PathBuf,
    note: Note,
    /// The directory above, locked: two processes must not explain one run.
    _lock: File,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Note {
    /// What every part depends on.
    made_with: String,
    /// Analyses that were begun and have no result yet.
    under_way: BTreeSet<Analysis>,
}

impl Note {
    /// `None` where there is none that could be read.
    fn read(dir: &Path) -> Option<Note> {
        serde_json::from_slice(&fs::read(dir.join(NOTE)).ok()?).ok()
    }
}

impl Parts {
    /// The parts of the run in `run_dir` that were made with `key`, for `analyses` that now begin;
    /// those made with anything else go, and those of use only to analyses that `have_result`.
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
                Note { made_with: key.to_owned(), under_way: BTreeSet::new() }
            }
        };
        note.under_way.retain(|analysis| !have_result(*analysis));
        note.under_way.extend(analyses);
        let parts = Parts { dir, note, _lock };
        parts.keep_what_serves()?;
        Ok(parts)
    }

    /// What was learnt; `None` where that is not, or not wholly, there.
    pub fn read(&self, id: PartId<'_>) -> Option<Vec<u8>> {
        let mut part = fs::read(self.file(id)).ok()?;
        let seal = part.get(..SEAL)?.to_vec();
        part.drain(..SEAL);
        (seal == self.seal(id, &part)).then_some(part)
    }

    /// Whether [`Parts::read`] finds anything.
    pub fn has(&self, id: PartId<'_>) -> bool {
        self.read(id).is_some()
    }

    /// Keeps what was learnt.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn write(&self, id: PartId<'_>, part: &[u8]) -> Result<()> {
        let sealed = [self.seal(id, part).as_slice(), part].concat();
        durable::replace_bytes(&self.file(id), &sealed)
    }

    /// These analyses have their results: drops what was kept for them alone.
    ///
    /// # Errors
    /// A directory that cannot be written.
    pub fn finish(mut self, analyses: &[Analysis]) -> Result<()> {
        self.note.under_way.retain(|analysis| !analyses.contains(analysis));
        self.keep_what_serves()
    }

    /// Drops the parts of a run where all they were kept for `have_result`: those of an explanation
    /// that was killed at its very end. Best effort: nothing depends on it.
    pub fn tidy(run_dir: &Path, have_result: &dyn Fn(Analysis) -> bool) {
        let explain = run_dir.join("explain");
        let dir = explain.join("parts");
        let (true, Ok(_lock)) = (dir.exists(), lock(&explain)) else { return };
        let under_way = Note::read(&dir).unwrap_or_default().under_way;
        if under_way.into_iter().all(have_result) {
            drop(fs::remove_dir_all(&dir));
        }
    }

    /// Notes what is under way and drops what serves nothing of it.
    fn keep_what_serves(&self) -> Result<()> {
        let Parts { dir, note, .. } = self;
        if note.under_way.is_empty() {
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
            let serves = |learner: Learner| note.under_way.iter().any(|one| learner.serves(*one));
            if Learner::of_file(&name).is_some_and(|learner| !serves(learner)) {
                fs::remove_file(&path).map_err(Error::io(&path, "cannot be removed"))?;
            }
        }
        Ok(())
    }

    fn file(&self, id: PartId<'_>) -> PathBuf {
        self.dir.join(format!("{}-{}.cbor", id.learner.name(), id.subject.number))
    }

    /// SHA-256 of all that makes a part what it is, and of the part.
    fn seal(&self, id: PartId<'_>, part: &[u8]) -> [u8; SEAL] {
        let Subject { number, prompt_len, ids, .. } = id.subject;
        let mut seal = Sha256::new();
        for field in [self.note.made_with.as_bytes(), id.learner.name().as_bytes(), id.changes] {
            seal.update((field.len() as u64).to_le_bytes());
            seal.update(field);
        }
        for number in [*number, *prompt_len, ids.len()] {
            seal.update((number as u64).to_le_bytes());
        }
        ids.iter().for_each(|id| seal.update(id.to_le_bytes()));
        seal.update(part);
        seal.finalize().into()
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

    const STAGES: Learner = Learner::For(Analysis::Stages);

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

    fn subject<'a>(number: usize, detection: &'a TraceDetection, ids: &'a [u32]) -> Subject<'a> {
        Subject { number, ids, prompt_len: 0, detection, reference: 0 }
    }

    fn open(run: &Path, key: &str) -> Result<Parts> {
        Parts::open(run, key, &[Analysis::Stages], &|_| false)
    }

    #[test]
    fn parts_of_something_else_go() {
        let run = tempfile::tempdir().unwrap();
        let detection = detection();
        let of = |number| subject(number, &detection, &[1, 2]);
        let parts = open(run.path(), "one").unwrap();
        parts.write(STAGES.of(&of(3)), b"part").unwrap();
        let error = open(run.path(), "one").unwrap_err().to_string();
        assert!(error.ends_with("explain: is being written by another process"), "{error}");
        drop(parts);
        let parts = open(run.path(), "one").unwrap();
        assert_eq!(parts.read(STAGES.of(&of(3))).as_deref(), Some(&b"part"[..]));
        assert!(parts.has(STAGES.of(&of(3))) && !parts.has(STAGES.of(&of(2))));
        assert!(!parts.has(Learner::For(Analysis::Pca).of(&of(3))));
        drop(parts);
        let parts = open(run.path(), "another").unwrap();
        assert_eq!(parts.read(STAGES.of(&of(3))), None);
        parts.finish(&[Analysis::Stages]).unwrap();
        assert!(!run.path().join("explain/parts").exists());
        let nothing = Parts::open(run.path(), "another", &[], &|_| false).unwrap();
        nothing.finish(&[]).unwrap();
        assert!(!run.path().join("explain/parts").exists());
    }

    #[test]
    fn a_part_is_believed_only_as_what_it_was_written() {
        let run = tempfile::tempdir().unwrap();
        let detection = detection();
        let trace = subject(0, &detection, &[1, 2]);
        let parts = open(run.path(), "one").unwrap();
        let suppress = Learner::For(Analysis::Suppress).of(&trace);
        parts.write(suppress.with(b"layer 3"), b"part").unwrap();
        assert_eq!(parts.read(suppress.with(b"layer 3")).as_deref(), Some(&b"part"[..]));
        assert!(!parts.has(suppress), "a plain pass");
        assert!(!parts.has(suppress.with(b"layer 4")), "another change");
        let other = subject(0, &detection, &[1, 3]);
        let other = Learner::For(Analysis::Suppress).of(&other);
        assert!(!parts.has(other.with(b"layer 3")), "other tokens");

        let file = parts.file(suppress);
        let other = parts.file(Learner::For(Analysis::Neurons).of(&trace));
        fs::copy(&file, &other).unwrap();
        assert!(!parts.has(Learner::For(Analysis::Neurons).of(&trace).with(b"layer 3")));
        let bytes = fs::read(&file).unwrap();
        for damaged in [&bytes[..bytes.len() - 1], &bytes[..SEAL], &bytes[..SEAL - 1], b""] {
            fs::write(&file, damaged).unwrap();
            assert_eq!(parts.read(suppress.with(b"layer 3")), None);
        }
    }

    #[test]
    fn parts_stay_until_all_they_serve_is_there() {
        let run = tempfile::tempdir().unwrap();
        let detection = detection();
        let trace = subject(0, &detection, &[1, 2]);
        let begin = |analyses: &[Analysis], done: &[Analysis]| {
            Parts::open(run.path(), "one", analyses, &|one| done.contains(&one)).unwrap()
        };
        let (suppress, neurons) = (Analysis::Suppress, Analysis::Neurons);
        let parts = begin(&[suppress, neurons], &[]);
        let all = [Learner::For(suppress), Learner::For(neurons), Learner::Creation];
        all.iter().for_each(|learner| parts.write(learner.of(&trace), b"part").unwrap());
        drop(parts);
        let there = |parts: &Parts| all.map(|learner| parts.has(learner.of(&trace)));

        let parts = begin(&[neurons], &[]);
        parts.finish(&[neurons]).unwrap();
        let parts = begin(&[Analysis::Stages], &[]);
        assert_eq!(there(&parts), [true, false, true]);
        parts.finish(&[Analysis::Stages]).unwrap();
        Parts::tidy(run.path(), &|analysis| analysis == neurons);
        // `suppress` was killed when its result was there.
        let parts = begin(&[Analysis::Stages], &[suppress]);
        assert_eq!(there(&parts), [false; 3]);
        drop(parts);
        Parts::tidy(run.path(), &|analysis| analysis == Analysis::Stages);
        assert!(!run.path().join("explain/parts").exists());
    }
}
