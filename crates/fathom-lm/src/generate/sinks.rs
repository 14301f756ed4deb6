//! Attention sinks of texts, found during their generation.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fathom_decode::engine::{Observations, Watcher};
use fathom_decode::generation::{Generation, Generator, Task};
use fathom_kernels::Cpu;
use fathom_model::{Access, At, Error, Measured, Probe, Result, Site};
use fathom_sinks::{
    ScalarOptions, ScalarProbe, ScalarRows, ScanNote, ScanOptions, TraceDetection, detect,
};
use serde_json::{Map, Value};

use super::Pair;
use crate::ModelFiles;

/// A [`Watcher`] that measures what a scan measures, in the target's own passes: the sinks of a
/// text are known when it is finished, without another pass. Only norms and dot products leave the
/// device.
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// # use fathom_lm::{GenerateOptions, ModelOptions, Pair, Preset, SamplingParams, ScanOptions};
/// # use fathom_lm::SinkWatcher;
/// # fathom_lm::demo::plant(dir.path(), &Default::default())?;
/// # let target = ModelOptions::new(dir.path().display().to_string());
/// let engine = Pair::open(target, None)?.spawn(&GenerateOptions::default(), &mut |_, _| {})?;
/// let watcher = SinkWatcher::new(engine.pair(), &ScanOptions::new(Preset::Paper));
/// let sinks = watcher.sinks();
/// let params = SamplingParams { max_tokens: 20, ..SamplingParams::default() };
/// let mut ids = engine.encode("the quick brown fox")?.ids;
/// let prompt_len = ids.len();
/// for update in engine.submit_watched(ids.clone(), &params, 0, Some(Box::new(watcher)))? {
///     ids.extend(update?.tokens);
/// }
/// let found = sinks.detection(0, &ids, prompt_len)?;
/// assert_eq!(found.sinks[0].position, 0); // BOS
/// assert_eq!(found.scanned_tokens(), ids.len() - 1);
/// # Ok::<(), fathom_lm::Error>(())
/// ```
pub struct SinkWatcher {
    measured: ScalarOptions,
    sinks: WatchedSinks,
}

/// What a [`SinkWatcher`] has measured so far. Clones share it.
#[derive(Clone)]
pub struct WatchedSinks {
    target: Arc<ModelFiles>,
    options: Arc<ScanOptions>,
    probe: Arc<Mutex<ScalarProbe>>,
}

impl SinkWatcher {
    /// A watcher of one text of `pair`. Only the preset, threshold, rise factor and reference of
    /// `options` are used.
    pub fn new(pair: &Pair, options: &ScanOptions) -> SinkWatcher {
        SinkWatcher::of(Arc::clone(&pair.target), Arc::new(options.clone()))
    }

    pub(crate) fn of(target: Arc<ModelFiles>, options: Arc<ScanOptions>) -> SinkWatcher {
        let measured = options.scalars();
        let probe = ScalarProbe::growing(target.config().layers, &measured);
        let probe = Arc::new(Mutex::new(probe));
        SinkWatcher { measured, sinks: WatchedSinks { target, options, probe } }
    }

    /// A handle to read the sinks, from any thread.
    pub fn sinks(&self) -> WatchedSinks {
        self.sinks.clone()
    }
}

impl WatchedSinks {
    /// The sinks of the text, as a scan of its first `ids.len() - 1` tokens finds them: the last
    /// token was never an input of the target. `ids` are the tokens of prompt and text so far.
    /// `sample_index` is copied to the detection.
    ///
    /// With a rotary scaling that depends on the length of the text, the measurements are from the
    /// passes that generated it. A scan uses the frequencies of the full length at every position.
    ///
    /// # Errors
    /// The target has processed fewer than `ids.len() - 1` tokens.
    pub fn detection(
        &self,
        sample_index: u64,
        ids: &[u32],
        prompt_len: usize,
    ) -> Result<TraceDetection> {
        let judged = &ids[..ids.len().saturating_sub(1)];
        let scalars = self.probe().so_far(judged)?;
        let detection = detect(&scalars, &self.options.detect());
        let preset = self.options.preset;
        let note = ScanNote::new(&detection, scalars.layers(), judged.len(), preset);
        let lengths = (prompt_len, ids.len());
        let mut detection = TraceDetection::new(detection, note, sample_index, lengths);
        for sink in detection.all_sinks_mut() {
            sink.token_text = self.target.text().token_text(sink.token_id);
        }
        Ok(detection)
    }

