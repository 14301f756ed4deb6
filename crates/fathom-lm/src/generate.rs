//! Text generation from prompts, with or without a draft model.

mod engine;
mod pair;
mod prompts;
mod sinks;
mod suppress;
mod texts;

use std::sync::Arc;

use fathom_decode::engine::{Engine, EngineOptions, Gamma, ModeChoice};
use fathom_decode::generation::{Generation, Generator, Origin, Task};
use fathom_decode::{GammaLimits, Mode, Placement, SamplingParams, Verification};
use fathom_kernels::Cpu;
use fathom_model::{LoadProgress, RecommendedSampling, Result};

use crate::{Input, Weights};
pub use engine::TextEngine;
pub use pair::{Pair, available_cores, placement};
pub use prompts::{PromptFile, Prompts};
pub use sinks::{SinkCollector, SinkWatcher, WatchedSinks};
pub use suppress::SinkSuppressor;
pub use texts::{TextRequest, TextsInProgress, TextsUpdate};

/// How a [`Pair`] decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GenerateOptions {
    /// The decoding mode. `None`: [`Mode::Pearl`] with a draft, [`Mode::Ar`] without.
    pub mode: Option<ModeChoice>,
    /// The draft length, in tokens.
    pub gamma: Gamma,
    /// The largest number of texts decoded in one batch.
    pub batch_size: usize,
    /// The largest number of key/value cache pages in use by all running texts, per model. `None`:
    /// enough for `batch_size` texts of full context length.
    pub kv_pages: Option<usize>,
    /// Keeps the key/value rows of texts, as far as `kv_pages` allows, for later prompts that begin
    /// with the same tokens. Off by default: a list of prompts that share nothing only loses memory
    /// by it.
    pub prefix_cache: bool,
    /// How many threads target and draft use.
    pub placement: Placement,
}

impl Default for GenerateOptions {
    /// An adaptive draft length, a batch of eight texts, all CPUs this process may use.
    fn default() -> GenerateOptions {
        GenerateOptions {
            mode: None,
            gamma: Gamma::Adaptive(GammaLimits::default()),
            batch_size: 8,
            kv_pages: None,
            prefix_cache: false,
            placement: placement(available_cores(), None, None, false),
        }
    }
}

/// A decoding engine with the models of a [`Pair`] loaded.
pub struct PairEngine<'p> {
    pair: &'p Pair,
    target: Arc<Weights>,
    engine: Engine<Cpu>,
    origin: Origin,
}

impl<'p> PairEngine<'p> {
    /// The pair.
    pub fn pair(&self) -> &'p Pair {
        self.pair
    }

    /// The model that the texts come from, as traces record it.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Changes how the drafts of sampled texts are judged. Both ways give the target's
    /// distribution; the texts of a seed differ.
    pub fn set_verification(&mut self, verification: Verification) {
        self.engine.set_verification(verification);
    }

    /// Starts decoding `tasks`. Each call of [`Generator::step`] runs one step and returns the new
    /// piece of every text.
    pub fn run(self, tasks: Vec<Task>, params: SamplingParams) -> Generator<Cpu> {
        Generator::new(self.engine, self.pair.tokenizer(), params, self.pair.eos(), tasks)
    }
}

impl Pair {
    /// The engine options for this pair, every default filled in.
    pub fn engine_options(&self, options: &GenerateOptions) -> EngineOptions {
        let GenerateOptions { mode, gamma, batch_size, kv_pages, prefix_cache, .. } = *options;
        let default = if self.draft().is_some() { Mode::Pearl } else { Mode::Ar };
        EngineOptions {
            mode: mode.unwrap_or(ModeChoice::Always(default)),
            gamma,
            batch_size,
            kv_pages: kv_pages.unwrap_or_else(|| self.kv_pages(batch_size)),
            vocab: self.vocab(),
            prefix_cache,
        }
    }

