//! `run.json`: records what a run was made from, so that it can be repeated, and so that resuming
//! it with other inputs is refused.

use std::collections::BTreeMap;
use std::path::Path;
use std::{fs, io};

use fathom_model::{
    Error, ModelConfig, Remark, Result, RowFields, TokenizedTrace, adapted_name, data_files,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::durable;
use super::fingerprint::{AdapterNote, Fingerprints, file_sha256};
use crate::{Class, Finding, ScanOptions, TraceDetection};
use sha2::{Digest, Sha256};

/// Version of the run directory's layout.
const FORMAT: u32 = 1;

/// The manifest of a run: what was scanned, how, and whether it finished.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of the run directory's layout.
    pub format: u32,
    /// Version of Fathom.
    pub fathom: String,
    /// Whether the run finished.
    pub status: Status,
    /// The model.
    pub model: ModelNote,
    /// The traces.
    pub traces: TracesNote,
    /// The kernels that computed it. Results of different kernels agree up to rounding only.
    pub engine: String,
    /// The options of the scan.
    pub options: ScanOptions,
    /// Remarks on the model's files and the traces.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub remarks: Vec<Remark>,
    /// Totals of the sinks found, once the run is complete.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub counts: Option<Counts>,
}

/// Whether a run finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Traces are missing, or the tables have not been merged yet.
    Running,
    /// All traces and tables are written.
    Complete,
}

/// The model of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelNote {
    /// The model as the user named it: a hub id or a directory.
    pub id: String,
    /// HuggingFace class.
    pub architecture: String,
    /// Decoder layers.
    pub layers: usize,
    /// Query heads per layer.
    pub heads: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Rotary base θ.
    pub rope_base: f64,
    /// Fingerprints of the checkpoint's files.
    #[serde(flatten)]
    pub fingerprints: Fingerprints,
    /// The adapter merged into the model.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub adapter: Option<AdapterNote>,
}

/// The traces of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TracesNote {
    /// The file as the user named it.
    pub file: String,
    /// SHA-256 of the file, or over the names and digests of several files; empty for standard
    /// input.
    pub sha256: String,
    /// What was read from it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub read: Option<ReadNote>,
    /// Each time the run was resumed with more traces than before.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub grown: Vec<Growth>,
}

/// What was read from a trace file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadNote {
    /// Number of traces.
    pub traces: usize,
    /// SHA-256 over their token ids, which identifies the traces independently of the file.
    pub ids_sha256: String,
    /// Number of rows read from each combination of fields.
    pub fields: BTreeMap<String, usize>,
    /// The fields that the user named for prompt and output.
    #[serde(flatten)]
    pub named: RowFields,
    /// Skipped lines.
    #[serde(skip_serializing_if = "Skipped::is_empty", default)]
    pub skipped: Skipped,
}

/// Malformed lines that were skipped, as the user requested.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// Number of lines.
    pub count: usize,
    /// The reasons for the first thousand lines.
    pub lines: Vec<String>,
}

/// A run that was resumed with more traces, whether it was complete or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Growth {
    /// Traces before.
    pub from: usize,
    /// Traces after.
    pub to: usize,
}

impl Skipped {
    /// Adds a line; `problem` names it and the reason.
    pub fn add(&mut self, problem: String) {
        const LISTED: usize = 1000;
        self.count += 1;
        if self.lines.len() < LISTED {
            self.lines.push(problem);
        }
    }

    /// Whether no lines were skipped.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// Totals of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Traces scanned.
    pub traces: usize,
    /// Tokens scanned.
    pub tokens: usize,
    /// Primary sinks.
    pub primary: usize,
    /// Secondary sinks.
    pub secondary: usize,
    /// Tokens aligned for too few layers to count as sinks.
    pub noise: usize,
    /// Traces without a primary sink.
    pub no_primary_sink: usize,
    /// Traces too short for detection.
    pub too_short: usize,
}

impl Manifest {
    /// The manifest of a run that is about to start.
    pub fn new(
        model: ModelNote,
        traces: TracesNote,
        engine: String,
        options: ScanOptions,
    ) -> Manifest {
        Manifest {
            format: FORMAT,
            fathom: env!("CARGO_PKG_VERSION").to_owned(),
            status: Status::Running,
            model,
            traces,
            engine,
            options,
            remarks: Vec::new(),
            counts: None,
        }
    }

