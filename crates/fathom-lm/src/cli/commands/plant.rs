//! `fathom plant`: writes a model with known sinks.

use std::io::Write;
use std::path::PathBuf;

use fathom_sinks::plant::{PlantOptions, plant};
use serde_json::json;

use crate::cli::failure::Failure;
use crate::cli::output::Output;

/// Write a small model with attention sinks at known places
///
/// Writes a HuggingFace checkpoint with tokenizer and chat template, traces.jsonl, and truth.json,
/// which lists the sinks that a detector must find in the traces. Nothing is trained or downloaded.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  \
    fathom plant --out planted\n  \
    fathom scan --model planted --traces planted/traces.jsonl --out run --attention\n  \
    fathom table run")]
pub struct Args {
    /// The directory to write, which must be new or empty
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Random seed; the same seed gives the same bytes
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
    /// Number of traces to write
    #[arg(long, value_name = "N", default_value_t = PlantOptions::default().traces)]
    traces: usize,
}

pub fn run(args: &Args, output: Output, out: &mut dyn Write) -> Result<(), Failure> {
    let options = PlantOptions { seed: args.seed, traces: args.traces };
    let truth = plant(&args.out, &options)?;
    let sinks: usize = truth.sequences.iter().map(|sequence| sequence.sinks.len()).sum();
    let decoys: usize = truth.sequences.iter().map(|sequence| sequence.decoys.len()).sum();
    let dir = args.out.display();
    if output.json {
        let planted = json!({
            "model": dir.to_string(),
            "layers": truth.layers,
            "traces": truth.sequences.len(),
            "sinks": sinks,
            "decoys": decoys,
        });
        writeln!(out, "{planted}")?;
    } else {
        writeln!(
            out,
            "{dir}: {} layers, {} traces with {sinks} sinks and {decoys} decoys, listed in \
             truth.json",
            truth.layers,
            truth.sequences.len()
        )?;
    }
    Ok(())
}
