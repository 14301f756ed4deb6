//! Sinks suppressed in texts during their generation: "Suppression" (docs/definitions.md).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fathom_decode::engine::{ChangedRows, EditWatcher, Watcher};
use fathom_decode::generation::{Generation, Generator, Task};
use fathom_kernels::Cpu;
use fathom_model::{Error, Result, Site};
use fathom_sinks::explain::{Analysis, Suppress, read};
use fathom_sinks::{CLAMP_COSINE, Clamp, RunDir, ScanOptions, Suppressed, TextClamps};
use serde_json::{Value, json};

use super::{PairEngine, SinkCollector};
use crate::{Explain, ModelFiles, Weights};

/// Suppresses sinks in all texts of a [`Generator`]: at the clamped layers, the `mlp_out` of every
/// token after the reference that has the sink direction is rescaled, as it arises. The target is
/// edited, not the draft; all modes and batches give the text that the edited target writes alone.
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// # use fathom_lm::{Clamp, GenerateOptions, ModelOptions, Pair, Preset, Prompts, SamplingParams};
/// # use fathom_lm::{ScanOptions, SinkCollector, SinkSuppressor};
/// # fathom_lm::demo::plant(dir.path(), &Default::default())?;
/// # let pair = Pair::open(ModelOptions::new(dir.path().display().to_string()), None)?;
/// let (options, rules) = (GenerateOptions::default(), ScanOptions::new(Preset::Paper));
/// // Layer 5 of this model turns every "Wait" into a secondary sink.
/// let tasks = Prompts::new(["Wait"], &pair, &options)?.tasks(1);
/// let engine = pair.start(&options, &mut |_, _| {})?;
/// let clamps = vec![Clamp { layer: 5, norm: Some(0.5) }];
/// let suppressor = SinkSuppressor::new(&engine, clamps, &rules);
/// let watch = SinkCollector::new(&pair, &rules);
/// let params = SamplingParams { max_tokens: 4, ..SamplingParams::default() };
/// let mut texts = suppressor.suppress(engine.run(tasks, params), Some(&watch));
/// while texts.pending() > 0 {
///     for text in texts.step()?.into_iter().filter_map(|piece| piece.done) {
///         let clamped = &suppressor.suppressed(&text)?.layers[0];
///         assert!((clamped.layer, clamped.norm) == (5, 0.5) && !clamped.positions.is_empty());
///         let left = watch.detection(&text)?.sinks;
///         assert!(left.iter().all(|sink| !clamped.positions.contains(&sink.position)));
///     }
/// }
/// # Ok::<(), fathom_lm::Error>(())
/// ```
#[derive(Clone)]
pub struct SinkSuppressor {
    target: Arc<Weights>,
    clamps: Arc<[Clamp]>,
    options: Arc<ScanOptions>,
    texts: Arc<Mutex<Texts>>,
}

#[derive(Default)]
struct Texts {
    /// By [`Task::index`]: the texts that are being generated.
    running: HashMap<u64, (Arc<TextClamps>, ChangedRows)>,
    /// The last prompt and its clamps: several texts of one prompt follow one another.
    last: Option<(Arc<[u32]>, Arc<TextClamps>)>,
}

impl SinkSuppressor {
    /// A suppressor for texts of `engine`. Only the preset and the reference of `options` are used.
    pub fn new(
        engine: &PairEngine<'_>,
        clamps: Vec<Clamp>,
        options: &ScanOptions,
    ) -> SinkSuppressor {
        SinkSuppressor {
            target: Arc::clone(&engine.target),
            clamps: clamps.into(),
            options: Arc::new(options.clone()),
            texts: Arc::default(),
        }
    }

    /// The clamps of a run explained with [`Analysis::Suppress`]: the layers that create the most
    /// secondary sinks, and the norms of the run's ordinary tokens there.
    ///
    /// # Errors
    /// No such result, or one that is out of date; a run of another model than `target`.
    pub fn clamps_of(run: &RunDir, target: &ModelFiles) -> Result<Vec<Clamp>> {
        let missing = || {
            let problem = "has no up-to-date result of `fathom explain RUN --suppress`";
            Error::file(run.dir(), problem)
        };
        let stored = read::<Suppress>(run.dir())?.ok_or_else(missing)?;
        let explain = Explain::new(run, &[Analysis::Suppress], stored.options)?;
        if !explain.remaining().is_empty() {
            return Err(missing());
        }
        explain.check_source(target.source())?;
        let layers = stored.result.layers.iter();
        Ok(layers.map(|layer| Clamp { layer: layer.layer, norm: Some(layer.norm) }).collect())
    }

    /// What is suppressed in every text, as its line in a trace file states it.
    pub fn rules(&self) -> Value {
        // Through text, so that 0.98 is `0.98` and not the f64 nearest to the f32.
        let text = |value: &dyn Fn() -> serde_json::Result<String>| -> Value {
            value().and_then(|text| serde_json::from_str(&text)).unwrap_or_default()
        };
        json!({
            "site": Site::MlpOut.to_string(),
            "cosine": text(&|| serde_json::to_string(&CLAMP_COSINE)),
            "layers": text(&|| serde_json::to_string(&self.clamps[..])),
            "reference": self.options.reference,
        })
    }

    /// Suppresses the sinks in each text of `generator`. `watch` finds those that are left.
    pub fn suppress(
        &self,
        generator: Generator<Cpu>,
        watch: Option<&SinkCollector>,
    ) -> Generator<Cpu> {
        let (own, watch) = (self.clone(), watch.cloned());
        generator.watched_by(move |task| {
            own.watcher(task, watch.as_ref().map(|watch| watch.watcher(task)))
        })
    }

    /// The watcher of a text, which clamps it; `then` observes it.
    fn watcher(&self, task: &Task, then: Option<Box<dyn Watcher>>) -> Result<Box<dyn Watcher>> {
        let last = self.texts().last.clone();
        let clamps = match last.filter(|(prompt, _)| *prompt == task.ids) {
            Some((_, clamps)) => clamps,
            None => {
                let (target, prompt) = (&self.target, &task.ids);
                let found = TextClamps::of_prompt(target, prompt, &self.clamps, &self.options);
                Arc::new(found.map_err(|error| match error {
                    Error::Request(problem) => {
                        Error::Request(format!("prompt {}: {problem}", task.prompt_index))
                    }
                    error => error,
                })?)
            }
        };
        let watcher = EditWatcher::new(Arc::clone(&clamps.edits), then)?;
        let mut texts = self.texts();
        texts.running.insert(task.index, (Arc::clone(&clamps), watcher.changed()));
        texts.last = Some((Arc::clone(&task.ids), clamps));
        Ok(Box::new(watcher))
    }

    /// What was suppressed in a text that is finished. The record of it is dropped.
    ///
    /// # Errors
    /// A text whose sinks were not suppressed, or whose record was already returned.
    pub fn suppressed(&self, generation: &Generation) -> Result<Suppressed> {
        let index = generation.task.index;
        let (clamps, changed) = self.texts().running.remove(&index).ok_or_else(|| {
            Error::Request(format!("no sinks of text {index} were to be suppressed"))
        })?;
        Ok(clamps.suppressed(|layer| changed.positions(Site::MlpOut, layer)))
    }

    fn texts(&self) -> MutexGuard<'_, Texts> {
        // Entries are inserted and removed whole.
        self.texts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
