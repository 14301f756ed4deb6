//! A target model with an optional draft model: shared vocabulary, threads and cores.

use std::sync::Arc;

use fathom_decode::{Placement, ThreadSplit, shared_vocabulary};
use fathom_kernels::{Cpu, CpuOptions};
use fathom_model::{
    Encoded, Error, LoadProgress, PromptOptions, RecommendedSampling, Remark, Result, TextEncoder,
    Tokenizer,
};

use crate::cpu::{Weights, cpu, cpu_error};
use crate::{Input, Model, ModelFiles, ModelOptions, Traces};

/// A target and an optional draft: files read and vocabularies checked, weights not loaded.
pub struct Pair {
    pub(super) target: Arc<ModelFiles>,
    draft: Option<Arc<ModelFiles>>,
    /// The weights, if the pair was created from loaded models.
    loaded: Option<LoadedWeights>,
    tokenizer: Arc<Tokenizer>,
    /// Ids from here on are padding of the target's logits.
    vocab: usize,
    /// Texts that free guesses may come from.
    pub(super) corpus: Vec<Vec<u32>>,
}

/// The weights of the target and of the draft.
pub(super) type LoadedWeights = (Arc<Weights>, Option<Arc<Weights>>);

impl Pair {
    /// Reads everything but the weights and checks that both models share one vocabulary. Thread
    /// counts of the [`ModelOptions`] are ignored; [`placement`] sets them.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # use fathom_lm::{ModelOptions, Pair, demo, placement};
    /// # let models = demo::trained_pair(&dir.path().join("pair"))?;
    /// # demo::plant(&dir.path().join("planted"), &Default::default())?;
    /// let model = |dir: &std::path::Path| ModelOptions::new(dir.display().to_string());
    /// let pair = Pair::open(model(&models.target), Some(model(&models.draft)))?;
    /// assert!(pair.remarks().next().is_none() && pair.encode("hello")?.ids.len() > 1);
    ///
    /// let (target, draft) = pair.load(placement(2, None, None, false), &mut |_, _| {})?;
    /// assert_eq!(target.config().vocab, draft.unwrap().config().vocab);
    ///
    /// let planted = model(&dir.path().join("planted"));
    /// assert!(Pair::open(planted, Some(model(&models.draft))).is_err(), "vocabularies differ");
    /// # Ok::<(), fathom_lm::Error>(())
    /// ```
    ///
    /// # Errors
    /// A model that is not found or has no tokenizer; unusable files; a draft with a different
    /// vocabulary.
    pub fn open(target: ModelOptions, draft: Option<ModelOptions>) -> Result<Pair> {
        let target = target.open()?;
        let tokenizer = tokenizer(&target)?;
        // The draft only sees token ids: its chat template and prompt options are not needed.
        let open_draft = |draft: ModelOptions| {
            let draft = draft.chat_template(false).prompt_options(PromptOptions::default());
            draft.open()
        };
        let draft = draft.map(open_draft).transpose()?;
        let vocab = vocabulary(&target, draft.as_ref())?;
        let (target, draft) = (Arc::new(target), draft.map(Arc::new));
        let corpus = Vec::new();
        Ok(Pair { target, draft, loaded: None, tokenizer, vocab, corpus })
    }

    /// A pair of loaded models. Both stay usable elsewhere: passes of one model run one after the
    /// other. Each model keeps its own threads. [`Pair::open`] divides the cores between the models
    /// instead, which is faster in [`Mode::Pearl`](crate::Mode::Pearl).
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # use fathom_lm::{GenerateOptions, Model, Pair, SamplingParams};
    /// # let models = fathom_lm::demo::trained_pair(dir.path())?;
    /// let target = Model::load(models.target.display().to_string())?;
    /// let draft = Model::load(models.draft.display().to_string())?;
    /// let params = SamplingParams { max_tokens: 6, ..SamplingParams::default() };
    /// let pair = Pair::of(&target, Some(&draft))?;
    /// let texts = pair.generate(["def is_prime(n):"], &params, &GenerateOptions::default())?;
    /// assert_eq!(texts[0].tokens.len(), 6);
    /// # Ok::<(), fathom_lm::Error>(())
    /// ```
    ///
    /// # Errors
    /// A model without a tokenizer; a draft with a different vocabulary.
    pub fn of(target: &Model, draft: Option<&Model>) -> Result<Pair> {
        let (target, weights) = target.shared();
        let (draft, draft_weights) = draft.map(Model::shared).unzip();
        let tokenizer = tokenizer(&target)?;
        let vocab = vocabulary(&target, draft.as_deref())?;
        let (loaded, corpus) = (Some((weights, draft_weights)), Vec::new());
        Ok(Pair { target, draft, loaded, tokenizer, vocab, corpus })
    }