    /// Reads a manifest; `None` if the file does not exist.
    pub(super) fn read(path: &Path) -> Result<Option<Manifest>> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(path, "cannot be read")(error)),
        };
        let value: Value = serde_json::from_str(&text).map_err(|error| {
            let (line, column) = (error.line(), error.column());
            Error::file(path, format!("is not valid JSON (line {line}, column {column})"))
        })?;
        match value.get("format").and_then(Value::as_u64) {
            None => {
                return Err(Error::field(path, "format", "is missing: not the manifest of a run"));
            }
            Some(format) if format != u64::from(FORMAT) => {
                let problem = format!("is {format}, but this version of Fathom reads {FORMAT}");
                return Err(Error::field(path, "format", problem));
            }
            Some(_) => {}
        }
        serde_json::from_value(value)
            .map(Some)
            .map_err(|error| Error::file(path, format!("is not the manifest of a run: {error}")))
    }

    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)
            .map_err(|error| Error::file(path, format!("cannot be written: {error}")))?;
        durable::replace_bytes(path, format!("{text}\n").as_bytes())
    }

    /// Returns an error if the run was started with other inputs than those of `requested`. The
    /// names of model and traces may differ. `same_start` states that the requested traces begin
    /// with those of the run; the requested run may then have more.
    pub(super) fn check_same_run(
        &self,
        path: &Path,
        requested: &Manifest,
        same_start: bool,
    ) -> Result<()> {
        let identity = |manifest: &Manifest| {
            let mut manifest = manifest.clone();
            if same_start {
                manifest.options.limit = None;
                manifest.traces.sha256.clear();
                manifest.traces.read = None;
            }
            // Runs of early versions do not record what was read.
            if self.traces.read.is_none() {
                manifest.traces.read = None;
            }
            manifest.traces.grown.clear();
            manifest.status = Status::Running;
            manifest.counts = None;
            manifest.remarks.clear(); // derived from the other inputs
            manifest.model.id.clear();
            manifest.model.adapter.iter_mut().for_each(|adapter| adapter.path.clear());
            manifest.traces.file.clear();
            serde_json::to_value(manifest).unwrap_or_default()
        };
        match difference(&identity(self), &identity(requested)) {
            None => Ok(()),
            Some((field, there, here)) => {
                let problem =
                    format!("is {there} in this run, but {here} now: it cannot be resumed");
                Err(Error::field(path, field, problem))
            }
        }
    }
}

/// The dotted path of the first field in which two objects differ, with both values.
fn difference(there: &Value, here: &Value) -> Option<(String, Value, Value)> {
    let (Value::Object(a), Value::Object(b)) = (there, here) else {
        return (there != here).then(|| (String::new(), there.clone(), here.clone()));
    };
    let fields = a.keys().chain(b.keys());
    fields.into_iter().find_map(|field| {
        let value = |object: &serde_json::Map<String, Value>| {
            object.get(field).cloned().unwrap_or(Value::Null)
        };
        let (inner, there, here) = difference(&value(a), &value(b))?;
        let dot = if inner.is_empty() { "" } else { "." };
        Some((format!("{field}{dot}{inner}"), there, here))
    })
}

impl ModelNote {
    /// Describes the checkpoint in `dir`, which has already been loaded.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn new(id: &str, dir: &Path, config: &ModelConfig) -> Result<ModelNote> {
        Ok(ModelNote {
            id: id.to_owned(),
            architecture: config.architecture.to_string(),
            layers: config.layers,
            heads: config.heads,
            hidden: config.hidden,
            rope_base: config.rope.theta,
            fingerprints: Fingerprints::of(dir)?,
            adapter: None,
        })
    }

    /// Adds the adapter in `dir`, which the user named `path`.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn with_adapter(self, path: &str, dir: &Path) -> Result<ModelNote> {
        Ok(ModelNote { adapter: Some(AdapterNote::new(path, dir)?), ..self })
    }

    /// The model's name in tables: its id, followed by a plus and the last part of the adapter's
    /// name if there is an adapter.
    pub fn name(&self) -> String {
        self.name_of(&self.id)
    }

    /// The model's name in tables if the base model is named `base`.
    pub fn name_of(&self, base: &str) -> String {
        adapted_name(base, self.adapter.as_ref().map(|adapter| adapter.path.as_str()))
    }
}

impl TracesNote {
    /// Hashes the traces file, or the files that a directory or pattern matches.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn new(path: &Path) -> Result<TracesNote> {
        let sha256 = match data_files(path)?.as_deref() {
            None => String::new(),
            Some([one]) => file_sha256(one)?,
            Some(several) => {
                let mut hasher = Sha256::new();
                for file in several {
                    let name = file.file_name().unwrap_or_default().to_string_lossy();
                    hasher.update(format!("{name} {}\n", file_sha256(file)?));
                }
                format!("{:x}", hasher.finalize())
            }
        };
        let file = path.display().to_string();
        Ok(TracesNote { file, sha256, read: None, grown: Vec::new() })
    }
}

/// SHA-256 over the traces' token ids, prompt lengths and sample indices.
pub fn ids_sha256(traces: &[TokenizedTrace]) -> String {
    let mut hasher = Sha256::new();
    for trace in traces {
        let head = [trace.index, trace.prompt_len as u64, trace.ids.len() as u64];
        head.iter().for_each(|number| hasher.update(number.to_le_bytes()));
        trace.ids.iter().for_each(|id| hasher.update(id.to_le_bytes()));
    }
    format!("{:x}", hasher.finalize())
}

impl Counts {
    /// Totals over the traces of a run.
    pub fn new(traces: &[TraceDetection]) -> Counts {
        let of_class = |class| traces.iter().map(|trace| trace.of_class(class).count()).sum();
        let with_finding = |finding| {
            let found =
                |trace: &&TraceDetection| trace.scan.is_some_and(|note| note.finding == finding);
            traces.iter().filter(found).count()
        };
        Counts {
            traces: traces.len(),
            tokens: traces.iter().filter_map(|trace| trace.scan).map(|note| note.tokens).sum(),
            primary: of_class(Class::Primary),
            secondary: of_class(Class::Secondary),
            noise: of_class(Class::Noise),
            no_primary_sink: with_finding(Finding::NoPrimarySink),
            too_short: with_finding(Finding::TooShort),
        }
    }
}
