//! `--model` and how to run it: the arguments of every command that runs one.

use std::path::Path;

use crate::{CpuOptions, Model, ModelFiles, ModelOptions, Result, Weights};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum};
use fathom_kernels::{Cpu, Isa};

use crate::cli::output::Output;
use crate::cli::progress::LoadingBar;

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
    /// As the library takes it.
    pub fn options(&self) -> CpuOptions {
        let precision = self.precision.into();
        CpuOptions { threads: self.threads.map(usize::from), precision, isa: self.isa }
    }

    /// The CPU, set up as asked.
    pub fn backend(&self) -> Result<Cpu> {
        crate::cpu(self.options())
    }
}

impl ModelArgs {
    /// As the library takes it.
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

/// Loads the weights of the checkpoint in `dir`, with a progress bar: to be measured.
pub fn load_weights(dir: &Path, cpu: Cpu, output: Output) -> Result<Weights> {
    let mut bar = LoadingBar::new(output);
    Weights::load_with_progress(dir, cpu, &mut |done, layers| bar.show(done, layers))
}
