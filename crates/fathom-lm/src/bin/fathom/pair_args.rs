//! `--target`, `--draft` and how to run them: the arguments of every command that generates.

use clap::Args;
use fathom_decode::{Placement, ThreadSplit, shared_vocabulary};
use fathom_kernels::{Backend, Cpu, CpuError, Isa};
use fathom_model::{
    ChatTemplate, Error, Model, ModelConfig, PromptOptions, RecommendedSampling, Remark, Result,
    TextEncoder, Tokenizer,
};

use crate::cli::Output;
use crate::model_args::{self, ComputeArgs, Precision, TextFiles};
use crate::model_source::ModelSource;
use crate::prompt_args::PromptArgs;

/// Which model's text, and how to run it and its draft.
#[derive(Debug, Args)]
pub struct PairArgs {
    /// The model whose text it is: a HuggingFace checkpoint directory, or the hub id (`org/name`,
    /// `org/name@revision`) of one in the HuggingFace cache
    #[arg(long, value_name = "M")]
    pub target: String,
    /// A LoRA adapter in PEFT's format, which is merged into the target: a directory with an
    /// adapter_config.json, or the hub id of one in the cache
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<String>,
    /// The same for the draft
    #[arg(long, value_name = "DIR", requires = "draft")]
    pub draft_adapter: Option<String>,
    /// Operands of matrix products, keys and values; accumulation and the residual stream are f32 in both
    #[arg(long, value_enum, default_value_t = Precision::F32, value_name = "P")]
    pub precision: Precision,
    /// Threads of the target [default: what the draft leaves of the CPUs this process may use]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    target_threads: Option<u16>,
    /// Threads of the draft [default: one CPU in four]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    draft_threads: Option<u16>,
    /// Instruction set of the kernels, as `fathom doctor` lists them [default: the best this machine runs]
    #[arg(long, value_name = "SET", value_parser = model_args::isa(), hide_short_help = true)]
    isa: Option<Isa>,
    /// Keep every thread on a core of its own: steadier where nothing else runs, slower where something does
    #[arg(long)]
    pin: bool,
}

impl PairArgs {
    /// Who has which threads: alone all of them, beside the other a share.
    pub fn placement(&self) -> Placement {
        let (alone, together) = (self.all_threads(), self.own_threads());
        Placement { alone, together, pinned: self.pin }
    }

    /// Each model's threads while both work, `--target-threads` and `--draft-threads` first.
    pub fn own_threads(&self) -> ThreadSplit {
        let number = |n: Option<u16>| n.map(usize::from);
        ThreadSplit::new(cores(), number(self.target_threads), number(self.draft_threads))
    }

    /// Each model's threads while it works alone: one for every CPU, except where a number is given.
    fn all_threads(&self) -> ThreadSplit {
        let given = |n: Option<u16>| n.map_or(cores(), usize::from);
        ThreadSplit { target: given(self.target_threads), draft: given(self.draft_threads) }
    }

    /// Reads everything but the weights, and checks that the two speak one language.
    pub fn open(&self, draft: Option<&str>, prompts: &PromptArgs) -> Result<Pair> {
        let (bare_text, options) = (prompts.no_chat_template, prompts.options());
        let target = ModelSource::find(&self.target, self.adapter.as_deref())?;
        let target = Checkpoint::open(target, bare_text, options)?;
        // A draft is given ids: what its files say about prompts does not matter.
        let of_draft = |draft| {
            let draft = ModelSource::find(draft, self.draft_adapter.as_deref())?;
            Checkpoint::open(draft, true, PromptOptions::default())
        };
        let draft = draft.map(of_draft).transpose()?;
        let vocab = vocabulary(&target, draft.as_ref())?;
        Ok(Pair { target, draft, vocab, precision: self.precision, isa: self.isa })
    }
}

/// CPUs this process may use.
fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// A checkpoint but for its weights.
struct Checkpoint {
    source: ModelSource,
    config: ModelConfig,
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    prompts: PromptOptions,
    remarks: Vec<Remark>,
}

