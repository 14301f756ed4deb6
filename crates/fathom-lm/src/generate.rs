//! Text from prompts: plainly, or with a draft.

mod engine;
mod pair;
mod prompts;
mod sinks;
mod texts;

use fathom_decode::engine::{Engine, EngineOptions, Gamma, ModeChoice};
use fathom_decode::generation::{Generation, Generator, Origin, Task};
use fathom_decode::{GammaLimits, Mode, Placement, SamplingParams};
use fathom_kernels::Cpu;
use fathom_model::{RecommendedSampling, Result};

use crate::Input;
pub use engine::TextEngine;
pub use pair::{Pair, available_cores, placement};
pub use prompts::{PromptFile, Prompts};
pub use sinks::{SinkCollector, SinkWatcher, WatchedSinks};
pub use texts::{TextRequest, TextsUnderWay, TextsUpdate};

/// How a pair decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GenerateOptions {
    /// Which way of decoding; `None`: [`Mode::Pearl`] with a draft, [`Mode::Ar`] without.
    pub mode: Option<ModeChoice>,
    /// How many tokens are drafted at a time.
    pub gamma: Gamma,
    /// Most texts at a time.
    pub batch_size: usize,
    /// Most pages that the key/value caches of all running texts may hold, in each model; `None`:
    /// as many as `batch_size` whole contexts take.
    pub kv_pages: Option<usize>,
    /// Who has which threads.
    pub placement: Placement,
}

impl Default for GenerateOptions {
    /// The fastest draft length as measured, eight texts at a time, all CPUs this process may use.
    fn default() -> GenerateOptions {
        GenerateOptions {
            mode: None,
            gamma: Gamma::Adaptive(GammaLimits::default()),
            batch_size: 8,
            kv_pages: None,
            placement: placement(available_cores(), None, None, false),
        }
    }
}

/// The engine of a pair, its models loaded.
pub struct PairEngine<'p> {
    pair: &'p Pair,
    engine: Engine<Cpu>,
    origin: Origin,
}

impl PairEngine<'_> {
    /// Whose texts it writes.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }
}

impl<'p> PairEngine<'p> {
    /// Begins with `tasks`: [`Generator::step`] takes each a step further, and says what each got.
    pub fn run(self, tasks: Vec<Task>, params: SamplingParams) -> Generator<Cpu> {
        Generator::new(self.engine, self.pair.tokenizer(), params, self.pair.eos(), tasks)
    }
}

impl Pair {
    /// The options of the engine.
    pub fn engine_options(&self, options: &GenerateOptions) -> EngineOptions {
        let GenerateOptions { mode, gamma, batch_size, kv_pages, .. } = *options;
        let usual = if self.draft().is_some() { Mode::Pearl } else { Mode::Ar };
        EngineOptions {
            mode: mode.unwrap_or(ModeChoice::Always(usual)),
            gamma,
            batch_size,
            kv_pages: kv_pages.unwrap_or_else(|| self.kv_pages(batch_size)),
            vocab: self.vocab(),
        }
    }

    /// Loads the models, for texts that are wanted as they come. `progress` is called with (layers
    /// done, layers) of first the one, then the other.
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
    /// let mut generator = engine.run(prompts.tasks(2), params); // two texts of each
    /// let mut texts = vec![String::new(); 4];
    /// while generator.pending() > 0 {
    ///     for piece in generator.step()? {
    ///         texts[piece.index as usize] += &piece.text; // never half a character
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
    /// As [`Pair::load`]; options that have no meaning, or need a draft that is not there.
    pub fn start(
        &self,
        options: &GenerateOptions,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<PairEngine<'_>> {
        let (target, draft) = self.weights(options.placement, progress)?;
        let origin = Origin {
            model: self.target().name(),
            weights: target.weights_fingerprint().to_owned(),
            precision: self.target().precision().to_owned(),
        };
        let engine = Engine::sharing(target, draft, self.engine_options(options))?;
        Ok(PairEngine { pair: self, engine, origin })
    }

    /// The texts of prompts, in their order: loads the models and generates. At temperature 0 they
    /// are the target's own, token for token, whatever the mode, the draft and the batch.
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
    /// A prompt that cannot become ids or is too long; parameters that have no meaning; as
    /// [`Pair::start`].
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

/// What a checkpoint recommends, as parameters; what it says nothing about is as usual.
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
    let usual = SamplingParams::default();
    let number = |value: Option<f64>, usual: f32| value.map_or(usual, |value| value as f32);
    let RecommendedSampling { temperature, top_p, top_k, min_p, repetition_penalty, .. } =
        *recommended;
    SamplingParams {
        temperature: number(temperature, usual.temperature),
        top_p: number(top_p, usual.top_p),
        top_k: top_k.map_or(usual.top_k, |k| usize::try_from(k).unwrap_or(usize::MAX)),
        min_p: number(min_p, usual.min_p),
        repetition_penalty: number(repetition_penalty, usual.repetition_penalty),
        ..usual
    }
}