    /// Lets free guesses come from these traces too, next to each prompt and its own text: earlier
    /// outputs for similar prompts, or documents that are quoted. Texts do not depend on it, only
    /// how many passes they take. Memory: some 100 bytes a token.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// use fathom_lm::{GenerateOptions, Mode, ModeChoice, ModelOptions, Pair};
    /// use fathom_lm::{SamplingParams, Traces};
    ///
    /// # let models = fathom_lm::demo::trained_pair(dir.path())?;
    /// # let target = ModelOptions::new(models.target.display().to_string());
    /// let mut pair = Pair::open(target, None)?;
    /// let mode = Some(ModeChoice::Always(Mode::Suffix));
    /// let options = GenerateOptions { mode, ..GenerateOptions::default() };
    /// let params = SamplingParams { max_tokens: 16, ..SamplingParams::default() };
    /// let before = pair.generate(["def is_prime(n):"], &params, &options)?;
    ///
    /// let row = serde_json::json!({ "prompt": "def is_prime(n):", "output": before[0].output });
    /// pair.add_to_corpus(&Traces::from_rows([row], pair.target())?);
    /// let again = pair.generate(["def is_prime(n):"], &params, &options)?;
    /// assert_eq!(before[0].tokens, again[0].tokens);
    /// # Ok::<(), fathom_lm::Error>(())
    /// ```
    pub fn add_to_corpus(&mut self, traces: &Traces) {
        self.corpus.extend(traces.iter().map(|trace| trace.ids.clone()));
    }

    /// The model whose text is generated.
    pub fn target(&self) -> &ModelFiles {
        &self.target
    }

    #[cfg(feature = "serve")]
    pub(crate) fn shared_target(&self) -> Arc<ModelFiles> {
        Arc::clone(&self.target)
    }

    /// The model that drafts.
    pub fn draft(&self) -> Option<&ModelFiles> {
        self.draft.as_deref()
    }

    /// The number of token ids. Higher columns of the target's logits are padding.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// The largest sequence length in tokens: the target's context, even if the draft's is shorter.
    pub fn context(&self) -> usize {
        self.target.config().max_position_embeddings
    }

    /// Remarks about the two checkpoints, the target's first.
    pub fn remarks(&self) -> impl Iterator<Item = Remark> {
        let draft = self.draft().into_iter().flat_map(ModelFiles::remarks);
        self.target.remarks().iter().chain(draft).cloned()
    }

    /// A remark if texts of up to `longest` tokens, prompt included, exceed the draft's context.
    pub fn draft_remark(&self, longest: usize) -> Option<Remark> {
        let draft = self.draft.as_ref()?;
        let (context, target) = (draft.config().max_position_embeddings, self.context());
        (longest.min(target) > context).then(|| {
            let text = format!(
                "the draft `{}` has a context of {context} tokens, the target {target}: beyond it, \
                 decoding continues without speculation",
                draft.source().name,
            );
            Remark::advice("draft-context", text)
        })
    }

    /// The number of key/value cache pages that `batch` sequences of full context length need.
    pub fn kv_pages(&self, batch: usize) -> usize {
        self.context().div_ceil(Cpu::KV_PAGE).saturating_mul(batch.max(1))
    }

    /// The target's end-of-text tokens.
    pub fn eos(&self) -> &[u32] {
        &self.target.config().eos_token_ids
    }

    /// The sampling parameters in the target's `generation_config.json`.
    pub fn recommended_sampling(&self) -> &RecommendedSampling {
        &self.target.config().recommended_sampling
    }