impl Checkpoint {
    fn open(source: ModelSource, bare_text: bool, prompts: PromptOptions) -> Result<Checkpoint> {
        let dir = &source.dir;
        let config = ModelConfig::from_dir(dir)?;
        let text = TextFiles::from_dir(dir, bare_text, prompts)?;
        let mut remarks = source.remarks(&config)?;
        remarks.extend(text.remarks());
        let TextFiles { tokenizer, template, options: prompts, .. } = text;
        let tokenizer = match tokenizer {
            Some(tokenizer) => tokenizer,
            None => Tokenizer::from_dir(dir)?, // says what is missing
        };
        Ok(Checkpoint { source, config, tokenizer, template, prompts, remarks })
    }

    fn context(&self) -> usize {
        self.config.max_position_embeddings
    }
}

/// The target's vocabulary, with a draft or without; a draft must name the same tokens, however
/// many rows it has.
fn vocabulary(target: &Checkpoint, draft: Option<&Checkpoint>) -> Result<usize> {
    let other = draft.unwrap_or(target);
    let shared = |ids: usize| {
        shared_vocabulary(
            |id| target.tokenizer.id_to_token(id),
            |id| other.tokenizer.id_to_token(id),
            u32::try_from(ids).unwrap_or(u32::MAX),
        )
    };
    let (rows, of_other) = (target.config.vocab, other.config.vocab);
    if of_other > rows {
        shared(of_other)?;
    }
    shared(rows)
}

/// A target and perhaps a draft, ready to be loaded.
pub struct Pair {
    target: Checkpoint,
    draft: Option<Checkpoint>,
    /// Ids from here on are padding of the target's logits.
    pub vocab: usize,
    precision: Precision,
    isa: Option<Isa>,
}

impl Pair {
    /// What tables call the target.
    pub fn target_name(&self) -> String {
        self.target.source.called()
    }

    /// Most tokens of a sequence: the target's context, whatever the draft's.
    pub fn context(&self) -> usize {
        self.target.context()
    }

    /// What is remarkable about the two checkpoints, the target's first.
    pub fn remarks(&self) -> impl Iterator<Item = Remark> {
        let draft = self.draft.iter().flat_map(|draft| &draft.remarks);
        self.target.remarks.iter().chain(draft).cloned()
    }

    /// The remark that texts of up to `longest` tokens, prompt included, go beyond the draft's context.
    pub fn draft_remark(&self, longest: usize) -> Option<Remark> {
        let draft = self.draft.as_ref()?;
        let (context, target) = (draft.context(), self.context());
        (longest.min(target) > context).then(|| {
            let text = format!(
                "the draft `{}` has a context of {context} tokens, the target {target}: texts go on \
                 without speculation beyond it",
                draft.source.name,
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
        &self.target.config.eos_token_ids
    }

    /// How the target's authors recommend to choose tokens.
    pub fn recommended_sampling(&self) -> &RecommendedSampling {
        &self.target.config.recommended_sampling
    }

    /// The target's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.target.tokenizer
    }

    /// A system message for conversations that have none, where one was asked for.
    pub fn system(&self) -> Option<&str> {
        self.target.prompts.system.as_deref()
    }

    /// Makes token ids of prompts.
    pub fn encoder(&self) -> TextEncoder<'_> {
        TextEncoder {
            tokenizer: Some(&self.target.tokenizer),
            template: self.target.template.as_ref(),
            render: self.target.prompts.render(),
            vocab_size: self.vocab,
        }
    }

    /// Loads the target and, where there is one, the draft, each with its threads of `placement`.
    pub fn load(
        &self,
        placement: Placement,
        output: Output,
    ) -> Result<(Model<Cpu>, Option<Model<Cpu>>)> {
        let refuse = |error: CpuError| Error::Request(error.to_string());
        let load = |from: &Checkpoint, alone: usize, together: usize, cores: Option<Vec<usize>>| {
            let threads = u16::try_from(alone).ok();
            let compute = ComputeArgs { precision: self.precision, threads, isa: self.isa };
            let mut cpu = compute.backend()?.with_threads_beside(together).map_err(refuse)?;
            if let Some(cores) = cores {
                cpu = cpu.pinned(&cores).map_err(refuse)?;
            }
            from.source.load(cpu, output)
        };
        let Placement { alone, together, .. } = placement;
        let (of_target, of_draft) = pinned_cores(placement)?.unzip();
        let target = load(&self.target, alone.target, together.target, of_target)?;
        let draft = |draft| load(draft, alone.draft, together.draft, of_draft);
        Ok((target, self.draft.as_ref().map(draft).transpose()?))
    }
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