    fn probe(&self) -> MutexGuard<'_, ScalarProbe> {
        // A panic while measuring aborts the pass, so its positions are never used.
        self.probe.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Probe for SinkWatcher {
    fn access(&self, site: Site, layer: usize) -> Access {
        self.measured.access(site, layer)
    }

    fn reference_positions(&self, _sequence: usize) -> Vec<usize> {
        self.measured.candidates.clone()
    }

    fn read(&mut self, at: &At, values: &[f32]) -> Result<()> {
        self.sinks.probe().read(at, values)
    }

    fn measured(&mut self, at: &At, measured: &Measured<'_>) -> Result<()> {
        self.sinks.probe().measured(at, measured)
    }
}

impl Watcher for SinkWatcher {
    fn truncate(&mut self, len: usize) {
        self.sinks.probe().truncate(len);
    }

    fn shares(&self) -> bool {
        true
    }

    fn observed(&self, positions: Range<usize>) -> Option<Observations> {
        let rows = self.sinks.probe().rows(positions).ok()?;
        Some(Arc::new(rows))
    }

    fn accepts(&self, observations: &Observations) -> bool {
        let rows = observations.downcast_ref::<ScalarRows>();
        rows.is_some_and(|rows| self.sinks.probe().accepts(rows))
    }

    fn adopt(&mut self, positions: Range<usize>, observations: &Observations) -> Result<()> {
        match observations.downcast_ref::<ScalarRows>() {
            Some(rows) => self.sinks.probe().adopt(rows, positions.len()),
            None => Err(Error::Request("observations are not those of a sink watcher".to_owned())),
        }
    }
}

/// Finds the sinks of all texts of a [`Generator`].
#[derive(Clone)]
pub struct SinkCollector {
    target: Arc<ModelFiles>,
    options: Arc<ScanOptions>,
    /// By [`Task::index`]: the texts that are being generated.
    running: Arc<Mutex<Running>>,
}

type Running = HashMap<u64, WatchedSinks>;

impl SinkCollector {
    /// A collector for texts of `pair`; `options` as in [`SinkWatcher::new`].
    pub fn new(pair: &Pair, options: &ScanOptions) -> SinkCollector {
        let (target, options) = (Arc::clone(&pair.target), Arc::new(options.clone()));
        SinkCollector { target, options, running: Arc::default() }
    }

    /// The options that a detection depends on, named as in a run's manifest.
    pub fn rules(&self) -> Value {
        // Through text, so that 0.95 is `0.95` and not the f64 nearest to the f32.
        let options = serde_json::to_string(&*self.options).unwrap_or_default();
        let mut rules: Map<String, Value> = serde_json::from_str(&options).unwrap_or_default();
        let names = ["preset", "threshold", "rise_factor", "reference"];
        rules.retain(|name, _| names.contains(&name.as_str()));
        Value::Object(rules)
    }

    /// Adds a watcher to each text of `generator`.
    pub fn watch(&self, generator: Generator<Cpu>) -> Generator<Cpu> {
        let own = self.clone();
        generator.watched_by(move |task| Ok(own.watcher(task)))
    }

    /// The watcher of a text.
    pub(super) fn watcher(&self, task: &Task) -> Box<dyn Watcher> {
        let watcher = SinkWatcher::of(Arc::clone(&self.target), Arc::clone(&self.options));
        lock(&self.running).insert(task.index, watcher.sinks());
        Box::new(watcher)
    }

    /// The sinks of a text that is finished. Its measurements are dropped.
    ///
    /// # Errors
    /// A text that was not watched, or whose sinks were already returned.
    pub fn detection(&self, generation: &Generation) -> Result<TraceDetection> {
        let Generation { task, tokens, .. } = generation;
        let sinks = lock(&self.running).remove(&task.index);
        let sinks =
            sinks.ok_or_else(|| Error::Request(format!("text {} was not watched", task.index)))?;
        let ids: Vec<u32> = task.ids.iter().chain(tokens).copied().collect();
        sinks.detection(task.index, &ids, task.ids.len())
    }
}

fn lock(running: &Mutex<Running>) -> MutexGuard<'_, Running> {
    // Entries are inserted and removed whole.
    running.lock().unwrap_or_else(PoisonError::into_inner)
}
