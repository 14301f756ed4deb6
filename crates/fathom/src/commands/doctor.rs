//! `fathom doctor`: what this CPU offers and what the kernels make of it.

use std::io::Write;

use fathom_kernels::{Isa, cpu_features};
use serde_json::{Map, Value, json};

use crate::cli::Output;
use crate::failure::Failure;
use crate::model_args::ComputeArgs;

/// Say what this CPU offers and what the engine will use
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  fathom doctor --json")]
pub struct Args {
    #[command(flatten)]
    compute: ComputeArgs,
}

pub fn run(args: &Args, output: Output, out: &mut dyn Write) -> Result<(), Failure> {
    let cpu = args.compute.backend()?;
    let runnable: Vec<&str> =
        Isa::ALL.iter().filter(|isa| isa.is_supported()).map(|isa| isa.name()).collect();
    let features = cpu_features();
    if output.json {
        let features = features.iter().map(|f| (f.name.to_owned(), f.present.into()));
        let report = json!({
            "architecture": std::env::consts::ARCH,
            "threads": cpu.threads(),
            "features": features.collect::<Map<String, Value>>(),
            "kernels": cpu.isa().name(),
            "kernels_this_cpu_runs": runnable,
        });
        writeln!(out, "{report}")?;
        return Ok(());
    }
    let named = |present: bool| {
        let names: Vec<&str> =
            features.iter().filter(|f| f.present == present).map(|f| f.name).collect();
        if names.is_empty() { "none".to_owned() } else { names.join(", ") }
    };
    writeln!(out, "architecture     {}", std::env::consts::ARCH)?;
    writeln!(out, "threads          {}", cpu.threads())?;
    writeln!(out, "CPU has          {}", named(true))?;
    writeln!(out, "CPU lacks        {}", named(false))?;
    writeln!(out, "kernels in use   {}", cpu.isa())?;
    writeln!(out, "kernels it runs  {}", runnable.join(", "))?;
    Ok(())
}
