//! Traces through a model, into a run.

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fathom_model::{Error, Remark, Remarks, Result};
use fathom_sinks::{Manifest, ModelNote, Progress, RunWriter, ScanOptions};
use tempfile::TempDir;

use crate::Model;
use crate::model::ModelFiles;
use crate::traces::Traces;

/// A run: its directory, its manifest, and through those [`fathom_sinks::Run::detections`] and the
/// tables. A run that was scanned without a directory of its own lies in a temporary one, which
/// goes with the last clone.
#[derive(Clone, Debug)]
pub struct Run {
    run: fathom_sinks::Run,
    /// Keeps the directory.
    temporary: Option<Arc<TempDir>>,
}

impl Run {
    /// Opens the finished run in a directory.
    ///
    /// # Errors
    /// A directory that holds no run, one of another version of the format, or one that did not
    /// finish.
    pub fn open(dir: impl AsRef<Path>) -> Result<Run> {
        fathom_sinks::Run::open(dir.as_ref()).map(Run::from)
    }

    /// Whether its directory goes with it.
    pub fn is_temporary(&self) -> bool {
        self.temporary.is_some()
    }
}

impl From<fathom_sinks::Run> for Run {
    fn from(run: fathom_sinks::Run) -> Run {
        Run { run, temporary: None }
    }
}

impl Deref for Run {
    type Target = fathom_sinks::Run;

    fn deref(&self) -> &fathom_sinks::Run {
        &self.run
    }
}

impl AsRef<Path> for Run {
    fn as_ref(&self) -> &Path {
        self.dir()
    }
}

/// A scan that is about to be done; made by [`Model::scan`].
pub struct Scan<'a> {
    model: &'a Model,
    traces: &'a Traces,
    options: ScanOptions,
    out: Option<PathBuf>,
    resume: bool,
    progress: Option<&'a mut dyn Progress>,
}

impl Model {
    /// Looks for attention sinks in traces: a pass over each, into a run. What `options` says of
    /// chat template, prompts and precision is taken from the model.
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
    /// // In a directory of its own a scan survives whatever ends it, and goes on.
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
    /// `options` with what the model decides: chat template, prompts, precision.
    fn scan_options(&self, options: ScanOptions) -> ScanOptions {
        ScanOptions {
            chat_template: self.text().template.is_some(),
            prompts: self.text().options.clone(),
            precision: self.precision().to_owned(),
            ..options
        }
    }

    /// What is remarkable about a scan of traces, the model's files included: what its run will
    /// record, known before the weights are packed; see [`crate::ModelOptions::open`].
    ///
    /// # Errors
    /// The traces' files cannot be found any more.
    pub fn scan_remarks(&self, traces: &Traces, options: &ScanOptions) -> Result<Vec<Remark>> {
        let mut remarks = Remarks::new();
        remarks.extend(self.remarks().iter().cloned());
        remarks.extend(traces.remarks().iter().cloned());
        if traces.are_piped()? {
            let text = "a run from standard input cannot be resumed or explained: its traces are gone \
                        afterwards";
            remarks.add(Remark::advice("standard-input", text));
        }
        remarks.extend(self.long_traces(traces, options));
        Ok(remarks.into_vec())
    }

    /// The remark that traces go beyond what the model was made for: it runs, but as HuggingFace
    /// would run it.
    fn long_traces(&self, traces: &Traces, options: &ScanOptions) -> Option<Remark> {
        let cut = options.max_tokens.unwrap_or(usize::MAX);
        let longest = traces.iter().map(|trace| trace.ids.len().min(cut)).max().unwrap_or(0);
        let limit = self.config().max_position_embeddings;
        (longest > limit).then(|| {
            let text = format!(
                "the longest trace has {longest} tokens, and the model's max_position_embeddings is {limit}; \
                 --max-tokens {limit} stays within it"
            );
            Remark::advice("long-traces", text)
        })
    }

    /// What a run's manifest says about the model.
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
    /// Writes the run to a directory, which is new or empty, unless the scan is resumed. Without
    /// one it goes to a temporary directory.
    pub fn out(self, dir: impl Into<PathBuf>) -> Scan<'a> {
        Scan { out: Some(dir.into()), ..self }
    }

    /// Goes on with the run in [`Scan::out`], where there is one.
    pub fn resume(self, resume: bool) -> Scan<'a> {
        Scan { resume, ..self }
    }

    /// Who watches.
    pub fn progress(self, progress: &'a mut dyn Progress) -> Scan<'a> {
        Scan { progress: Some(progress), ..self }
    }

    /// Scans. Each trace is on disk before the next begins.
    ///
    /// # Errors
    /// A directory that holds something else, or a run of something else; a trace the model cannot
    /// be given; activations that are not finite; a disk that is full. What was recorded before
    /// stays, and the run can be resumed.
    pub fn run(self) -> Result<Run> {
        let files = self.model.files();
        if self.resume && self.traces.are_piped()? {
            let problem = "a run from standard input cannot be resumed; expected traces of a file";
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
        let nobody: &mut dyn Progress = &mut ();
        let progress = self.progress.unwrap_or(nobody);
        let run = fathom_sinks::scan(weights, traces, &token_text, writer, progress)?;
        Ok(Run { run, temporary })
    }
}
