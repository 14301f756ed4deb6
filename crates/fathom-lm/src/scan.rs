//! Scanning traces for attention sinks.

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fathom_model::{Error, Remark, Remarks, Result};
use fathom_sinks::{Manifest, ModelNote, Progress, RunWriter, ScanOptions};
use tempfile::TempDir;

use crate::Model;
use crate::model::ModelFiles;
use crate::traces::Traces;

/// The result of a scan: a directory with a manifest, detections and tables; see
/// [`fathom_sinks::RunDir`]. A scan without an output directory writes to a temporary one, which is
/// removed when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct Run {
    run: fathom_sinks::RunDir,
    /// Removes the directory when dropped.
    temporary: Option<Arc<TempDir>>,
}

impl Run {
    /// Opens the finished run in a directory.
    ///
    /// # Errors
    /// A directory without a run, or with a run that has another format version or is unfinished.
    pub fn open(dir: impl AsRef<Path>) -> Result<Run> {
        fathom_sinks::RunDir::open(dir.as_ref()).map(Run::from)
    }

    /// Whether the directory is removed when the last clone is dropped.
    pub fn is_temporary(&self) -> bool {
        self.temporary.is_some()
    }
}

impl From<fathom_sinks::RunDir> for Run {
    fn from(run: fathom_sinks::RunDir) -> Run {
        Run { run, temporary: None }
    }
}

impl Deref for Run {
    type Target = fathom_sinks::RunDir;

    fn deref(&self) -> &fathom_sinks::RunDir {
        &self.run
    }
}

impl AsRef<Path> for Run {
    fn as_ref(&self) -> &Path {
        self.dir()
    }
}

/// A scan with its options; created by [`Model::scan`], run by [`Scan::run`].
pub struct Scan<'a> {
    model: &'a Model,
    traces: &'a Traces,
    options: ScanOptions,
    out: Option<PathBuf>,
    resume: bool,
    progress: Option<&'a mut dyn Progress>,
}

impl Model {
    /// A scan for attention sinks, one pass over each trace. Chat template, prompt options and
    /// precision are those of the model, not those in `options`.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// use fathom_lm::{Class, Model, Preset, Run, ScanOptions, Traces};
    ///
    /// let truth = fathom_lm::demo::plant(dir.path(), &Default::default())?;
    /// let model = Model::load(dir.path().display().to_string())?;
    /// let traces = Traces::read(dir.path().join("traces.jsonl"), &model)?;
    /// let run = model.scan(&traces, ScanOptions::new(Preset::Paper)).run()?;
    ///
    /// let found = run.detections()?;
    /// let primary = found[0].of_class(Class::Primary).next().unwrap();
    /// assert_eq!(primary.position, 0); // BOS
    /// let planted: usize = truth.sequences.iter().map(|sequence| sequence.sinks.len()).sum();
    /// assert_eq!(found.iter().map(|trace| trace.sinks.len()).sum::<usize>(), planted);
    /// assert!(run.is_temporary());
    ///
    /// // With an output directory, an interrupted scan can be resumed.
    /// let out = dir.path().join("run");
    /// let scan = || model.scan(&traces, ScanOptions::new(Preset::Paper)).out(&out);
    /// let run = scan().run()?;
    /// assert!(scan().run().is_err(), "a run is never written over");
    /// assert_eq!(scan().resume(true).run()?.detections()?, run.detections()?);
    /// assert_eq!(Run::open(&out)?.manifest().counts, run.manifest().counts);
    /// # Ok::<(), fathom_lm::Error>(())
    /// ```
    pub fn scan<'a>(&'a self, traces: &'a Traces, options: ScanOptions) -> Scan<'a> {
        let options = self.files().scan_options(options);
        Scan { model: self, traces, options, out: None, resume: false, progress: None }
    }
}

impl ModelFiles {
    /// `options` with the model's chat template, prompt options and precision.
    fn scan_options(&self, options: ScanOptions) -> ScanOptions {
        ScanOptions {
            chat_template: self.text().template.is_some(),
            prompts: self.text().options.clone(),
            precision: self.precision().to_owned(),
            ..options
        }
    }

