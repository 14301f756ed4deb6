//! `--model` and how to run it: the arguments of every command that runs one.

use std::path::Path;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum};
use fathom_kernels::{Cpu, CpuOptions, Isa};
use fathom_model::{
    ChatTemplate, Error, Model, PromptOptions, Remark, Result, TextEncoder, Tokenizer,
};

use crate::cli::Output;
use crate::model_source::ModelSource;

/// Which model to run, and how.
#[derive(Debug, Args)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    /// A HuggingFace checkpoint directory, or the hub id (`org/name`, `org/name@revision`) of one
    /// in the HuggingFace cache
    #[arg(long, value_name = "M")]
    pub model: String,
    /// A LoRA adapter in PEFT's format, which is merged into the model: a directory with an
    /// adapter_config.json, or the hub id of one in the cache
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<String>,
    #[command(flatten)]
    pub compute: ComputeArgs,
}

/// How to run a model.
#[derive(Clone, Copy, Debug, Args)]
#[command(next_help_heading = "Model")]
pub struct ComputeArgs {
    /// Operands of matrix products, keys and values; accumulation and the residual stream are f32
    /// in both
    #[arg(long, value_enum, default_value_t = Precision::F32, value_name = "P")]
    pub precision: Precision,
    /// Threads to compute with [default: one per CPU this process may use]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Instruction set of the kernels, as `fathom doctor` lists them [default: the best this
    /// machine runs]
    #[arg(long, value_name = "SET", value_parser = isa(), hide_short_help = true)]
    pub isa: Option<Isa>,
}

/// An instruction set by its name.
pub fn isa() -> impl TypedValueParser<Value = Isa> {
    let named = |name: String| Isa::ALL.into_iter().find(|isa| isa.name() == name);
    PossibleValuesParser::new(Isa::ALL.map(Isa::name))
        .try_map(move |name| named(name).ok_or("no such instruction set"))
}

/// `--precision`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Precision {
    /// Everything in f32: the reference
    F32,
    /// Rounded to bfloat16: faster, half the cache
    Bf16,
}

impl Precision {
    /// Its name in options and manifests.
    pub fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
        }
    }
}

impl From<Precision> for fathom_kernels::Precision {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::F32 => fathom_kernels::Precision::F32,
            Precision::Bf16 => fathom_kernels::Precision::Bf16,
        }
    }
}

impl ComputeArgs {
    /// The CPU, set up as asked.
    pub fn backend(&self) -> Result<Cpu> {
        let precision = self.precision.into();
        let threads = self.threads.map(usize::from);
        Cpu::new(CpuOptions { threads, precision, isa: self.isa })
            .map_err(|error| Error::Request(error.to_string()))
    }
}

impl ModelArgs {
    /// Where the model is.
    pub fn source(&self) -> Result<ModelSource> {
        ModelSource::find(&self.model, self.adapter.as_deref())
    }
}

/// Loads the model of `dir`, with a progress bar.
pub fn load(dir: &Path, compute: ComputeArgs, output: Output) -> Result<Model<Cpu>> {
    load_on(dir, compute.backend()?, output)
}

/// As [`load`], on a machine that is set up already.
pub fn load_on(dir: &Path, cpu: Cpu, output: Output) -> Result<Model<Cpu>> {
    ModelSource::from(dir).load(cpu, output)
}

/// The part of a checkpoint that turns text into ids. All of it may be absent: traces of explicit
/// ids need none.
pub struct TextFiles {
    pub tokenizer: Option<Tokenizer>,
    pub template: Option<ChatTemplate>,
    pub options: PromptOptions,
    /// Templates that are there and not read.
    unread: Vec<Remark>,
}

impl TextFiles {
    /// Reads the tokenizer of `dir` and, unless `bare_text`, its chat template.
    pub fn from_dir(dir: &Path, bare_text: bool, options: PromptOptions) -> Result<TextFiles> {
        let template = if bare_text { None } else { ChatTemplate::from_dir(dir)? };
        let unread = match (&template, bare_text) {
            (None, false) => ChatTemplate::unread(dir),
            _ => Vec::new(),
        };
        let mut tokenizer = Tokenizer::find(dir)?;
        options.check(tokenizer.as_ref(), template.as_ref())?;
        if let Some(tokenizer) = &mut tokenizer {
            tokenizer.set_bos(options.bos)?;
        }
        Ok(TextFiles { tokenizer, template, options, unread })
    }

    /// What is remarkable about them.
    pub fn remarks(&self) -> impl Iterator<Item = Remark> {
        let tokenizer = self.tokenizer.iter().flat_map(Tokenizer::remarks);
        let template = self.template.iter().flat_map(ChatTemplate::remarks);
        tokenizer.chain(template).chain(&self.unread).cloned()
    }

    /// The encoder for a model with `vocab_size` embeddings.
    pub fn encoder(&self, vocab_size: usize) -> TextEncoder<'_> {
        TextEncoder {
            tokenizer: self.tokenizer.as_ref(),
            template: self.template.as_ref(),
            render: self.options.render(),
            vocab_size,
        }
    }
}
