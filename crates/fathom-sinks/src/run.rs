//! Run directories: what a scan leaves behind.
//!
//! ```text
//! RUN/run.json           what was scanned, how, and how far it got
//! RUN/detections.jsonl   one trace a line
//! RUN/sinks.parquet      a row a sink
//! RUN/norms.parquet      hidden, key and value norms per layer of each sink and of the average token
//! RUN/tokens.parquet     the tokens that were scanned, with their texts
//! RUN/scores.parquet     sink scores per layer and token, where attention was measured
//! ```
//!
//! A scan writes trace by trace: first the trace's rows as small parquet files under `RUN/parts`,
//! then its line in `detections.jsonl`, each durable before the next. The line commits the trace.
//! At the end the parts become the parquet files above. Whenever the process dies,
//! [`RunWriter::resume`] goes on from there and ends with the same bytes.

pub(crate) mod durable;
mod fingerprint;
mod manifest;
mod merge;
mod read;
mod rows;
mod writer;

use std::path::{Path, PathBuf};

use fathom_model::{Error, Result};

pub use durable::replace_bytes;
pub use fingerprint::{AdapterNote, Fingerprints};
pub use manifest::{
    Counts, Growth, Manifest, ModelNote, ReadNote, Skipped, Status, TracesNote, ids_sha256,
};
pub use read::{NormRow, TraceText};
pub use rows::{LayerScores, TraceScores};
pub use writer::{RunWriter, TraceResult};

use crate::{Phases, TraceDetection, read_detections};

pub(crate) const MANIFEST: &str = "run.json";
pub(crate) const DETECTIONS: &str = "detections.jsonl";
pub(crate) const PARTS: &str = "parts";

/// The tables a run writes beside its detections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunTable {
    /// A row a sink.
    Sinks,
    /// A row a (trace, sink or average, layer).
    Norms,
    /// A row a (trace, position). Runs of versions before the report have none.
    Tokens,
    /// A row a (trace, layer, position).
    Scores,
}

impl RunTable {
    /// The tables of a run, with or without attention.
    pub(crate) fn all(attention: bool) -> &'static [RunTable] {
        let all = &[RunTable::Sinks, RunTable::Norms, RunTable::Tokens, RunTable::Scores];
        if attention { all } else { &all[..3] }
    }

    /// The table's name: `{name}.parquet` in the run.
    pub fn name(self) -> &'static str {
        match self {
            RunTable::Sinks => "sinks",
            RunTable::Norms => "norms",
            RunTable::Tokens => "tokens",
            RunTable::Scores => "scores",
        }
    }
}

/// A run.
#[derive(Clone, Debug)]
pub struct Run {
    dir: PathBuf,
    manifest: Manifest,
}

impl Run {
    /// Opens a finished run.
    ///
    /// # Errors
    /// A directory that holds no run, one of another version of the format, or one that did not
    /// finish.
    pub fn open(dir: &Path) -> Result<Run> {
        let run = Run::open_unfinished(dir)?;
        if !run.is_complete() {
            let problem = "is `running`: the scan did not finish, give it `--resume`";
            return Err(Error::field(&dir.join(MANIFEST), "status", problem));
        }
        Ok(run)
    }

    /// Opens a run that may not have finished: what it recorded so far can be read.
    ///
    /// # Errors
    /// A file, a directory that holds no run, or one of another version of the format.
    pub fn open_unfinished(dir: &Path) -> Result<Run> {
        if dir.is_file() {
            let problem = "is a file, expected the directory of a run (`fathom table --detections` reads \
                           detections from a file)";
            return Err(Error::file(dir, problem));
        }
        let Some(manifest) = Manifest::read(&dir.join(MANIFEST))? else {
            return Err(Error::file(dir, format!("holds no run: there is no {MANIFEST}")));
        };
        Ok(Run { dir: dir.to_owned(), manifest })
    }

    /// Whether the scan finished.
    pub fn is_complete(&self) -> bool {
        self.manifest.status == Status::Complete
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What was scanned, and how.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The sinks, trace by trace, of the phases that the scan was asked to count.
    ///
    /// # Errors
    /// As [`Run::detections_of`].
    pub fn detections(&self) -> Result<Vec<TraceDetection>> {
        self.detections_of(self.manifest.options.phases)
    }

    /// The sinks, trace by trace, of the phases that are to count.
    ///
    /// # Errors
    /// A detections file that is missing, damaged, or holds fewer or more traces than the manifest
    /// says.
    pub fn detections_of(&self, phases: Phases) -> Result<Vec<TraceDetection>> {
        let traces = self.recorded()?;
        Ok(traces.into_iter().map(|trace| trace.counting(phases)).collect())
    }

    /// The lines of the detections file.
    fn recorded(&self) -> Result<Vec<TraceDetection>> {
        let path = self.dir.join(DETECTIONS);
        if !self.is_complete() {
            return self.recorded_detections(&path);
        }
        let traces = read_detections(&path)?;
        let expected = self.manifest.counts.map_or(0, |counts| counts.traces);
        if traces.len() != expected {
            let found = traces.len();
            let problem = format!("holds {found} traces, but {MANIFEST} says {expected}");
            return Err(Error::file(&path, problem));
        }
        Ok(traces)
    }

    /// Where a table lies; `None` for the scores of a run that did not measure attention.
    pub fn table(&self, table: RunTable) -> Option<PathBuf> {
        let written = RunTable::all(self.manifest.options.attention).contains(&table);
        written.then(|| self.dir.join(format!("{}.parquet", table.name())))
    }
}
