//! `--target`, `--draft` and how to run them: the arguments of every command that generates.

use crate::{CpuOptions, ModelOptions, Pair, Placement, Result, available_cores, placement};
use clap::Args;
use fathom_kernels::Isa;

use crate::cli::model_args::{self, Precision};
use crate::cli::prompt_args::PromptArgs;

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
    /// Operands of matrix products, keys and values; accumulation and the residual stream are f32
    /// in both
    #[arg(long, value_enum, default_value_t = Precision::F32, value_name = "P")]
    pub precision: Precision,
    /// Threads of the target [default: what the draft leaves of the CPUs this process may use]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    target_threads: Option<u16>,
    /// Threads of the draft [default: one CPU in four]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    draft_threads: Option<u16>,
    /// Instruction set of the kernels, as `fathom doctor` lists them [default: the best this
    /// machine runs]
    #[arg(long, value_name = "SET", value_parser = model_args::isa(), hide_short_help = true)]
    isa: Option<Isa>,
    /// Keep every thread on a core of its own: steadier where nothing else runs, slower where
    /// something does
    #[arg(long)]
    pin: bool,
}

impl PairArgs {
    /// Who has which threads: alone all of them, beside the other a share, `--target-threads` and
    /// `--draft-threads` first.
    pub fn placement(&self) -> Placement {
        let number = |n: Option<u16>| n.map(usize::from);
        let (target, draft) = (number(self.target_threads), number(self.draft_threads));
        placement(available_cores(), target, draft, self.pin)
    }

    /// Reads everything but the weights, and checks that the two speak one language.
    pub fn open(&self, draft: Option<&str>, prompts: &PromptArgs) -> Result<Pair> {
        let cpu = CpuOptions { threads: None, precision: self.precision.into(), isa: self.isa };
        let model = |name: &str, adapter: &Option<String>| {
            let options = ModelOptions::new(name).cpu(cpu);
            match adapter {
                Some(adapter) => options.adapter(adapter),
                None => options,
            }
        };
        let target = prompts.apply(model(&self.target, &self.adapter));
        Pair::open(target, draft.map(|draft| model(draft, &self.draft_adapter)))
    }
}
