//! Running analyses: which are still to be done, what they cost, and doing them.

use std::path::Path;

use fathom_backend::Backend;
use fathom_model::{Checkpoint, Error, Model, Result, TokenizedTrace, file_fingerprint};
use serde::Serialize;

use super::clusters::ClustersObserver;
use super::creation::CreationObserver;
use super::effect::EffectObserver;
use super::entropy::EntropyObserver;
use super::neurons::{HeadObserver, Ranked};
use super::parts::{self, Parts};
use super::pass::{Observer, observe};
use super::pca::PcaObserver;
use super::stages::StagesObserver;
use super::store;
use super::subjects::{Subject, creation_layers};
use super::suppress::Clamped;
use super::swap::SwapObserver;
use super::variants::Variants;
use super::{
    Analysis, AnalysisResult, Clusters, Effect, Entropy, ExplainOptions, Neurons, Pca, Stages,
    Suppress, Swap,
};
use crate::run::{DETECTIONS, MANIFEST};
use crate::{AdapterNote, Fingerprints, Run, ScanOptions, TraceDetection, TracesNote};

/// Analyses of a run that are to be done.
#[derive(Clone, Debug)]
pub struct Explanation<'a> {
    run: &'a Run,
    options: ExplainOptions,
    analyses: Vec<Analysis>,
    detections: Vec<TraceDetection>,
    detections_sha256: String,
}

/// What an explanation runs the traces through again.
pub struct Inputs<'a, B: Backend> {
    /// The run's model.
    pub model: &'a Model<B>,
    /// The checkpoint it was loaded from.
    pub checkpoint: &'a Checkpoint,
    /// The run's traces, in their order.
    pub traces: &'a [TokenizedTrace],
    /// The text of token ids, where the model has a tokenizer.
    pub text: &'a dyn Fn(&[u32]) -> Option<String>,
    /// Which kernels compute it: as [`crate::Manifest::engine`].
    pub engine: &'a str,
}

/// Watches an explanation.
pub trait ExplainProgress {
    /// A step begins that takes so many of what is named: "tokens" through the model, "places" to
    /// compare.
    fn start(&mut self, step: &'static str, unit: &'static str, steps: usize);
    /// So many more are done.
    fn advance(&mut self, steps: usize);
    /// Asked before each layer of a pass over a trace, and between other steps, whether to go on.
    ///
    /// # Errors
    /// Whatever it reports ends the explanation, which goes on from there when it is asked for
    /// again.
    fn check(&mut self) -> Result<()> {
        Ok(())
    }
}

/// So many steps are done; whether to go on.
pub(super) fn advanced(progress: &mut dyn ExplainProgress, steps: usize) -> Result<()> {
    progress.advance(steps);
    progress.check()
}

/// Nobody watches.
impl ExplainProgress for () {
    fn start(&mut self, _: &'static str, _: &'static str, _: usize) {}
    fn advance(&mut self, _: usize) {}
}

impl<'a> Explanation<'a> {
    /// Of the analyses asked for, those whose stored result is missing or not of this run, these
    /// options and this version.
    ///
    /// # Errors
    /// Detections that cannot be read.
    pub fn new(run: &'a Run, asked: &[Analysis], options: ExplainOptions) -> Result<Self> {
        let fingerprint = file_fingerprint(&run.dir().join(DETECTIONS))?;
        let detections_sha256 = fingerprint.trim_start_matches("sha256:").to_owned();
        let missing =
            |analysis: &Analysis| !is_current(run.dir(), &detections_sha256, options, *analysis);
        let mut analyses: Vec<Analysis> = asked.iter().copied().filter(missing).collect();
        analyses.sort_unstable();
        analyses.dedup();
        let detections = run.detections()?;
        Ok(Explanation { run, options, analyses, detections, detections_sha256 })
    }

    /// What is left to do.
    pub fn analyses(&self) -> &[Analysis] {
        &self.analyses
    }

    /// Whether any of it runs the model. Otherwise [`Explanation::without_model`] does it.
    pub fn needs_model(&self) -> bool {
        self.analyses.iter().any(|analysis| *analysis != Analysis::Effect || !self.has_scores())
    }

