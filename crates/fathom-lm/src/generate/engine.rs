//! A decoding engine on its own thread, which many callers can share.

use std::sync::Arc;

use fathom_decode::SamplingParams;
use fathom_decode::engine::{EngineHandle, Request, Watcher};
use fathom_decode::generation::{Origin, TextUpdates};
use fathom_model::{Encoded, LoadProgress, Result};

use super::{GenerateOptions, Pair, PairEngine};
use crate::Input;
#[cfg(feature = "serve")]
use crate::cpu::Weights;

/// A loaded [`Pair`] that accepts requests from any thread at any time and batches them.
///
/// Clones are handles to the same engine. Its threads end when the last handle and the last
/// [`TextUpdates`] are dropped.
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// # use fathom_lm::{GenerateOptions, ModelOptions, Pair, SamplingParams};
/// # let models = fathom_lm::demo::trained_pair(dir.path())?;
/// # let model = |dir: &std::path::Path| ModelOptions::new(dir.display().to_string());
/// let pair = Pair::open(model(&models.target), Some(model(&models.draft)))?;
/// let engine = pair.spawn(&GenerateOptions::default(), &mut |_, _| {})?;
///
/// // Each request has its own parameters. Requests may come from any thread.
/// let greedy = SamplingParams { max_tokens: 12, ..SamplingParams::default() };
/// let other = engine.clone();
/// let thread = std::thread::spawn(move || {
///     let sampled = SamplingParams { temperature: 0.8, max_tokens: 9, ..Default::default() };
///     let updates = other.submit("What is 6 plus 7?", &sampled)?;
///     updates.map(|update| Ok(update?.tokens.len())).sum::<Result<usize, fathom_lm::Error>>()
/// });
/// let mut text = String::new();
/// for update in engine.submit("What is 6 times 7?", &greedy)? {
///     text += &update?.text; // streamed
/// }
/// assert!(!text.is_empty() && thread.join().unwrap()? <= 9);
///
/// // Dropping the updates cancels a request; `drain` waits until none is left.
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
    #[cfg(feature = "serve")]
    target: Arc<Weights>,
}

impl Pair {
    /// Loads the models and starts an engine on its own thread. `progress` is called with (layers
    /// done, layers), first for the target, then for the draft.
    ///
    /// # Errors
    /// As [`Pair::start`].
    pub fn spawn(
        self,
        options: &GenerateOptions,
        progress: &mut dyn LoadProgress,
    ) -> Result<TextEngine> {
        let started = self.start(options, progress)?;
        #[cfg(feature = "serve")]
        let target = Arc::clone(&started.target);
        let PairEngine { engine, origin, .. } = started;
        let handle = engine.spawn()?;
        Ok(TextEngine {
            pair: Arc::new(self),
            handle,
            origin,
            #[cfg(feature = "serve")]
            target,
        })
    }
}

impl TextEngine {
    /// The pair: its files, vocabulary and recommended sampling parameters.
    pub fn pair(&self) -> &Pair {
        &self.pair
    }

    /// The model that the texts come from, as traces record it.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The target's weights. Passes over them take turns with the engine's.
    #[cfg(feature = "serve")]
    pub(crate) fn target_weights(&self) -> &Arc<Weights> {
        &self.target
    }

    /// The engine itself: drain it, configure it, read its metrics, submit token ids.
    pub fn handle(&self) -> &EngineHandle {
        &self.handle
    }

    /// The token ids that [`TextEngine::submit`] runs for this prompt, with remarks.
    ///
    /// # Errors
    /// As [`crate::Model::encode`].
    pub fn encode(&self, prompt: impl Into<Input>) -> Result<Encoded> {
        self.pair.encode(prompt)
    }

    /// Streams the text for a prompt. The same prompt with the same parameters gives the same text,
    /// independent of other requests in the batch. Above temperature 0 this holds in the modes
    /// `ar`, `suffix` and `pearl`, and in `sd` with a fixed draft length.
    /// [`TextEngine::submit_ids`] can generate several different texts with one seed.
    ///
    /// # Errors
    /// A prompt that cannot be encoded; as [`TextEngine::submit_ids`].
    pub fn submit(&self, prompt: impl Into<Input>, params: &SamplingParams) -> Result<TextUpdates> {
        self.submit_ids(self.encode(prompt)?.ids, params, 0)
    }

    /// Streams the text for a prompt of token ids. `sample` numbers the texts of one prompt and
    /// seed: each number gives a different text.
    ///
    /// # Errors
    /// No ids, too many, or ids outside the vocabulary; invalid parameters; an engine that has
    /// stopped.
    pub fn submit_ids(
        &self,
        ids: Vec<u32>,
        params: &SamplingParams,
        sample: u64,
    ) -> Result<TextUpdates> {
        self.submit_watched(ids, params, sample, None)
    }

    /// As [`TextEngine::submit_ids`], with a watcher that observes the target's activations.
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
    /// // The last token was never an input of the target.
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
        self.submit_request(Request { watcher, ..self.request(ids, params, sample) })
    }

    /// A request for a prompt of token ids, as [`TextEngine::submit_ids`] makes it, to add more to:
    /// log-probabilities, a constraint, a watcher.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # use fathom_lm::{GenerateOptions, ModelOptions, Pair, SamplingParams};
    /// # let models = fathom_lm::demo::trained_pair(dir.path())?;
    /// # let target = ModelOptions::new(models.target.display().to_string());
    /// let engine = Pair::open(target, None)?.spawn(&GenerateOptions::default(), &mut |_, _| {})?;
    /// let params = SamplingParams { max_tokens: 5, ..SamplingParams::default() };
    /// let mut request = engine.request(engine.encode("def is_prime(n):")?.ids, &params, 0);
    /// request.logprobs = Some(2);
    /// for update in engine.submit_request(request)? {
    ///     let update = update?;
    ///     for (token, logprobs) in update.tokens.iter().zip(&update.logprobs) {
    ///         assert_eq!((*token, logprobs.logprob), logprobs.top[0], "greedy");
    ///     }
    /// }
    /// # Ok::<(), fathom_lm::Error>(())
    /// ```
    pub fn request(&self, ids: Vec<u32>, params: &SamplingParams, sample: u64) -> Request {
        Request::new(sample, ids, params.clone(), self.pair.eos().into())
    }

    /// Streams the text of a request. If its [`Request::stop`] is `None`, a check for the stop
    /// strings of its parameters is added.
    ///
    /// # Errors
    /// As [`TextEngine::submit_ids`].
    pub fn submit_request(&self, request: Request) -> Result<TextUpdates> {
        TextUpdates::submit(&self.handle, self.pair.tokenizer(), request)
    }
}
