//! `fathom explain`: how the sinks of a run form, and what they do.

use std::io::Write;
use std::path::PathBuf;

use crate::{Analysis, Explain, ExplainOptions, Explained, Result, Run, RunInputs};
use serde_json::{Map, json};

use crate::cli::failure::Failure;
use crate::cli::output::Output;
use crate::cli::progress::{self, StepBar};

/// Explain the sinks of a run: how they form and what they do
///
/// Runs the run's traces through its model again and writes RUN/explain/ANALYSIS.json for each
/// analysis. Analyses share one pass over the traces; what takes more says so. What is there
/// already is kept, so an interrupted explain goes on where it stopped.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  \
    fathom scan --model ./qwen --traces traces.jsonl --out run --attention\n  \
    fathom explain run\n  \
    fathom explain run --swap --max-sinks 50")]
pub struct Args {
    /// Run directory of a finished scan
    #[arg(value_name = "RUN")]
    run: PathBuf,
    #[command(flatten)]
    analyses: Analyses,
    /// The run's model, where it is not to be found under the name it was scanned by
    #[arg(long, value_name = "M")]
    model: Option<String>,
    /// The run's adapter, where it is not to be found under the name it was scanned by
    #[arg(long, value_name = "DIR")]
    adapter: Option<String>,
    /// The run's traces, where they are not to be found under the name they were scanned by
    #[arg(long, value_name = "FILE")]
    traces: Option<PathBuf>,
    /// Look at no more than N sinks where vectors are kept or the model is run for each
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    max_sinks: u32,
    /// Seed of what is chosen by chance
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    seed: u64,
    /// Threads to compute with [default: one per CPU this process may use]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
}

/// What to explain; everything where none is named.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Analyses (all, unless some are named)")]
struct Analyses {
    /// Cosines with the reference at every MLP stage, at l_start and the layers beside it
    #[arg(long)]
    stages: bool,
    /// Principal components of the MLP's input at l_start, each swept through the MLP
    #[arg(long)]
    pca: bool,
    /// t-SNE, silhouette and linear separability of future sinks by layer and site
    #[arg(long)]
    clusters: bool,
    /// Replace future sinks by the mean token, by layer and site: which are suppressed
    #[arg(long)]
    swap: bool,
    /// Sink scores and lifetimes against the norm the MLP writes
    #[arg(long)]
    effect: bool,
    /// Matrix-based entropy of the residual stream by layer and growing window
    #[arg(long)]
    entropy: bool,
    /// Clamp what makes sinks at a layer: later layers, logits
    #[arg(long)]
    suppress: bool,
    /// MLP neurons that write the sink direction, heads that read it, and ablation
    #[arg(long)]
    neurons: bool,
}

impl Analyses {
    fn asked(&self) -> Vec<Analysis> {
        let named = [
            (Analysis::Stages, self.stages),
            (Analysis::Pca, self.pca),
            (Analysis::Clusters, self.clusters),
            (Analysis::Swap, self.swap),
            (Analysis::Effect, self.effect),
            (Analysis::Entropy, self.entropy),
            (Analysis::Suppress, self.suppress),
            (Analysis::Neurons, self.neurons),
        ];
        let all = !named.iter().any(|(_, asked)| *asked);
        named.iter().filter(|(_, asked)| all || *asked).map(|(analysis, _)| *analysis).collect()
    }
}

pub fn run(args: &Args, output: Output, out: &mut dyn Write) -> Result<(), Failure> {
    let run = Run::open(&args.run)?;
    let max_sinks = usize::try_from(args.max_sinks).unwrap_or(usize::MAX);
    let options = ExplainOptions { seed: args.seed, max_sinks };
    let explain = Explain::new(&run, &args.analyses.asked(), options)?;
    let left: Vec<&str> = explain.left().iter().map(|analysis| analysis.name()).collect();
    if !left.is_empty() {
        progress::note(output, &format!("{}: {}", left.join(", "), explain.cost()));
    }
    let inputs = RunInputs {
        model: args.model.clone(),
        adapter: args.adapter.clone(),
        traces: args.traces.clone(),
        threads: args.threads.map(usize::from),
    };
    explain.run(&inputs, &mut StepBar::new(output))?;
    say(&run, &explain.findings()?, output, out)
}

/// Says what was found, a sentence an analysis, and where the result lies.
fn say(run: &Run, found: &[Explained], output: Output, out: &mut dyn Write) -> Result<(), Failure> {
    let mut files = Map::new();
    let mut findings = Map::new();
    for Explained { analysis, file, finding } in found {
        let file = file.display().to_string();
        if !output.json {
            writeln!(out, "{file}\n    {finding}")?;
        }
        files.insert(analysis.name().to_owned(), json!(file));
        findings.insert(analysis.name().to_owned(), json!(finding));
    }
    if output.json {
        let run = run.dir();
        writeln!(out, "{}", json!({ "run": run, "explain": files, "findings": findings }))?;
    }
    Ok(())
}
