//! Writing a run, and resuming an interrupted one.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Seek, Write};
use std::path::{Path, PathBuf};

use fathom_model::{Error, Result, TokenizedTrace};

use super::manifest::{Growth, TracesNote, ids_sha256};
use super::merge::{merge, part, split};
use super::rows::{TableWriter, TraceId};
use super::{
    Counts, DETECTIONS, MANIFEST, Manifest, PARTS, RunDir, RunTable, Status, TraceScores, durable,
};
use crate::{NormCurves, TokenMeasures, TraceDetection, read_detections};

/// The scan result of one trace.
#[derive(Clone, Copy, Debug)]
pub struct TraceResult<'a> {
    /// Its sinks.
    pub detection: &'a TraceDetection,
    /// Norms of its sinks and of its average token.
    pub curves: &'a NormCurves,
    /// The tokens and layers at which one of the four measures holds.
    pub measures: &'a [TokenMeasures],
    /// Its sink scores, if attention is measured.
    pub scores: Option<&'a TraceScores>,
    /// The tokens that were scanned.
    pub ids: &'a [u32],
    /// Texts of token ids, where known; includes at least the ids of the trace.
    pub texts: &'a BTreeMap<u32, String>,
}

/// A run that is being written. If it is dropped at any time, the run can be resumed.
#[derive(Debug)]
pub struct RunWriter {
    dir: PathBuf,
    manifest: Manifest,
    /// Kept open and locked, so that no other process writes the run.
    detections: File,
    traces: usize,
}

impl RunWriter {
    /// Starts a run in `dir`, which must be empty or not exist.
    ///
    /// # Errors
    /// The directory is not empty or cannot be written.
    pub fn create(dir: &Path, manifest: Manifest) -> Result<RunWriter> {
        RunWriter::check_free(dir)?;
        RunWriter::start(dir, manifest)
    }

