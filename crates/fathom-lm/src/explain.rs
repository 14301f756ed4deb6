//! How the sinks of a run form, and what they do.

use std::path::{Path, PathBuf};

use fathom_backend::Precision;
use fathom_kernels::CpuOptions;
use fathom_model::{Error, LoadProgress, Result, data_files};
use fathom_sinks::explain::{
    Analysis, ExplainOptions, ExplainProgress, Explanation, Inputs, check_adapter, check_model,
    check_traces, result_file,
};
use fathom_sinks::{ModelNote, ScanOptions};

use crate::source::{AdapterSource, ModelSource};
use crate::traces::{IN_MEMORY, ReadOptions};
use crate::{Model, ModelFiles, ModelOptions, Traces};

/// One analysis and what it found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explained {
    /// The analysis.
    pub analysis: Analysis,
    /// The file with its result; [`fathom_sinks::explain::read`] reads it.
    pub file: PathBuf,
    /// What was found, in a sentence.
    pub finding: String,
}

/// Explains the sinks of a run with its model and its traces. The result of each analysis is stored
/// in the run. A result that is up to date is kept, and an interrupted explanation continues.
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// use fathom_lm::{Analysis, ExplainOptions, Model, Preset, ScanOptions, Traces, explain};
///
/// let planted = fathom_lm::demo::PlantOptions { traces: 2, ..Default::default() };
/// fathom_lm::demo::plant(dir.path(), &planted)?;
/// let model = Model::load(dir.path().display().to_string())?;
/// let traces = Traces::read(dir.path().join("traces.jsonl"), &model)?;
/// let run = model.scan(&traces, ScanOptions::new(Preset::Paper)).run()?;
///
/// let asked = [Analysis::Stages, Analysis::Effect];
/// let options = ExplainOptions { max_sinks: 20, ..ExplainOptions::default() };
/// let explained = explain(&run, &model, &traces, &asked, options, &mut ())?;
/// assert_eq!(explained[0].analysis, Analysis::Stages);
/// assert!(explained.iter().all(|one| one.file.exists() && !one.finding.is_empty()));
/// # Ok::<(), fathom_lm::Error>(())
/// ```
///
/// # Errors
/// A model or traces that are not those of the run; a pass that fails; a result that cannot be
/// written.
pub fn explain(
    run: &fathom_sinks::RunDir,
    model: &Model,
    traces: &Traces,
    analyses: &[Analysis],
    options: ExplainOptions,
    progress: &mut dyn ExplainProgress,
) -> Result<Vec<Explained>> {
    let explanation = Explain::new(run, analyses, options)?;
    explanation.with_model(model, traces, progress)?;
    explanation.findings()
}

/// Where a run's model and traces are, if they have moved since the scan. `None`: where the run
/// recorded them.
#[derive(Clone, Debug, Default)]
pub struct RunInputs {
    /// The model: a directory or a hub id.
    pub model: Option<String>,
    /// The adapter.
    pub adapter: Option<String>,
    /// The traces.
    pub traces: Option<PathBuf>,
    /// Threads to compute with; `None`: one per CPU this process may use.
    pub threads: Option<usize>,
}

/// An explanation, step by step. [`explain`] runs all steps.
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// # use fathom_lm::{Analysis, Explain, ExplainOptions, Model, Preset, RunInputs, ScanOptions};
/// # use fathom_lm::Traces;
/// # let planted = fathom_lm::demo::PlantOptions { traces: 2, ..Default::default() };
/// # fathom_lm::demo::plant(dir.path(), &planted)?;
/// # let model = Model::load(dir.path().display().to_string())?;
/// # let traces = Traces::read(dir.path().join("traces.jsonl"), &model)?;
/// # let run = model.scan(&traces, ScanOptions::new(Preset::Paper)).run()?;
/// let options = ExplainOptions { max_sinks: 20, ..ExplainOptions::default() };
/// let explain = Explain::new(&run, &[Analysis::Entropy], options.clone())?;
/// assert_eq!(explain.remaining(), [Analysis::Entropy]);
/// assert_eq!(explain.cost(), "1 pass over the traces, shared by all");
///
/// // The run records where its model and traces are. `RunInputs` is for those that have moved.
/// explain.run(&RunInputs::default(), &mut ())?;
/// assert!(explain.findings()?[0].finding.contains("nats"));
/// // The result is up to date: same run, options and version.
/// assert!(Explain::new(&run, &[Analysis::Entropy], options)?.remaining().is_empty());
/// # Ok::<(), fathom_lm::Error>(())
/// ```
pub struct Explain<'a> {
    run: &'a fathom_sinks::RunDir,
    asked: Vec<Analysis>,
    explanation: Explanation<'a>,
}