    /// The remarks that a run will record, about the model's files, the traces and the scan. They
    /// are known before the weights are packed; see [`crate::ModelOptions::open`].
    ///
    /// # Errors
    /// The files of the traces no longer exist.
    pub fn scan_remarks(&self, traces: &Traces, options: &ScanOptions) -> Result<Vec<Remark>> {
        let mut remarks = Remarks::new();
        remarks.extend(self.remarks().iter().cloned());
        remarks.extend(traces.remarks().iter().cloned());
        if traces.are_piped()? {
            let text = "a run from standard input cannot be resumed or explained: its traces are \
                        gone afterwards";
            remarks.add(Remark::advice("standard-input", text));
        }
        remarks.extend(self.long_traces(traces, options));
        Ok(remarks.into_vec())
    }

    /// A remark if traces are longer than the model's context. They run nevertheless, as in
    /// HuggingFace transformers.
    fn long_traces(&self, traces: &Traces, options: &ScanOptions) -> Option<Remark> {
        let cut = options.max_tokens.unwrap_or(usize::MAX);
        let longest = traces.iter().map(|trace| trace.ids.len().min(cut)).max().unwrap_or(0);
        let limit = self.config().max_position_embeddings;
        (longest > limit).then(|| {
            let text = format!(
                "the longest trace has {longest} tokens, and the model's max_position_embeddings \
                 is {limit}; a limit of {limit} tokens per trace (max_tokens) stays within it"
            );
            Remark::advice("long-traces", text)
        })
    }

    /// The model's entry in a run's manifest.
    fn to_note(&self) -> Result<ModelNote> {
        let source = self.source();
        let note = ModelNote::new(&source.name, &source.dir, self.config())?;
        match &source.adapter {
            None => Ok(note),
            Some(adapter) => note.with_adapter(&adapter.name, &adapter.dir),
        }
    }
}

impl<'a> Scan<'a> {
    /// Writes the run to `dir`, which must be new or empty unless the scan is resumed. Default: a
    /// temporary directory.
    pub fn out(self, dir: impl Into<PathBuf>) -> Scan<'a> {
        Scan { out: Some(dir.into()), ..self }
    }

    /// Continues the run in the output directory, if there is one.
    pub fn resume(self, resume: bool) -> Scan<'a> {
        Scan { resume, ..self }
    }

    /// Reports progress to `progress`.
    pub fn progress(self, progress: &'a mut dyn Progress) -> Scan<'a> {
        Scan { progress: Some(progress), ..self }
    }

    /// Runs the scan. Each trace is on disk before the next one starts.
    ///
    /// # Errors
    /// An output directory that holds other files, or a different run; a trace that the model
    /// cannot run; activations that are not finite; a full disk. Completed traces are kept, and the
    /// run can be resumed.
    pub fn run(self) -> Result<Run> {
        let files = self.model.files();
        if self.resume && self.traces.are_piped()? {
            let problem = "a run from standard input cannot be resumed; expected traces in a file";
            return Err(Error::Request(problem.to_owned()));
        }
        let remarks = files.scan_remarks(self.traces, &self.options)?;
        let engine = self.model.engine();
        let (model, traces) = (files.to_note()?, self.traces.to_note()?);
        let manifest = Manifest { remarks, ..Manifest::new(model, traces, engine, self.options) };
        let (dir, temporary) = match self.out {
            Some(dir) => (dir, None),
            None => {
                let temporary = tempfile::Builder::new().prefix("fathom-run-").tempdir();
                let parent = std::env::temp_dir();
                let temporary = temporary.map_err(Error::io(&parent, "cannot be written"))?;
                (temporary.path().to_owned(), Some(Arc::new(temporary)))
            }
        };
        let writer = match self.resume {
            true => RunWriter::resume_with(&dir, manifest, self.traces.as_slice())?,
            false => RunWriter::create(&dir, manifest)?,
        };
        let token_text = |id| files.text().token_text(id);
        let (weights, traces) = (self.model.weights(), self.traces.as_slice());
        let silent: &mut dyn Progress = &mut ();
        let progress = self.progress.unwrap_or(silent);
        let run = fathom_sinks::scan(weights, traces, &token_text, writer, progress)?;
        Ok(Run { run, temporary })
    }
}
