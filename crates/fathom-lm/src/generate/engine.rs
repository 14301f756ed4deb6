//! A pair at work on a thread of its own, for callers on any number of threads.

use std::sync::Arc;

use fathom_decode::SamplingParams;
use fathom_decode::engine::{EngineHandle, Request, Watcher};
use fathom_decode::generation::{Origin, TextUpdates};
use fathom_model::{Encoded, LoadProgress, Result};

use super::{GenerateOptions, Pair, PairEngine};
use crate::Input;

/// A pair whose models are loaded and decode whatever is asked for, by anybody, at any time.
///
/// Clones are handles on the same engine; any thread may use any of them. Dropping the last one,
/// and the [`TextUpdates`] it gave, ends the engine's threads.
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// # use fathom_lm::{GenerateOptions, ModelOptions, Pair, SamplingParams};
/// # let models = fathom_lm::demo::trained_pair(dir.path())?;
/// # let model = |dir: &std::path::Path| ModelOptions::new(dir.display().to_string());
/// let pair = Pair::open(model(&models.target), Some(model(&models.draft)))?;
/// let engine = pair.spawn(&GenerateOptions::default(), &mut |_, _| {})?;
///
/// // Each request has its own parameters, and comes from whatever thread.
/// let greedy = SamplingParams { max_tokens: 12, ..SamplingParams::default() };
/// let other = engine.clone();
/// let thread = std::thread::spawn(move || {
///     let sampled = SamplingParams { temperature: 0.8, max_tokens: 9, ..SamplingParams::default() };
///     let updates = other.submit("What is 6 plus 7?", &sampled)?;
///     updates.map(|update| Ok(update?.tokens.len())).sum::<Result<usize, fathom_lm::Error>>()
/// });
/// let mut text = String::new();
/// for update in engine.submit("What is 6 times 7?", &greedy)? {
///     text += &update?.text; // as it comes
/// }
/// assert!(!text.is_empty() && thread.join().unwrap()? <= 9);
///
/// // Who loses interest drops the updates; who wants to stop waits for all.
/// drop(engine.submit("def is_prime(n):", &greedy)?);
/// engine.handle().drain()?;
/// assert_eq!(engine.handle().metrics().submitted, 3);
/// # Ok::<(), fathom_lm::Error>(())
/// ```
#[derive(Clone)]
pub struct TextEngine {
    pair: Arc<Pair>,
    handle: EngineHandle,
    origin: Origin,
}

impl Pair {
    /// Loads the models and puts them to work on a thread of their own. `progress` is called with
    /// (layers done, layers) of first the target, then the draft.
    ///
    /// # Errors
    /// As [`Pair::start`].
    pub fn spawn(
        self,
        options: &GenerateOptions,
        progress: &mut dyn LoadProgress,
    ) -> Result<TextEngine> {
        let PairEngine { engine, origin, .. } = self.start(options, progress)?;
        let handle = engine.spawn()?;
        Ok(TextEngine { pair: Arc::new(self), handle, origin })
    }
}

impl TextEngine {
    /// The pair: its files, its vocabulary, what its target's authors recommend.
    pub fn pair(&self) -> &Pair {
        &self.pair
    }

    /// Whose texts it writes.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The engine, to be drained, configured and measured, or to be given requests of token ids.
    pub fn handle(&self) -> &EngineHandle {
        &self.handle
    }

    /// The ids that [`TextEngine::submit`] gives the model, and what was remarkable about them.
    ///
    /// # Errors
    /// As [`crate::Model::encode`].
    pub fn encode(&self, prompt: impl Into<Input>) -> Result<Encoded> {
        self.pair.encode(prompt)
    }

    /// The text after a prompt, as it comes. The same prompt with the same parameters has the same
    /// text, whatever else is decoded at the time; [`TextEngine::submit_ids`] gives several of one
    /// seed.
    ///
    /// # Errors
    /// A prompt that cannot become ids; as [`TextEngine::submit_ids`].
    pub fn submit(&self, prompt: impl Into<Input>, params: &SamplingParams) -> Result<TextUpdates> {
        self.submit_ids(self.encode(prompt)?.ids, params, 0)
    }

    /// The same after token ids. `sample` says which of the texts of this prompt and seed is meant.
    ///
    /// # Errors
    /// Ids that are empty, too many, or no tokens; parameters that have no meaning; an engine that
    /// has ended.
    pub fn submit_ids(
        &self,
        ids: Vec<u32>,
        params: &SamplingParams,
        sample: u64,
    ) -> Result<TextUpdates> {
        self.submit_watched(ids, params, sample, None)
    }

    /// The same, with somebody who sees what the target computes of the text.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # use fathom_lm::{GenerateOptions, Model, Pair, RowWatcher, SamplingParams, Site};
    /// # let models = fathom_lm::demo::trained_pair(dir.path())?;
    /// let model = Model::load(models.target.display().to_string())?;
    /// let engine = Pair::of(&model, None)?.spawn(&GenerateOptions::default(), &mut |_, _| {})?;
    /// let watcher = RowWatcher::new(&[(Site::ResidPost, 0)])?;
    /// let rows = watcher.rows();
    /// let params = SamplingParams { max_tokens: 5, ..SamplingParams::default() };
    /// let mut ids = engine.encode("def is_prime(n):")?.ids;
    /// for update in engine.submit_watched(ids.clone(), &params, 0, Some(Box::new(watcher)))? {
    ///     ids.extend(update?.tokens);
    /// }
    /// // The last token was never given to the target.
    /// assert_eq!(rows.positions(), ids.len() - 1);
    /// assert_eq!(rows.since(0, 0).len(), rows.positions() * model.config().hidden);
    /// # Ok::<(), fathom_lm::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`TextEngine::submit_ids`].
    pub fn submit_watched(
        &self,
        ids: Vec<u32>,
        params: &SamplingParams,
        sample: u64,
        watcher: Option<Box<dyn Watcher>>,
    ) -> Result<TextUpdates> {
        let (params, eos) = (params.clone(), self.pair.eos().into());
        let request = Request { id: sample, prompt: ids, params, eos, stop: None, watcher };
        TextUpdates::submit(&self.handle, self.pair.tokenizer(), request)
    }
}