    /// The target's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Encodes prompts with the target's tokenizer and chat template.
    pub fn encoder(&self) -> TextEncoder<'_> {
        self.target.text().encoder(self.vocab)
    }

    /// The token ids of a prompt up to where the answer begins.
    ///
    /// # Errors
    /// As [`crate::Model::encode`].
    pub fn encode(&self, input: impl Into<Input>) -> Result<Encoded> {
        self.target.text().encode(input, self.vocab)
    }

    /// Loads the target and the draft, if any, with the threads that `placement` gives each.
    /// `progress` is called with (layers done, layers), first for the target, then for the draft.
    ///
    /// # Errors
    /// Unusable weights; threads that cannot be created; too few cores to pin every thread.
    pub fn load(
        &self,
        placement: Placement,
        progress: &mut dyn LoadProgress,
    ) -> Result<(Weights, Option<Weights>)> {
        let mut load =
            |files: &ModelFiles, alone: usize, together: usize, cores: Option<Vec<usize>>| {
                let options = CpuOptions { threads: Some(alone), ..files.cpu() };
                let mut cpu = cpu(options)?.with_co_running_threads(together).map_err(cpu_error)?;
                if let Some(cores) = cores {
                    cpu = cpu.pinned(&cores).map_err(cpu_error)?;
                }
                files.weights(cpu, progress)
            };
        let Placement { alone, together, .. } = placement;
        let (target_cores, draft_cores) = pinned_cores(placement)?.unzip();
        let target = load(&self.target, alone.target, together.target, target_cores)?;
        let draft = |draft| load(draft, alone.draft, together.draft, draft_cores);
        Ok((target, self.draft().map(draft).transpose()?))
    }

    /// The loaded weights; loads them if the pair was opened by name.
    ///
    /// # Errors
    /// As [`Pair::load`].
    pub(super) fn weights(
        &self,
        placement: Placement,
        progress: &mut dyn LoadProgress,
    ) -> Result<LoadedWeights> {
        match &self.loaded {
            Some(loaded) => Ok(loaded.clone()),
            None => {
                let (target, draft) = self.load(placement, progress)?;
                Ok((Arc::new(target), draft.map(Arc::new)))
            }
        }
    }
}

/// Divides `cores` threads between target and draft. A model that runs alone uses all of them.
/// While both run, the draft gets one core in four. `target` and `draft` override these numbers.
/// `pinned` pins every thread to its own core.
///
/// ```
/// let placement = fathom_lm::placement(8, None, None, false);
/// assert_eq!(placement.alone.target, 8);
/// assert_eq!((placement.together.target, placement.together.draft), (6, 2));
/// assert_eq!(fathom_lm::placement(8, Some(3), None, false).together.draft, 5);
/// ```
pub fn placement(
    cores: usize,
    target: Option<usize>,
    draft: Option<usize>,
    pinned: bool,
) -> Placement {
    let alone = ThreadSplit { target: target.unwrap_or(cores), draft: draft.unwrap_or(cores) };
    Placement { alone, together: ThreadSplit::new(cores, target, draft), pinned }
}

/// The number of CPUs this process may use.
pub fn available_cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The tokenizer of a model; an error if it has none.
fn tokenizer(files: &ModelFiles) -> Result<Arc<Tokenizer>> {
    match &files.text().tokenizer {
        Some(tokenizer) => Ok(Arc::clone(tokenizer)),
        None => Tokenizer::from_dir(&files.source().dir).map(Arc::new), // names the missing file
    }
}

/// The size of the vocabulary. The tokenizer of a draft must have the same tokens as the target's;
/// its embedding may have more or fewer rows.
fn vocabulary(target: &ModelFiles, draft: Option<&ModelFiles>) -> Result<usize> {
    let other = draft.unwrap_or(target);
    let (own, others) = (tokenizer(target)?, tokenizer(other)?);
    let shared = |ids: usize| {
        shared_vocabulary(
            |id| own.id_to_token(id),
            |id| others.id_to_token(id),
            u32::try_from(ids).unwrap_or(u32::MAX),
        )
    };
    let (target_rows, other_rows) = (target.config().vocab, other.config().vocab);
    if other_rows > target_rows {
        shared(other_rows)?;
    }
    shared(target_rows)
}

/// The cores that the threads of target and draft are pinned to. `None` if they are not pinned.
fn pinned_cores(placement: Placement) -> Result<Option<(Vec<usize>, Vec<usize>)>> {
    if !placement.pinned {
        return Ok(None);
    }
    let all = fathom_kernels::cores()
        .map_err(|error| Error::Request(format!("threads cannot be pinned: {error}")))?;
    let ThreadSplit { target, draft } = placement.together;
    let cores = placement.cores(&all).ok_or_else(|| {
        Error::Request(format!(
            "pinned threads need a core each, {target} for the target and {draft} for the draft; \
             this process may use {}",
            all.len()
        ))
    })?;
    Ok(Some(cores))
}
