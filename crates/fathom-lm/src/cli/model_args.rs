//! `--model` and its options: the arguments of every command that runs a model.

use std::path::Path;

use crate::{CpuOptions, Model, ModelFiles, ModelOptions, Result, Weights};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum};
use fathom_kernels::{Cpu, Isa};

use crate::cli::output::Output;
use crate::cli::progress::LoadingBar;

/// The model to run, and how to run it.
#[derive(Debug, Args)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    /// A HuggingFace checkpoint directory, or the hub id (`org/name`, `org/name@revision`) of one
    /// in the HuggingFace cache
    #[arg(long, value_name = "M")]
    pub model: String,
    /// A LoRA adapter in PEFT format to merge into the model: a directory with an
    /// adapter_config.json, or a hub id in the HuggingFace cache
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<String>,
    #[command(flatten)]
    pub compute: ComputeArgs,
}

/// How to run a model.
#[derive(Clone, Copy, Debug, Args)]
#[command(next_help_heading = "Model")]
pub struct ComputeArgs {
    /// Precision of matrix product operands, keys and values; accumulation and the residual stream
    /// are always f32
    #[arg(long, value_enum, default_value_t = Precision::F32, value_name = "P")]
    pub precision: Precision,
    /// Number of threads [default: one per CPU this process may use]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Instruction set of the kernels; see `fathom doctor` [default: the best this machine
    /// supports]
    #[arg(long, value_name = "SET", value_parser = isa(), hide_short_help = true)]
    pub isa: Option<Isa>,
}

/// Parses the name of an instruction set.
pub fn isa() -> impl TypedValueParser<Value = Isa> {
    let named = |name: String| Isa::ALL.into_iter().find(|isa| isa.name() == name);
    PossibleValuesParser::new(Isa::ALL.map(Isa::name))
        .try_map(move |name| named(name).ok_or("no such instruction set"))
}

/// `--precision`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Precision {
    /// Everything in f32, the reference
    F32,
    /// Rounded to bfloat16: faster, with half the key/value cache
    Bf16,
}

impl Precision {
    /// The name in options and manifests.
    pub fn name(self) -> &'static str {
        fathom_backend::Precision::from(self).name()
    }
}

impl From<Precision> for fathom_backend::Precision {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::F32 => fathom_backend::Precision::F32,
            Precision::Bf16 => fathom_backend::Precision::Bf16,
        }
    }
}

impl ComputeArgs {
    /// The options for the library.
    pub fn options(&self) -> CpuOptions {
        let precision = self.precision.into();
        CpuOptions { threads: self.threads.map(usize::from), precision, isa: self.isa }
    }

    /// The CPU backend with these options.
    pub fn backend(&self) -> Result<Cpu> {
        crate::cpu(self.options())
    }
}

impl ModelArgs {
    /// The options for the library.
    pub fn options(&self) -> ModelOptions {
        let options = ModelOptions::new(&self.model).cpu(self.compute.options());
        match &self.adapter {
            Some(adapter) => options.adapter(adapter),
            None => options,
        }
    }
}

/// Loads a model, with a progress bar.
pub fn load(files: ModelFiles, output: Output) -> Result<Model> {
    let mut bar = LoadingBar::new(output);
    files.load_with(&mut |done, layers| bar.show(done, layers))
}

/// Loads only the weights of the checkpoint in `dir`, with a progress bar.
pub fn load_weights(dir: &Path, cpu: Cpu, output: Output) -> Result<Weights> {
    let mut bar = LoadingBar::new(output);
    Weights::load_with_progress(dir, cpu, &mut |done, layers| bar.show(done, layers))
}
