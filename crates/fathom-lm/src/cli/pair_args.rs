//! `--target` and the options of target and draft: the arguments of commands that generate text.

use crate::{CpuOptions, Error, ModelOptions, Pair, Placement, Result, available_cores, placement};
use clap::Args;
use fathom_kernels::Isa;

use crate::cli::model_args::{self, Precision};
use crate::cli::prompt_args::PromptArgs;

/// The target model, and how to run it and its draft.
#[derive(Debug, Args)]
pub struct PairArgs {
    /// The model that generates the text: a HuggingFace checkpoint directory, or the hub id
    /// (`org/name`, `org/name@revision`) of one in the HuggingFace cache
    #[arg(long, value_name = "M")]
    pub target: String,
    /// A LoRA adapter in PEFT format to merge into the target: a directory with an
    /// adapter_config.json, or a hub id in the HuggingFace cache
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<String>,
    /// A LoRA adapter to merge into the draft, as for --adapter
    #[arg(long, value_name = "DIR", requires = "draft")]
    pub draft_adapter: Option<String>,
    /// Precision of matrix product operands, keys and values; accumulation and the residual stream
    /// are always f32
    #[arg(long, value_enum, default_value_t = Precision::F32, value_name = "P")]
    pub precision: Precision,
    /// Threads of the target [default: the CPUs this process may use, less the draft's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    target_threads: Option<u16>,
    /// Threads of the draft [default: a quarter of the CPUs this process may use]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    draft_threads: Option<u16>,
    /// Instruction set of the kernels; see `fathom doctor` [default: the best this machine
    /// supports]
    #[arg(long, value_name = "SET", value_parser = model_args::isa(), hide_short_help = true)]
    isa: Option<Isa>,
    /// Pin every thread to its own core: steadier on an idle machine, slower on a busy one
    #[arg(long)]
    pin: bool,
}

impl PairArgs {
    /// The threads of target and draft: `--target-threads` and `--draft-threads`, or a division of
    /// the available cores.
    pub fn placement(&self) -> Placement {
        let number = |n: Option<u16>| n.map(usize::from);
        let (target, draft) = (number(self.target_threads), number(self.draft_threads));
        placement(available_cores(), target, draft, self.pin)
    }

    /// Reads everything but the weights, and checks that both models share one vocabulary.
    pub fn open(&self, draft: Option<&str>, prompts: &PromptArgs) -> Result<Pair> {
        if let (None, Some(adapter)) = (draft, &self.draft_adapter) {
            return Err(Error::Request(format!(
                "--draft-adapter {adapter} needs a draft model, and there is none"
            )));
        }
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
