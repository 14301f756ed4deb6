//! Run directories: the output of a scan.
//!
//! ```text
//! RUN/run.json           what was scanned, how, and whether it finished
//! RUN/detections.jsonl   one trace per line
//! RUN/sinks.parquet      one row per sink
//! RUN/norms.parquet      hidden, key and value norms per layer, of each sink and the average token
//! RUN/tokens.parquet     the scanned tokens with their texts
//! RUN/measures.parquet   the tokens and layers at which one of the four measures holds
//! RUN/scores.parquet     sink scores per layer and token, if attention was measured
//! ```
//!
//! A scan writes trace by trace: first the trace's rows, as small parquet files in `RUN/parts`,
//! then its line in `detections.jsonl`. Each is made durable before the next, and the line commits
//! the trace. At the end the part files are merged into the parquet files above. If the process
//! dies at any time, [`RunWriter::resume`] continues from there and produces the same bytes.

pub(crate) mod durable;
mod fingerprint;
mod manifest;
mod measures;
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
pub use measures::MeasureRow;
pub use read::{NormRow, TraceText};
pub use rows::{LayerScores, TraceScores};
pub use writer::{RunWriter, TraceResult};

use crate::{Phases, TraceDetection, read_detections};

pub(crate) const MANIFEST: &str = "run.json";
pub(crate) const DETECTIONS: &str = "detections.jsonl";
pub(crate) const PARTS: &str = "parts";

/// The tables that a run writes in addition to its detections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunTable {
    /// One row per sink.
    Sinks,
    /// One row per (trace, sink or average token, layer).
    Norms,
    /// One row per (trace, position). Absent in runs of early versions.
    Tokens,
    /// One row per (trace, position, layer) at which one of the four measures holds. Absent in runs
    /// of early versions.
    Measures,
    /// One row per (trace, layer, position).
    Scores,
}

impl RunTable {
    /// All tables; the scores are last.
    pub const ALL: [RunTable; 5] =
        [RunTable::Sinks, RunTable::Norms, RunTable::Tokens, RunTable::Measures, RunTable::Scores];

    /// The tables of a run with or without attention.
    pub(crate) fn all(attention: bool) -> &'static [RunTable] {
        let all = &RunTable::ALL;
        if attention { all } else { &all[..4] }
    }

    /// The table's name; its file is `{name}.parquet`.
    pub fn name(self) -> &'static str {
        match self {
            RunTable::Sinks => "sinks",
            RunTable::Norms => "norms",
            RunTable::Tokens => "tokens",
            RunTable::Measures => "measures",
            RunTable::Scores => "scores",
        }
    }
}

/// A run directory.
#[derive(Clone, Debug)]
pub struct RunDir {
    dir: PathBuf,
    manifest: Manifest,
}

impl RunDir {
    /// Opens a finished run.
    ///
    /// # Errors
    /// The directory holds no run, or the run has another format version or did not finish.
    pub fn open(dir: &Path) -> Result<RunDir> {
        let run = RunDir::open_unfinished(dir)?;
        if !run.is_complete() {
            let problem = "is `running`: the scan did not finish; finish it with `--resume`";
            return Err(Error::field(&dir.join(MANIFEST), "status", problem));
        }
        Ok(run)
    }

    /// Opens a run that may not have finished, to read what it has recorded so far.
    ///
    /// # Errors
    /// `dir` is a file or holds no run, or the run has another format version.
    pub fn open_unfinished(dir: &Path) -> Result<RunDir> {
        if dir.is_file() {
            let problem = "is a file, expected the directory of a run \
                           (`fathom table --detections` reads detections from a file)";
            return Err(Error::file(dir, problem));
        }
        let Some(manifest) = Manifest::read(&dir.join(MANIFEST))? else {
            return Err(Error::file(dir, format!("holds no run: there is no {MANIFEST}")));
        };
        Ok(RunDir { dir: dir.to_owned(), manifest })
    }

    /// Whether the scan finished.
    pub fn is_complete(&self) -> bool {
        self.manifest.status == Status::Complete
    }

    /// The run directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The manifest: what was scanned, and how.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The sinks of each trace, in the phases chosen for the scan.
    ///
    /// # Errors
    /// As [`RunDir::detections_of`].
    pub fn detections(&self) -> Result<Vec<TraceDetection>> {
        self.detections_of(self.manifest.options.phases)
    }

    /// The sinks of each trace, in the given phases.
    ///
    /// # Errors
    /// The detections file is missing or damaged, or its number of traces differs from the
    /// manifest's.
    pub fn detections_of(&self, phases: Phases) -> Result<Vec<TraceDetection>> {
        let traces = self.recorded()?;
        Ok(traces.into_iter().map(|trace| trace.with_phases(phases)).collect())
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

    /// Path of a table; `None` for the scores of a run without attention.
    pub fn table(&self, table: RunTable) -> Option<PathBuf> {
        let written = RunTable::all(self.manifest.options.attention).contains(&table);
        written.then(|| self.dir.join(format!("{}.parquet", table.name())))
    }
}