    /// Loads the models, to stream texts while they are generated. `progress` is called with
    /// (layers done, layers), first for the target, then for the draft.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # use fathom_lm::{GenerateOptions, ModelOptions, Pair, Prompts, SamplingParams};
    /// # let models = fathom_lm::demo::trained_pair(dir.path())?;
    /// # let target = ModelOptions::new(models.target.display().to_string());
    /// let (pair, options) = (Pair::open(target, None)?, GenerateOptions::default());
    /// let prompts = Prompts::new(["What is 6 times 7?", "What is 6 plus 7?"], &pair, &options)?;
    /// assert!(prompts.longest() < pair.context());
    ///
    /// let params = SamplingParams { max_tokens: 6, temperature: 0.7, ..Default::default() };
    /// let engine = pair.start(&options, &mut |_, _| {})?;
    /// let mut generator = engine.run(prompts.tasks(2), params); // two texts per prompt
    /// let mut texts = vec![String::new(); 4];
    /// while generator.pending() > 0 {
    ///     for piece in generator.step()? {
    ///         texts[piece.index as usize] += &piece.text; // whole characters only
    ///         if let Some(done) = piece.done {
    ///             assert_eq!(done.output, texts[piece.index as usize]);
    ///         }
    ///     }
    /// }
    /// assert!(generator.engine().metrics().tokens >= 4);
    /// # Ok::<(), fathom_lm::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Pair::load`]; invalid options, or options that need a draft where there is none.
    pub fn start(
        &self,
        options: &GenerateOptions,
        progress: &mut dyn LoadProgress,
    ) -> Result<PairEngine<'_>> {
        let (target, draft) = self.weights(options.placement, progress)?;
        let origin = Origin {
            model: self.target().name(),
            weights: target.weights_fingerprint().to_owned(),
            precision: self.target().precision().to_owned(),
        };
        let shared = Arc::clone(&target);
        let mut engine = Engine::sharing(shared, draft, self.engine_options(options))?;
        self.corpus.iter().for_each(|text| engine.add_to_corpus(text));
        Ok(PairEngine { pair: self, target, engine, origin })
    }

    /// Loads the models and generates one text per prompt, in the order of the prompts. At
    /// temperature 0 the tokens are those of the target alone, for every mode, draft and batch
    /// size.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// use fathom_lm::{GenerateOptions, ModelOptions, Pair, SamplingParams};
    ///
    /// let models = fathom_lm::demo::trained_pair(dir.path())?; // or two HuggingFace checkpoints
    /// let options = |dir: &std::path::Path| ModelOptions::new(dir.display().to_string());
    /// let params = SamplingParams { max_tokens: 8, ..SamplingParams::default() };
    /// let prompts = ["Q: What is 6 times 7?", "def is_prime(n):"];
    ///
    /// let pair = Pair::open(options(&models.target), Some(options(&models.draft)))?;
    /// let texts = pair.generate(prompts, &params, &GenerateOptions::default())?;
    /// assert_eq!(texts[0].tokens.len(), 8);
    ///
    /// let alone = Pair::open(options(&models.target), None)?;
    /// let plain = alone.generate(prompts, &params, &GenerateOptions::default())?;
    /// assert_eq!(texts[1].output, plain[1].output);
    /// # Ok::<(), fathom_lm::Error>(())
    /// ```
    ///
    /// # Errors
    /// A prompt that cannot be encoded or is too long; invalid parameters; as [`Pair::start`].
    pub fn generate<I: Into<Input>>(
        &self,
        prompts: impl IntoIterator<Item = I>,
        params: &SamplingParams,
        options: &GenerateOptions,
    ) -> Result<Vec<Generation>> {
        params.validate()?;
        params.validate_ids(self.vocab())?;
        self.engine_options(options).validate()?;
        let tasks = Prompts::new(prompts, self, options)?.tasks(1);
        let engine = self.start(options, &mut |_, _| {})?;
        let mut generator = engine.run(tasks, params.clone());
        let mut texts = Vec::new();
        while generator.pending() > 0 {
            texts.extend(generator.step()?.into_iter().filter_map(|piece| piece.done));
        }
        texts.sort_by_key(|text: &Generation| text.task.index);
        Ok(texts)
    }
}

/// The sampling parameters that a checkpoint recommends, with defaults for the rest.
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// # let models = fathom_lm::demo::trained_pair(dir.path())?;
/// # let files = fathom_lm::Model::options(models.target.display().to_string()).open()?;
/// let params = fathom_lm::recommended_params(&files.config().recommended_sampling);
/// params.validate()?;
/// # Ok::<(), fathom_lm::Error>(())
/// ```
pub fn recommended_params(recommended: &RecommendedSampling) -> SamplingParams {
    let defaults = SamplingParams::default();
    let number = |value: Option<f64>, default: f32| value.map_or(default, |value| value as f32);
    let RecommendedSampling { temperature, top_p, top_k, min_p, repetition_penalty, .. } =
        *recommended;
    SamplingParams {
        temperature: number(temperature, defaults.temperature),
        top_p: number(top_p, defaults.top_p),
        top_k: top_k.map_or(defaults.top_k, |k| usize::try_from(k).unwrap_or(usize::MAX)),
        min_p: number(min_p, defaults.min_p),
        repetition_penalty: number(repetition_penalty, defaults.repetition_penalty),
        ..defaults
    }
}
