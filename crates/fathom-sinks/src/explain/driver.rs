//! Runs analyses: selects those without a current result, states their cost, makes their passes.

use std::path::Path;

use fathom_backend::Backend;
use fathom_model::{Checkpoint, Error, Result, TokenizedTrace, Transformer};
use serde::Serialize;

use super::analysis::AnyAnalyzer;
use super::intervention::{Intervention, batches, intervene};
use super::parts::{self, Parts};
use super::pass::{Observer, observe};
use super::scanned::{ScannedRun, ScannedTrace};
use super::store::ResultStore;
use super::{Analysis, ExplainOptions};
use crate::run::MANIFEST;
use crate::{AdapterNote, Fingerprints, RunDir, ScanOptions, TraceDetection, TracesNote};

/// The analyses of a run that are still to do.
#[derive(Clone, Debug)]
pub struct Explanation<'a> {
    run: &'a RunDir,
    options: ExplainOptions,
    analyses: Vec<Analysis>,
    detections: Vec<TraceDetection>,
    detections_sha256: String,
}

/// What passes over the traces need.
pub struct Inputs<'a, B: Backend> {
    /// The run's model.
    pub model: &'a Transformer<B>,
    /// The checkpoint it was loaded from.
    pub checkpoint: &'a Checkpoint,
    /// The run's traces, in their order.
    pub traces: &'a [TokenizedTrace],
    /// The text of token ids, if the model has a tokenizer.
    pub text: &'a dyn Fn(&[u32]) -> Option<String>,
    /// The kernels that compute it, named as in [`crate::Manifest::engine`].
    pub engine: &'a str,
}

/// Follows the progress of an explanation.
pub trait ExplainProgress {
    /// A step begins that consists of `steps` units: "tokens" through the model, or "places" to
    /// compare.
    fn start(&mut self, step: &'static str, unit: &'static str, steps: usize);
    /// `steps` more units are done.
    fn advance(&mut self, steps: usize);
    /// Called before each layer of a pass over a trace, and between other steps; an error cancels
    /// the explanation.
    ///
    /// # Errors
    /// Any error ends the explanation. The next explanation of the run continues from there.
    fn check(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Reports that `steps` more units are done, and checks for cancellation.
pub(super) fn advanced(progress: &mut dyn ExplainProgress, steps: usize) -> Result<()> {
    progress.advance(steps);
    progress.check()
}

/// Ignores progress and never cancels.
impl ExplainProgress for () {
    fn start(&mut self, _: &'static str, _: &'static str, _: usize) {}
    fn advance(&mut self, _: usize) {}
}

impl<'a> Explanation<'a> {
    /// Selects those of the requested analyses whose stored result is missing, or was computed from
    /// other detections, with other options, or by another version.
    ///
    /// # Errors
    /// Detections that cannot be read; settings that do not fit the run's model.
    pub fn new(run: &'a RunDir, asked: &[Analysis], options: ExplainOptions) -> Result<Self> {
        options.keys.check(run.manifest().model.layers)?;
        let detections_sha256 = run.detections_sha256()?;
        let detections = run.detections()?;
        let mut explanation =
            Explanation { run, options, analyses: Vec::new(), detections, detections_sha256 };
        let missing = |analysis: &Analysis| !explanation.has_result(*analysis);
        let mut analyses: Vec<Analysis> = asked.iter().copied().filter(missing).collect();
        analyses.sort_unstable();
        analyses.dedup();
        explanation.analyses = analyses;
        Ok(explanation)
    }

    /// The analyses that are still to do.
    pub fn analyses(&self) -> &[Analysis] {
        &self.analyses
    }

    /// Whether any of them needs the model. If none does, call [`Explanation::without_model`].
    pub fn needs_model(&self) -> bool {
        let run = self.scanned_run();
        self.analyses.iter().any(|analysis| !(analysis.description().scan_suffices)(&run))
    }

    /// The number of passes it takes, in words.
    pub fn cost(&self) -> String {
        if self.analyses.is_empty() {
            return "nothing is left to do".to_owned();
        }
        if !self.needs_model() {
            return "no pass: the scan measured all that is needed".to_owned();
        }
        let mut cost = "1 pass over the traces, shared by all".to_owned();
        let run = self.scanned_run();
        let (mut edited, mut passes) = (Vec::new(), Vec::new());
        for analysis in &self.analyses {
            let description = analysis.description();
            if let Some(extra) = description.extra_tokens {
                cost += &format!("; for {}, {extra}", analysis.name());
            }
            let more = (description.edited_passes)(&run);
            if more > 0 {
                edited.push(analysis.name());
                passes.push(more);
            }
        }
        if !edited.is_empty() {
            let batches = batches(&passes).len();
            let (edited, passes) = (edited.join(" and "), batches + passes.iter().sum::<usize>());
            let batches = if batches == 1 { "one batch" } else { "several batches" };
            cost += &format!("; for {edited}, {passes} more passes, in {batches}");
        }
        cost
    }

    /// The run, without the tokens of its traces.
    fn scanned_run(&self) -> ScannedRun<'_> {
        self.with_traces(ScannedTrace::without_tokens(&self.detections))
    }

    fn with_traces<'b>(&'b self, traces: Vec<ScannedTrace<'b>>) -> ScannedRun<'b> {
        let manifest = self.run.manifest();
        let (layers, heads) = (manifest.model.layers, manifest.model.heads);
        let (scan, options) = (&manifest.options, self.options.clone());
        ScannedRun { traces, layers, heads, scan, options }
    }

    fn store(&self) -> ResultStore<'_> {
        ResultStore {
            run_dir: self.run.dir(),
            detections_sha256: &self.detections_sha256,
            options: self.options.clone(),
        }
    }