impl<'a> Explain<'a> {
    /// Determines which of the analyses have no up-to-date result.
    ///
    /// # Errors
    /// Detections that cannot be read; settings that do not fit the run's model.
    pub fn new(
        run: &'a fathom_sinks::RunDir,
        analyses: &[Analysis],
        options: ExplainOptions,
    ) -> Result<Explain<'a>> {
        let explanation = Explanation::new(run, analyses, options)?;
        Ok(Explain { run, asked: analyses.to_vec(), explanation })
    }

    /// The analyses that remain to be run.
    pub fn remaining(&self) -> &[Analysis] {
        self.explanation.analyses()
    }

    /// The passes that the remaining analyses need, in words.
    pub fn cost(&self) -> String {
        self.explanation.cost()
    }

    /// Runs the remaining analyses, with the model and traces that the run records or those in
    /// `inputs`. Both are loaded only if an analysis needs them.
    ///
    /// # Errors
    /// A model or traces that are missing or are not those of the run; a pass that fails; a result
    /// that cannot be written.
    pub fn run(&self, inputs: &RunInputs, progress: &mut dyn ExplainProgress) -> Result<()> {
        if !self.explanation.needs_model() {
            return self.explanation.without_model();
        }
        let source = self.find_model(inputs)?;
        let path = self.find_traces(inputs)?;
        check_traces(self.run, &path)?;
        self.check_source(&source)?;
        let files = self.model_options(inputs).open_at(source)?;
        let traces = self.read_traces(&path, &files)?;
        progress.start("loading", "layers", files.config().layers);
        let model = files.load_with(&mut Loading(progress))?;
        self.pass(&model, &traces, progress)
    }

    /// Runs the remaining analyses with a loaded model, and the traces that the run records or
    /// those in `inputs`.
    ///
    /// # Errors
    /// As [`Explain::run`].
    pub fn run_on(
        &self,
        model: &Model,
        inputs: &RunInputs,
        progress: &mut dyn ExplainProgress,
    ) -> Result<()> {
        if !self.explanation.needs_model() {
            return self.explanation.without_model();
        }
        let path = self.find_traces(inputs)?;
        check_traces(self.run, &path)?;
        let traces = self.read_traces(&path, model.files())?;
        self.with_model(model, &traces, progress)
    }

    /// Runs the remaining analyses with a loaded model and loaded traces.
    ///
    /// # Errors
    /// As [`Explain::run`].
    pub fn with_model(
        &self,
        model: &Model,
        traces: &Traces,
        progress: &mut dyn ExplainProgress,
    ) -> Result<()> {
        if !self.explanation.needs_model() {
            return self.explanation.without_model();
        }
        self.check_source(model.files().source())?;
        let scanned = &self.run.manifest().options;
        if scanned.precision != model.files().precision() {
            return Err(Error::Request(format!(
                "the run was scanned in {}, and the model is loaded in {}: expected the same",
                scanned.precision,
                model.files().precision()
            )));
        }
        let read = self.run.manifest().traces.read.as_ref();
        if read.is_some_and(|read| read.ids_sha256 != traces.note().ids_sha256) {
            let problem = "the traces are not those of the run: their token ids differ";
            return Err(Error::Request(problem.to_owned()));
        }
        self.pass(model, traces, progress)
    }

    /// The findings of all requested analyses.
    ///
    /// # Errors
    /// A result that cannot be read.
    pub fn findings(&self) -> Result<Vec<Explained>> {
        let explained = |analysis: &Analysis| {
            Ok(Explained {
                analysis: *analysis,
                file: result_file(self.run.dir(), *analysis),
                finding: fathom_report::finding(self.run.dir(), *analysis)?.unwrap_or_default(),
            })
        };
        self.asked.iter().map(explained).collect()
    }

    fn pass(
        &self,
        model: &Model,
        traces: &Traces,
        progress: &mut dyn ExplainProgress,
    ) -> Result<()> {
        let files = model.files();
        let checkpoint = files.source().checkpoint(files.config())?;
        let tokenizer = files.text().tokenizer.as_deref();
        let inputs = Inputs {
            model: model.weights(),
            checkpoint: &checkpoint,
            traces: traces.as_slice(),
            text: &|ids| tokenizer.and_then(|tokenizer| tokenizer.decode(ids).ok()),
            engine: &model.engine(),
        };
        self.explanation.with_model(&inputs, progress)
    }

    /// Refuses a model that is not the run's.
    pub(crate) fn check_source(&self, source: &ModelSource) -> Result<()> {
        check_model(self.run, &source.dir)?;
        match (&source.adapter, &self.run.manifest().model.adapter) {
            (Some(adapter), _) => check_adapter(self.run, &adapter.dir),
            (None, Some(scanned)) => Err(Error::Request(format!(
                "the run's model had the adapter `{}`, and this one has none",
                scanned.path
            ))),
            (None, None) => Ok(()),
        }
    }

    /// The location of the run's model and adapter, or of those in `inputs`.
    fn find_model(&self, inputs: &RunInputs) -> Result<ModelSource> {
        let scanned = &self.run.manifest().model;
        let name = inputs.model.as_deref().unwrap_or(&scanned.id);
        let source = ModelSource::find(name, None).map_err(|error| match inputs.model {
            Some(_) => error,
            None => Error::Request(format!(
                "the run's model is not here: {error}; if it is elsewhere, name that with `--model`"
            )),
        })?;
        Ok(ModelSource { adapter: find_adapter(inputs, scanned)?, ..source })
    }

    /// Options that load the run's model as the scan did.
    fn model_options(&self, inputs: &RunInputs) -> ModelOptions {
        let ScanOptions { chat_template, prompts, precision, .. } = &self.run.manifest().options;
        let precision = match precision.as_str() {
            "bf16" => Precision::Bf16,
            _ => Precision::F32,
        };
        ModelOptions::new("")
            .chat_template(*chat_template)
            .prompt_options(prompts.clone())
            .cpu(CpuOptions { precision, threads: inputs.threads, isa: None })
    }

    /// The path of the run's traces, or of those in `inputs`. Recorded files must still exist.
    fn find_traces(&self, inputs: &RunInputs) -> Result<PathBuf> {
        if let Some(traces) = &inputs.traces {
            return Ok(traces.clone());
        }
        let scanned = &self.run.manifest().traces;
        let path = Path::new(&scanned.file);
        if scanned.sha256.is_empty() {
            let problem = match scanned.file == IN_MEMORY {
                true => "the run's traces were in memory: give the traces themselves",
                false => {
                    "the run's traces came from standard input and were not stored: the run cannot \
                     be explained"
                }
            };
            return Err(Error::Request(problem.to_owned()));
        }
        let all_there = |files: Vec<PathBuf>| files.iter().all(|file| file.exists());
        if !data_files(path)?.is_some_and(all_there) {
            let problem = "the run's traces no longer exist: give `--traces`";
            return Err(Error::file(path, problem));
        }
        Ok(path.to_owned())
    }

    /// Reads the run's traces as the scan did.
    fn read_traces(&self, path: &Path, files: &ModelFiles) -> Result<Traces> {
        let manifest = self.run.manifest();
        let read = manifest.traces.read.as_ref();
        let options = ReadOptions {
            fields: read.map(|read| read.named.clone()).unwrap_or_default(),
            limit: manifest.options.limit,
            skip_bad_lines: read.is_some_and(|read| !read.skipped.is_empty()),
        };
        Traces::read_with(path, files, &options)
    }
}

/// Reports the loading of a model as a step of an explanation.
struct Loading<'a>(&'a mut dyn ExplainProgress);

impl LoadProgress for Loading<'_> {
    fn layer(&mut self, _: usize, _: usize) {
        self.0.advance(1);
    }

    fn check(&mut self) -> Result<()> {
        self.0.check()
    }
}

/// The location of the run's adapter, or of the one in `inputs`. `None` if the run had none.
fn find_adapter(inputs: &RunInputs, scanned: &ModelNote) -> Result<Option<AdapterSource>> {
    match (&inputs.adapter, &scanned.adapter) {
        (None, None) => Ok(None),
        (Some(_), None) => {
            let problem = "--adapter: the run's model had no adapter and is explained without one";
            Err(Error::Request(problem.to_owned()))
        }
        (Some(name), Some(_)) => AdapterSource::find(name).map(Some),
        (None, Some(scanned)) => AdapterSource::find(&scanned.path).map(Some).map_err(|_| {
            Error::Request(format!(
                "the run's adapter `{}` is not here: if it is elsewhere, name that with \
                 `--adapter`",
                scanned.path
            ))
        }),
    }
}