    /// What it takes, in words.
    pub fn cost(&self) -> String {
        if self.analyses.is_empty() {
            return "nothing is left to do".to_owned();
        }
        if !self.needs_model() {
            return "no pass: the scan measured all that is needed".to_owned();
        }
        let mut cost = "1 pass over the traces, shared by all".to_owned();
        if self.wants(Analysis::Swap) {
            cost += "; for swap, 3 · (l_start + 2) single tokens a sink";
        }
        let again: Vec<&str> = AGAIN.iter().filter(|a| self.wants(**a)).map(|a| a.name()).collect();
        let layers = creation_layers(&Subject::scanned(&self.detections)).len();
        if layers > 0 && !again.is_empty() {
            let passes = 1 + layers * again.len();
            cost += &format!("; for {}, {passes} passes more, side by side", again.join(" and "));
        }
        cost
    }

    /// Whether the detections hold all scores that `effect` looks at: those of sinks, and of
    /// references that are sinks.
    fn has_scores(&self) -> bool {
        let mut subjects = Subject::scanned(&self.detections).into_iter();
        subjects.all(|subject| subject.is_measured())
    }

    fn wants(&self, analysis: Analysis) -> bool {
        self.analyses.contains(&analysis)
    }

    /// Whether an analysis, asked for or not, has its result.
    fn has_result(&self, analysis: Analysis) -> bool {
        is_current(self.run.dir(), &self.detections_sha256, self.options, analysis)
    }

    fn write<T: AnalysisResult>(&self, result: T) -> Result<()> {
        store::write(self.run.dir(), &self.detections_sha256, self.options, result)
    }

    /// Does what needs no model: `effect` of a run that measured attention.
    ///
    /// # Errors
    /// A result that cannot be written.
    pub fn without_model(&self) -> Result<()> {
        if self.wants(Analysis::Effect) && self.has_scores() {
            let layers = self.run.manifest().model.layers;
            let subjects = Subject::scanned(&self.detections);
            self.write(EffectObserver::new(&subjects, layers, true, self.options).finish())?;
        }
        Parts::tidy(self.run.dir(), &|analysis| self.has_result(analysis));
        Ok(())
    }

    /// Does everything, running the run's traces through its model again, and stores each result as
    /// soon as it is known. What is learnt of a trace is kept until then, so that an explanation
    /// that is interrupted goes on from there and ends with the same bytes, whatever else is asked
    /// for before that.
    ///
    /// # Errors
    /// Traces that are not those of the detections; a pass that fails; a result that cannot be
    /// written.
    pub fn with_model<B: Backend>(
        &self,
        inputs: &Inputs<'_, B>,
        progress: &mut dyn ExplainProgress,
    ) -> Result<()> {
        let Inputs { model, traces, engine, .. } = *inputs;
        let subjects = Subject::all(traces, &self.detections)?;
        let key = self.key(engine)?;
        let have_result = |analysis| self.has_result(analysis);
        let parts = Parts::open(self.run.dir(), &key, &self.analyses, &have_result)?;
        let layers = model.config().layers;
        let options = self.options;
        let rule = &self.run.manifest().options;
        let mut stages = self.wants(Analysis::Stages).then(|| StagesObserver::new(layers, options));
        let mut swap = self
            .wants(Analysis::Swap)
            .then(|| SwapObserver::new(&subjects, layers, (rule.preset, rule.threshold), options));
        let mut effect = self
            .wants(Analysis::Effect)
            .then(|| EffectObserver::new(&subjects, layers, self.has_scores(), options));
        let mut pca = self.wants(Analysis::Pca).then(|| PcaObserver::new(&subjects, options));
        let mut clusters = self
            .wants(Analysis::Clusters)
            .then(|| ClustersObserver::new(&subjects, layers, options));
        let mut entropy = self.wants(Analysis::Entropy).then(|| EntropyObserver::new(layers));
        let mut creation = AGAIN
            .iter()
            .any(|analysis| self.wants(*analysis))
            .then(|| CreationObserver::new(&subjects, options));
        let mut heads = self.wants(Analysis::Neurons).then(|| HeadObserver::new(model.config()));

        let mut observers: Vec<&mut dyn Observer<B>> = Vec::new();
        observers.extend(stages.as_mut().map(|observer| observer as &mut dyn Observer<B>));
        let scores_needed = effect.as_mut().filter(|_| !self.has_scores());
        observers.extend(scores_needed.map(|observer| observer as &mut dyn Observer<B>));
        observers.extend(pca.as_mut().map(|observer| observer as &mut dyn Observer<B>));
        observers.extend(clusters.as_mut().map(|observer| observer as &mut dyn Observer<B>));
        observers.extend(entropy.as_mut().map(|observer| observer as &mut dyn Observer<B>));
        observers.extend(creation.as_mut().map(|observer| observer as &mut dyn Observer<B>));
        observers.extend(heads.as_mut().map(|observer| observer as &mut dyn Observer<B>));
        observers.extend(swap.as_mut().map(|observer| observer as &mut dyn Observer<B>));
        observe(model, &subjects, &mut observers, &parts, progress)?;

        stages.map(|observer| self.write(observer.finish())).transpose()?;
        effect.map(|observer| self.write(observer.finish())).transpose()?;
        entropy.map(|observer| self.write(observer.finish())).transpose()?;
        pca.map(|observer| self.write(observer.finish(model)?)).transpose()?;
        if let Some(observer) = clusters {
            progress.start("clustering", "places", observer.places());
            self.write(observer.finish(&mut || advanced(progress, 1))?)?;
        }
        swap.map(|observer| self.write(observer.finish())).transpose()?;
        if let Some(creation) = creation {
            self.again(inputs, &subjects, (creation, heads), &parts, progress)?;
        }
        parts.finish(&self.analyses)
    }