    /// Whether a current result of an analysis is stored, requested or not.
    fn has_result(&self, analysis: Analysis) -> bool {
        (analysis.description().is_current)(&self.store())
    }

    /// Stores the results of the analyses for which the scan measured everything, and skips those
    /// that need the model.
    ///
    /// # Errors
    /// A result that cannot be written.
    pub fn without_model(&self) -> Result<()> {
        let run = self.scanned_run();
        for analysis in &self.analyses {
            (analysis.description().store_from_scan)(&self.store(), &run)?;
        }
        Parts::tidy(self.run.dir(), &|analysis| self.has_result(analysis));
        Ok(())
    }

    /// Runs all analyses with passes over the run's traces, and stores each result as soon as it is
    /// known. The part collected from each trace is stored until every result that needs it is
    /// stored. An interrupted explanation therefore continues where it stopped and ends with the
    /// same bytes, even if other analyses are requested in between.
    ///
    /// # Errors
    /// Traces that are not those of the detections; a pass that fails; a result that cannot be
    /// written.
    pub fn with_model<B: Backend>(
        &self,
        inputs: &Inputs<'_, B>,
        progress: &mut dyn ExplainProgress,
    ) -> Result<()> {
        let Inputs { model, traces, engine, text, .. } = *inputs;
        let run = self.with_traces(ScannedTrace::with_tokens(traces, &self.detections)?);
        let key = self.key(engine)?;
        let have_result = |analysis| self.has_result(analysis);
        let parts = Parts::open(self.run.dir(), &key, &self.analyses, &have_result)?;
        let store = self.store();

        // Analyses of the plain pass alone, and those that also make edited passes.
        let mut plain: Vec<Box<dyn AnyAnalyzer<B>>> = Vec::new();
        let mut edited: Vec<Box<dyn AnyAnalyzer<B>>> = Vec::new();
        for analysis in &self.analyses {
            let description = analysis.description();
            if (description.store_from_scan)(&store, &run)? {
                continue;
            }
            match (description.edited_passes)(&run) {
                0 => plain.push(analysis.start(&run)),
                _ => edited.push(analysis.start(&run)),
            }
        }

        let all = plain.iter_mut().chain(&mut edited);
        let observers: Vec<&mut dyn Observer<B>> = all.flat_map(|one| one.observers()).collect();
        observe(model, &run.traces, observers, &parts, progress)?;
        for analyzer in plain {
            analyzer.store(&store, inputs, progress)?;
        }

        let mut interventions: Vec<&mut dyn Intervention<B>> = Vec::new();
        for analyzer in &mut edited {
            interventions.extend(analyzer.interventions(inputs)?);
        }
        intervene(model, &run, &mut interventions, &parts, text, progress)?;
        for analyzer in edited {
            analyzer.store(&store, inputs, progress)?;
        }
        parts.finish(&self.analyses)
    }

