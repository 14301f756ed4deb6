//! A target and, beside it, a draft: that they speak one language, and who has which cores.

use std::sync::Arc;

use fathom_decode::{Placement, ThreadSplit, shared_vocabulary};
use fathom_kernels::{Cpu, CpuOptions};
use fathom_model::{
    Encoded, Error, PromptOptions, RecommendedSampling, Remark, Result, TextEncoder, Tokenizer,
};

use crate::cpu::{Weights, cpu, refused};
use crate::{Input, Model, ModelFiles, ModelOptions};

/// A target and perhaps a draft, but for their weights: files read, and known to name the same
/// tokens.
pub struct Pair {
    pub(super) target: Arc<ModelFiles>,
    draft: Option<Arc<ModelFiles>>,
    /// Where they are loaded already.
    loaded: Option<Loaded>,
    tokenizer: Arc<Tokenizer>,
    /// Ids from here on are padding of the target's logits.
    vocab: usize,
}

/// A target's weights and a draft's.
pub(super) type Loaded = (Arc<Weights>, Option<Arc<Weights>>);

impl Pair {
    /// Reads everything but the weights, and checks that the two speak one language. Threads are
    /// not a matter of a model here: see [`placement`].
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
    /// assert!(Pair::open(planted, Some(model(&models.draft))).is_err(), "another vocabulary");
    /// # Ok::<(), fathom_lm::Error>(())
    /// ```
    ///
    /// # Errors
    /// Models that are not here, or have no tokenizer; files that cannot be used; a draft with
    /// another vocabulary.
    pub fn open(target: ModelOptions, draft: Option<ModelOptions>) -> Result<Pair> {
        let target = target.open()?;
        let tokenizer = tokenizer(&target)?;
        // A draft is given ids: what its files say about prompts does not matter.
        let of_draft = |draft: ModelOptions| {
            let draft = draft.chat_template(false).prompt_options(PromptOptions::default());
            draft.open()
        };
        let draft = draft.map(of_draft).transpose()?;
        let vocab = vocabulary(&target, draft.as_ref())?;
        let (target, draft) = (Arc::new(target), draft.map(Arc::new));
        Ok(Pair { target, draft, loaded: None, tokenizer, vocab })
    }

    /// A pair of models that are loaded already, which others may go on using: their passes take
    /// turns. Each computes with its own threads; a pair that is opened by name shares the cores
    /// out instead, which is faster where both work at the same time.
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
    /// A model without a tokenizer; a draft with another vocabulary.
    pub fn of(target: &Model, draft: Option<&Model>) -> Result<Pair> {
        let (target, weights) = target.shared();
        let (draft, of_draft) = draft.map(Model::shared).unzip();
        let tokenizer = tokenizer(&target)?;
        let vocab = vocabulary(&target, draft.as_deref())?;
        Ok(Pair { target, draft, loaded: Some((weights, of_draft)), tokenizer, vocab })
    }

    /// The model whose text it is.
    pub fn target(&self) -> &ModelFiles {
        &self.target
    }

    /// The model that drafts.
    pub fn draft(&self) -> Option<&ModelFiles> {
        self.draft.as_deref()
    }

    /// Ids from here on are padding of the target's logits and name no token.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// Most tokens of a sequence: the target's context, whatever the draft's.
    pub fn context(&self) -> usize {
        self.target.config().max_position_embeddings
    }

    /// What is remarkable about the two checkpoints, the target's first.
    pub fn remarks(&self) -> impl Iterator<Item = Remark> {
        let draft = self.draft().into_iter().flat_map(ModelFiles::remarks);
        self.target.remarks().iter().chain(draft).cloned()
    }

    /// The remark that texts of up to `longest` tokens, prompt included, go beyond the draft's
    /// context.
    pub fn draft_remark(&self, longest: usize) -> Option<Remark> {
        let draft = self.draft.as_ref()?;
        let (context, target) = (draft.config().max_position_embeddings, self.context());
        (longest.min(target) > context).then(|| {
            let text = format!(
                "the draft `{}` has a context of {context} tokens, the target {target}: texts go on \
                 without speculation beyond it",
                draft.source().name,
            );
            Remark::advice("draft-context", text)
        })
    }

