//! `run.json`: enough to repeat the run, and to refuse to mix it with another.

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

/// What was scanned, how, and how far it got.
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
    /// Which kernels computed it: results of different ones agree, but not in every bit.
    pub engine: String,
    /// How sinks were looked for.
    pub options: ScanOptions,
    /// What was remarkable about the model's files and the traces.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub remarks: Vec<Remark>,
    /// What was found, once the run is complete.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub counts: Option<Counts>,
}

/// How far a run got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Traces are still missing, or the tables have not been put together.
    Running,
    /// All is there.
    Complete,
}

/// The model of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelNote {
    /// What the user calls it: a hub id or a directory.
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
    /// What the checkpoint consists of.
    #[serde(flatten)]
    pub fingerprints: Fingerprints,
    /// The adapter that was merged into it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub adapter: Option<AdapterNote>,
}

/// The traces of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TracesNote {
    /// The file as the user named it.
    pub file: String,
    /// SHA-256 of the file, or over the names and digests of several; empty for standard input.
    pub sha256: String,
    /// What was read of it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub read: Option<ReadNote>,
    /// Where the run was continued with more traces than before.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub grown: Vec<Growth>,
}

/// What was read of a trace file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadNote {
    /// Traces.
    pub traces: usize,
    /// SHA-256 over their token ids: which traces they are, whatever file they are in.
    pub ids_sha256: String,
    /// How many rows were read from which fields.
    pub fields: BTreeMap<String, usize>,
    /// Where prompt and output were said to be.
    #[serde(flatten)]
    pub named: RowFields,
    /// Lines that were passed over.
    #[serde(skip_serializing_if = "Skipped::is_empty", default)]
    pub skipped: Skipped,
}

/// Lines that could not be read and were passed over, as asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// How many.
    pub count: usize,
    /// Why, for each of the first thousand.
    pub lines: Vec<String>,
}

/// A run that was complete, or under way, and went on with more traces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Growth {
    /// Traces before.
    pub from: usize,
    /// Traces after.
    pub to: usize,
}

impl Skipped {
    /// Counts a line; `problem` names it.
    pub fn add(&mut self, problem: String) {
        const LISTED: usize = 1000;
        self.count += 1;
        if self.lines.len() < LISTED {
            self.lines.push(problem);
        }
    }

    /// Whether there were none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// What a run found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Traces scanned.
    pub traces: usize,
    /// Tokens that went through the model.
    pub tokens: usize,
    /// Primary sinks.
    pub primary: usize,
    /// Secondary sinks.
    pub secondary: usize,
    /// Tokens aligned too briefly to count.
    pub noise: usize,
    /// Traces without a primary sink.
    pub no_primary_sink: usize,
    /// Traces too short to tell.
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

    /// Reads a manifest; `None` where there is none.
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

    /// Refuses to go on with a run that was started with something else. What the model and the
    /// traces are called may change; and with `same_start`, where the traces begin as those of the
    /// run, what follows them.
    pub(super) fn check_same_run(
        &self,
        path: &Path,
        asked: &Manifest,
        same_start: bool,
    ) -> Result<()> {
        let identity = |manifest: &Manifest| {
            let mut manifest = manifest.clone();
            if same_start {
                manifest.options.limit = None;
                manifest.traces.sha256.clear();
                manifest.traces.read = None;
            }
            // Runs of before say nothing of what was read.
            if self.traces.read.is_none() {
                manifest.traces.read = None;
            }
            manifest.traces.grown.clear();
            manifest.status = Status::Running;
            manifest.counts = None;
            manifest.remarks.clear(); // they follow from the rest
            manifest.model.id.clear();
            manifest.model.adapter.iter_mut().for_each(|adapter| adapter.path.clear());
            manifest.traces.file.clear();
            serde_json::to_value(manifest).unwrap_or_default()
        };
        match difference(&identity(self), &identity(asked)) {
            None => Ok(()),
            Some((field, there, here)) => {
                let problem =
                    format!("is {there} in this run, but {here} now: it cannot be resumed");
                Err(Error::field(path, field, problem))
            }
        }
    }
}

/// The first field in which two objects differ, dotted, with both values.
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
    /// Describes the checkpoint in `dir`, which has been loaded before.
    ///
    /// # Errors
    /// A file that cannot be read.
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

    /// The same with the adapter in `dir`, which the user calls `path`.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn with_adapter(self, path: &str, dir: &Path) -> Result<ModelNote> {
        Ok(ModelNote { adapter: Some(AdapterNote::new(path, dir)?), ..self })
    }

    /// What tables call it: its id and, after a plus, the adapter's last part.
    pub fn name(&self) -> String {
        self.name_of(&self.id)
    }

    /// The same where the model itself is called `base`.
    pub fn name_of(&self, base: &str) -> String {
        adapted_name(base, self.adapter.as_ref().map(|adapter| adapter.path.as_str()))
    }
}

impl TracesNote {
    /// Reads the traces file, or the files that a directory or a pattern names.
    ///
    /// # Errors
    /// A file that cannot be read.
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

/// SHA-256 over the ids of traces, their prompts' lengths and their sample indices.
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
    /// Counts over the traces of a run.
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
