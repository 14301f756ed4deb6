//! `fathom plant`: writes a model with known sinks.

use std::io::Write;
use std::path::PathBuf;

use fathom_sinks::plant::{PlantOptions, PlantedSequence, plant};
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
    #[command(flatten)]
    more: MoreArgs,
}

/// What else to plant.
#[derive(Debug, clap::Args)]
struct MoreArgs {
    /// Plant two phases
    ///
    /// The BOS token is a sink at early layers, falls back, and is one again at late layers. Some
    /// tokens are sinks in the early phase only, some in the late one only, and some in both. The
    /// early ones are listed by scan --phases all.
    #[arg(long)]
    two_phases: bool,
    /// Plant tokens that draw attention without being sinks
    ///
    /// At some layers, some heads give them a sink score above 0.3, although they are not aligned
    /// with the BOS token and have ordinary norms.
    #[arg(long)]
    attention_only: bool,
    /// Plant massive activations without sinks
    ///
    /// From some layer on, one or two components of the residual stream are above 100 and above
    /// 1000 times the median component, in absolute value. These tokens draw no attention.
    #[arg(long)]
    massive: bool,
}

pub fn run(args: &Args, output: Output, out: &mut dyn Write) -> Result<(), Failure> {
    let MoreArgs { two_phases, attention_only, massive } = args.more;
    let Args { seed, traces, .. } = *args;
    let options = PlantOptions { seed, traces, two_phases, attention_only, massive };
    let truth = plant(&args.out, &options)?;
    let sinks: usize = truth.sequences.iter().map(|sequence| sequence.sinks.len()).sum();
    let decoys: usize = truth.sequences.iter().map(|sequence| sequence.decoys.len()).sum();
    let count = |tokens: &dyn Fn(&PlantedSequence) -> usize| -> usize {
        truth.sequences.iter().map(tokens).sum()
    };
    let dir = args.out.display();
    if output.json {
        let mut planted = json!({
            "model": dir.to_string(),
            "layers": truth.layers,
            "traces": truth.sequences.len(),
            "sinks": sinks,
            "decoys": decoys,
        });
        if two_phases {
            planted["phases"] = json!(truth.phases);
        }
        if attention_only {
            planted["attention_only"] = json!(count(&|sequence| sequence.attention_only.len()));
        }
        if massive {
            planted["massive"] = json!(count(&|sequence| sequence.massive.len()));
        }
        writeln!(out, "{planted}")?;
    } else {
        writeln!(
            out,
            "{dir}: {} layers, {} traces with {sinks} sinks and {decoys} decoys, listed in \
             truth.json",
            truth.layers,
            truth.sequences.len()
        )?;
        if let [early, late] = truth.phases[..] {
            let (early, late) = (early.layers(), late.layers());
            writeln!(out, "Two phases: layers {early:?} and {late:?}")?;
        }
        if attention_only {
            let tokens = count(&|sequence| sequence.attention_only.len());
            writeln!(out, "{tokens} tokens that draw attention and are not sinks")?;
        }
        if massive {
            let tokens = count(&|sequence| sequence.massive.len());
            writeln!(out, "{tokens} tokens with massive activations that are not sinks")?;
        }
    }
    Ok(())
}