    /// What parts depend on, whatever was asked for.
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
            options: self.options,
        };
        serde_json::to_string(&key)
            .map_err(|error| Error::Request(format!("parts cannot be named: {error}")))
    }

    /// Runs the traces again: with sinks clamped, and without the neurons that make them.
    fn again<B: Backend>(
        &self,
        inputs: &Inputs<'_, B>,
        subjects: &[Subject<'_>],
        (creation, heads): (CreationObserver, Option<HeadObserver>),
        parts: &Parts,
        progress: &mut dyn ExplainProgress,
    ) -> Result<()> {
        let Inputs { model, checkpoint, text, .. } = *inputs;
        let layers = creation.finish();
        let clamp = self.wants(Analysis::Suppress);
        let ranked = layers.iter().filter(|_| heads.is_some());
        let mut variants = Variants {
            clamped: layers.iter().filter(|_| clamp).map(Clamped::new).collect(),
            ranked: ranked
                .map(|creation| Ranked::new(creation, checkpoint, model.config()))
                .collect::<Result<_>>()?,
        };
        let rule = &self.run.manifest().options;
        variants.run(model, subjects, rule, parts, text, progress)?;
        if clamp {
            self.write(Suppress::of(variants.clamped))?;
        }
        heads.map(|heads| self.write(Neurons::of(variants.ranked, heads))).transpose()?;
        Ok(())
    }
}

/// Whether the stored result of an analysis is that of these detections and options, by this
/// version.
fn is_current(dir: &Path, sha: &str, options: ExplainOptions, analysis: Analysis) -> bool {
    match analysis {
        Analysis::Stages => store::is_current::<Stages>(dir, sha, options),
        Analysis::Swap => store::is_current::<Swap>(dir, sha, options),
        Analysis::Effect => store::is_current::<Effect>(dir, sha, options),
        Analysis::Entropy => store::is_current::<Entropy>(dir, sha, options),
        Analysis::Suppress => store::is_current::<Suppress>(dir, sha, options),
        Analysis::Neurons => store::is_current::<Neurons>(dir, sha, options),
        Analysis::Pca => store::is_current::<Pca>(dir, sha, options),
        Analysis::Clusters => store::is_current::<Clusters>(dir, sha, options),
    }
}

/// Analyses that run the traces again with something changed.
const AGAIN: [Analysis; 2] = [Analysis::Suppress, Analysis::Neurons];

/// Refuses a checkpoint that is not the one of the run.
///
/// # Errors
/// Files that differ from those the run was made with, or cannot be read.
pub fn check_model(run: &Run, model_dir: &Path) -> Result<()> {
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
pub fn check_adapter(run: &Run, adapter_dir: &Path) -> Result<()> {
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
pub fn check_traces(run: &Run, traces: &Path) -> Result<()> {
    if run.manifest().traces.sha256 == TracesNote::new(traces)?.sha256 {
        return Ok(());
    }
    let run = run.dir().join(MANIFEST);
    Err(Error::file(traces, format!("is not the file that {} was made from", run.display())))
}