    /// Checks that [`RunWriter::create`] could start a run in `dir`, before a model is loaded.
    ///
    /// # Errors
    /// The directory is not empty or cannot be read.
    pub fn check_free(dir: &Path) -> Result<()> {
        let mut entries = match fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(Error::io(dir, "cannot be used as a run directory")(error)),
        };
        if entries.next().is_none() {
            return Ok(());
        }
        let problem = match dir.join(MANIFEST).exists() || only_temporary_manifest(dir)? {
            true => "already holds a run: give another directory, or `--resume` to continue it",
            false => "is not empty and holds no run: give another directory",
        };
        Err(Error::file(dir, problem))
    }

    /// Resumes the run in `dir`, or starts it if its manifest was never written.
    ///
    /// # Errors
    /// The directory holds something else; the run has another model, traces, version or options;
    /// another process is writing it; or it is damaged in a way that an interruption cannot
    /// explain.
    pub fn resume(dir: &Path, manifest: Manifest) -> Result<RunWriter> {
        RunWriter::resume_with(dir, manifest, &[])
    }

    /// Like [`RunWriter::resume`], but also accepts more `traces` than the run was started with,
    /// because its limit was raised or lines were appended. The run's traces must be the first
    /// ones.
    ///
    /// # Errors
    /// As [`RunWriter::resume`].
    pub fn resume_with(
        dir: &Path,
        manifest: Manifest,
        traces: &[TokenizedTrace],
    ) -> Result<RunWriter> {
        let path = dir.join(MANIFEST);
        let Some(existing) = Manifest::read(&path)? else {
            if dir.exists() && !only_temporary_manifest(dir)? {
                let problem =
                    format!("is not empty and holds no {MANIFEST}: there is no run to resume");
                return Err(Error::file(dir, problem));
            }
            return RunWriter::start(dir, manifest);
        };
        // Compare the traces themselves, because lines may have been appended to the file.
        let before = existing.traces.read.as_ref().map_or(0, |read| read.traces);
        let same_start = existing.traces.read.as_ref().is_some_and(|read| {
            traces.get(..before).is_some_and(|first| read.ids_sha256 == ids_sha256(first))
        });
        existing.check_same_run(&path, &manifest, same_start)?;
        let detections = lock(&dir.join(DETECTIONS))?;
        let mut writer =
            RunWriter { dir: dir.to_owned(), manifest: existing, detections, traces: 0 };
        if same_start && before < traces.len() {
            writer.grow(manifest)?;
        }
        if writer.is_complete() {
            writer.traces = writer.manifest.counts.map_or(0, |counts| counts.traces);
            writer.remove_parts()?;
        } else {
            writer.recover()?;
        }
        Ok(writer)
    }

    /// Reopens the run for more traces. The tables of a complete run are split into part files
    /// again, so that the final tables have the bytes of a run with all traces from the start.
    fn grow(&mut self, requested: Manifest) -> Result<()> {
        let traces = |note: &TracesNote| note.read.as_ref().map_or(0, |read| read.traces);
        let growth = Growth { from: traces(&self.manifest.traces), to: traces(&requested.traces) };
        if self.is_complete() {
            let done = self.manifest.counts.map_or(0, |counts| counts.traces);
            let parts = self.dir.join(PARTS);
            fs::create_dir_all(&parts).map_err(Error::io(&parts, "cannot be created"))?;
            let tables = RunTable::all(self.manifest.options.attention);
            let path = |table: &RunTable| self.dir.join(format!("{}.parquet", table.name()));
            if let Some(missing) = tables.iter().map(path).find(|path| !path.exists()) {
                let problem = "does not exist, so the run cannot get more traces (runs of earlier \
                               versions do not have it): scan all traces into another directory";
                return Err(Error::file(&missing, problem));
            }
            for table in tables {
                split(&self.dir, *table, done)?;
            }
        }
        let mut grown = std::mem::take(&mut self.manifest.traces.grown);
        grown.push(growth);
        self.manifest.traces = TracesNote { grown, ..requested.traces };
        self.manifest.options.limit = requested.options.limit;
        self.manifest.remarks = requested.remarks;
        self.manifest.counts = None;
        self.manifest.status = Status::Running;
        self.manifest.write(&self.dir.join(MANIFEST))
    }

    fn start(dir: &Path, manifest: Manifest) -> Result<RunWriter> {
        fs::create_dir_all(dir).map_err(Error::io(dir, "cannot be created"))?;
        durable::sync_parent(dir)?;
        manifest.write(&dir.join(MANIFEST))?;
        let mut writer = RunWriter {
            dir: dir.to_owned(),
            manifest,
            detections: lock(&dir.join(DETECTIONS))?,
            traces: 0,
        };
        writer.recover()?;
        Ok(writer)
    }

    /// Keeps the traces whose line and part files are complete, and drops everything after them.
    fn recover(&mut self) -> Result<()> {
        let parts = self.dir.join(PARTS);
        fs::create_dir_all(&parts).map_err(Error::io(&parts, "cannot be created"))?;

        let path = self.dir.join(DETECTIONS);
        let bytes = fs::read(&path).map_err(Error::io(&path, "cannot be read"))?;
        let mut kept = 0;
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            let tables = RunTable::all(self.manifest.options.attention);
            let whole = line.ends_with(b"\n")
                && tables.iter().all(|table| part(&self.dir, *table, self.traces).exists());
            if !whole {
                break;
            }
            let text = std::str::from_utf8(line)
                .map_err(|_| Error::line(&path, self.traces + 1, "is not UTF-8 text"))?;
            TraceDetection::parse(&path, self.traces + 1, text)?;
            kept += line.len();
            self.traces += 1;
        }
        let file = &mut self.detections;
        file.set_len(kept as u64)
            .and_then(|()| file.seek(io::SeekFrom::End(0)))
            .and_then(|_| file.sync_all())
            .map_err(Error::io(&path, "cannot be written"))?;
        durable::sync_dir(&self.dir)
    }

    /// Number of traces already recorded, which are the first ones of the run.
    pub fn recorded(&self) -> usize {
        self.traces
    }

    /// Whether the run is complete.
    pub fn is_complete(&self) -> bool {
        self.manifest.status == Status::Complete
    }

    /// The manifest: what is being scanned, and how.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Records the next trace. Once this returns, the trace is durable.
    ///
    /// # Errors
    /// The disk is full or gone. The trace is then not recorded, and the run can be resumed.
    pub fn record(&mut self, result: &TraceResult<'_>) -> Result<()> {
        let TraceResult { detection, curves, measures, scores, ids, texts } = *result;
        let trace = u32::try_from(self.traces).unwrap_or(u32::MAX);
        let id = TraceId { trace, sample_index: detection.sample_index };
        let counted = detection.clone().with_phases(self.manifest.options.phases);
        for table in RunTable::all(self.manifest.options.attention) {
            let path = part(&self.dir, *table, self.traces);
            durable::replace(&path, |file| {
                let mut writer = TableWriter::new(*table, file, &path)?;
                match table {
                    RunTable::Sinks => writer.sinks(id, &counted)?,
                    RunTable::Norms => writer.norms(id, curves)?,
                    RunTable::Tokens => writer.tokens(id, ids, texts)?,
                    RunTable::Measures => writer.measures(id, measures, ids, texts)?,
                    RunTable::Scores => {
                        writer.scores(id, scores.unwrap_or(&TraceScores::default()))?
                    }
                }
                writer.finish()
            })?;
        }
        let line = detection.to_json() + "\n";
        let written = self.detections.write_all(line.as_bytes());
        written
            .and_then(|()| self.detections.sync_data())
            .map_err(Error::io(&self.dir.join(DETECTIONS), "cannot be written"))?;
        self.traces += 1;
        Ok(())
    }

    /// Merges the tables and marks the run complete.
    ///
    /// # Errors
    /// The disk is full or gone (the run can be resumed), or no trace was recorded.
    pub fn finish(mut self) -> Result<RunDir> {
        if !self.is_complete() {
            for table in RunTable::all(self.manifest.options.attention) {
                merge(&self.dir, *table, self.traces)?;
            }
            let detections = read_detections(&self.dir.join(DETECTIONS))?.into_iter();
            let phases = self.manifest.options.phases;
            let counted: Vec<_> = detections.map(|trace| trace.with_phases(phases)).collect();
            self.manifest.counts = Some(Counts::new(&counted));
            self.manifest.status = Status::Complete;
            self.manifest.write(&self.dir.join(MANIFEST))?;
            self.remove_parts()?;
        }
        RunDir::open(&self.dir)
    }

    fn remove_parts(&self) -> Result<()> {
        let parts = self.dir.join(PARTS);
        match fs::remove_dir_all(&parts) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::io(&parts, "cannot be removed")(error))
            }
            _ => durable::sync_dir(&self.dir),
        }
    }
}

/// Whether a directory is empty except for a temporary manifest.
fn only_temporary_manifest(dir: &Path) -> Result<bool> {
    let temporary = durable::temporary(&dir.join(MANIFEST));
    for entry in fs::read_dir(dir).map_err(Error::io(dir, "cannot be read"))? {
        if entry.map_err(Error::io(dir, "cannot be read"))?.path() != temporary {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Opens the detections for writing, with an exclusive lock.
fn lock(path: &Path) -> Result<File> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
    let file = file.map_err(Error::io(path, "cannot be opened for writing"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(Error::file(path, "is being written by another process"))
        }
        Err(TryLockError::Error(error)) => Err(Error::io(path, "cannot be locked")(error)),
    }
}