    /// Pages of the caches of `batch` sequences that reach the end of the context.
    pub fn kv_pages(&self, batch: usize) -> usize {
        self.context().div_ceil(Cpu::KV_PAGE).saturating_mul(batch.max(1))
    }

    /// Tokens that end a text of the target.
    pub fn eos(&self) -> &[u32] {
        &self.target.config().eos_token_ids
    }

    /// How the target's authors recommend to choose tokens.
    pub fn recommended_sampling(&self) -> &RecommendedSampling {
        &self.target.config().recommended_sampling
    }

    /// The target's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Makes token ids of the target's prompts.
    pub fn encoder(&self) -> TextEncoder<'_> {
        self.target.text().encoder(self.vocab)
    }

    /// The ids of a prompt up to where the answer begins, each a token of the vocabulary.
    ///
    /// # Errors
    /// As [`crate::Model::encode`].
    pub fn encode(&self, input: impl Into<Input>) -> Result<Encoded> {
        self.target.text().encode(input, self.vocab)
    }

    /// Loads the target and, where there is one, the draft, each with its threads of `placement`.
    /// `progress` is called with (layers done, layers) of first the one, then the other.
    ///
    /// # Errors
    /// Weights that cannot be read or used; threads that are refused, or cores that are too few to
    /// stay on.
    pub fn load(
        &self,
        placement: Placement,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<(Weights, Option<Weights>)> {
        let mut load =
            |files: &ModelFiles, alone: usize, together: usize, cores: Option<Vec<usize>>| {
                let options = CpuOptions { threads: Some(alone), ..files.cpu() };
                let mut cpu = cpu(options)?.with_threads_beside(together).map_err(refused)?;
                if let Some(cores) = cores {
                    cpu = cpu.pinned(&cores).map_err(refused)?;
                }
                files.weights(cpu, progress)
            };
        let Placement { alone, together, .. } = placement;
        let (of_target, of_draft) = pinned_cores(placement)?.unzip();
        let target = load(&self.target, alone.target, together.target, of_target)?;
        let draft = |draft| load(draft, alone.draft, together.draft, of_draft);
        Ok((target, self.draft().map(draft).transpose()?))
    }

    /// The weights: those that are loaded already, or as [`Pair::load`].
    ///
    /// # Errors
    /// As [`Pair::load`].
    pub(super) fn weights(
        &self,
        placement: Placement,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Loaded> {
        match &self.loaded {
            Some(loaded) => Ok(loaded.clone()),
            None => {
                let (target, draft) = self.load(placement, progress)?;
                Ok((Arc::new(target), draft.map(Arc::new)))
            }
        }
    }
}

/// Who has which of `cores` threads: each model all of them while it works alone, and a share while
/// both work, one in four for the draft; except where a number is given. `pinned` keeps every
/// thread on a core of its own.
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

/// CPUs this process may use.
pub fn available_cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The tokenizer of a model, which must have one.
fn tokenizer(files: &ModelFiles) -> Result<Arc<Tokenizer>> {
    match &files.text().tokenizer {
        Some(tokenizer) => Ok(Arc::clone(tokenizer)),
        None => Tokenizer::from_dir(&files.source().dir).map(Arc::new), // says what is missing
    }
}

/// The target's vocabulary, with a draft or without; a draft must name the same tokens, however
/// many rows it has.
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
    let (rows, of_other) = (target.config().vocab, other.config().vocab);
    if of_other > rows {
        shared(of_other)?;
    }
    shared(rows)
}

/// The cores of target and draft, where they are to stay on them.
fn pinned_cores(placement: Placement) -> Result<Option<(Vec<usize>, Vec<usize>)>> {
    if !placement.pinned {
        return Ok(None);
    }
    let all = fathom_kernels::cores().map_err(|error| Error::Request(format!("--pin: {error}")))?;
    let ThreadSplit { target, draft } = placement.together;
    let cores = placement.cores(&all).ok_or_else(|| {
        Error::Request(format!(
            "--pin needs a core for every thread, {target} of the target and {draft} of the draft; this process \
             may use {}",
            all.len()
        ))
    })?;
    Ok(Some(cores))
}