    /// A key of everything that all parts depend on, regardless of the requested analyses.
    fn key(&self, engine: &str) -> Result<String> {
        #[derive(Serialize)]
        struct Key<'a> {
            format: u32,
            fathom: &'a str,
            engine: &'a str,
            model: &'a Fingerprints,
            scan: &'a ScanOptions,
            detections_sha256: &'a str,
            options: ExplainOptions,
        }
        let manifest = self.run.manifest();
        let key = Key {
            format: parts::FORMAT,
            fathom: env!("CARGO_PKG_VERSION"),
            engine,
            model: &manifest.model.fingerprints,
            scan: &manifest.options,
            detections_sha256: &self.detections_sha256,
            // The settings of attention keys are in those of the interventions.
            options: self.options.of(false),
        };
        serde_json::to_string(&key)
            .map_err(|error| Error::Request(format!("parts cannot be identified: {error}")))
    }
}

/// Refuses a checkpoint that is not the one of the run.
///
/// # Errors
/// Files that differ from those the run was made with, or cannot be read.
pub fn check_model(run: &RunDir, model_dir: &Path) -> Result<()> {
    let scanned = &run.manifest().model.fingerprints;
    let here = Fingerprints::of(model_dir)?;
    let differs = [
        ("config.json", scanned.config_sha256 != here.config_sha256),
        ("weights", scanned.weights_sha256 != here.weights_sha256),
        ("tokenizer or chat template", scanned.tokenizer_sha256 != here.tokenizer_sha256),
    ];
    match differs.iter().find(|(_, differs)| *differs) {
        None => Ok(()),
        Some((what, _)) => {
            let run = run.dir().join(MANIFEST);
            let problem = format!("its {what} differ from those of {}", run.display());
            Err(Error::file(model_dir, problem))
        }
    }
}

/// Refuses an adapter that is not the one of the run.
///
/// # Errors
/// A run without an adapter; an adapter that differs from the run's, or cannot be read.
pub fn check_adapter(run: &RunDir, adapter_dir: &Path) -> Result<()> {
    let manifest = run.dir().join(MANIFEST);
    let Some(scanned) = &run.manifest().model.adapter else {
        let problem = format!("is an adapter, and {} was made without one", manifest.display());
        return Err(Error::file(adapter_dir, problem));
    };
    let here = AdapterNote::new(&scanned.path, adapter_dir)?;
    let what = match (&scanned.config_sha256, &scanned.weights_sha256) {
        (config, _) if *config != here.config_sha256 => "config differs",
        (_, weights) if *weights != here.weights_sha256 => "tensors differ",
        _ => return Ok(()),
    };
    let problem = format!("its {what} from those of {}", manifest.display());
    Err(Error::file(adapter_dir, problem))
}

/// Refuses a traces file that is not the one of the run.
///
/// # Errors
/// A file that differs from the one the run was made with, or cannot be read.
pub fn check_traces(run: &RunDir, traces: &Path) -> Result<()> {
    if run.manifest().traces.sha256 == TracesNote::new(traces)?.sha256 {
        return Ok(());
    }
    let run = run.dir().join(MANIFEST);
    Err(Error::file(traces, format!("is not the file that {} was made from", run.display())))
}
