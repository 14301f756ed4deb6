//! `fathom explain`: how the sinks of a run form, and what they do.

use std::io::Write;
use std::path::PathBuf;

use crate::{
    Analysis, Explain, ExplainOptions, Explained, KeyOptions, KnockoutBy, Remark, Result, Run,
    RunInputs,
};
use serde_json::{Map, json};

use crate::cli::failure::Failure;
use crate::cli::indices::Indices;
use crate::cli::output::Output;
use crate::cli::progress::{self, StepBar};

/// Explain the sinks of a run: how they form and what they do
///
/// Re-runs the run's traces through its model and writes RUN/explain/ANALYSIS.json for each
/// analysis. Analyses share one pass over the traces; a message states what needs more passes.
/// Results that are up to date are kept, so an interrupted explain continues where it stopped.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  \
    fathom scan --model ./qwen --traces traces.jsonl --out run --attention\n  \
    fathom explain run\n  \
    fathom explain run --swap --max-sinks 50\n  \
    fathom explain run --knockout --evict --budgets 64,512")]
pub struct Args {
    /// Run directory of a finished scan
    #[arg(value_name = "RUN")]
    run: PathBuf,
    #[command(flatten)]
    analyses: Analyses,
    /// The run's model, if it has moved since the scan
    #[arg(long, value_name = "M")]
    model: Option<String>,
    /// The run's adapter, if it has moved since the scan
    #[arg(long, value_name = "DIR")]
    adapter: Option<String>,
    /// The run's traces, if they have moved since the scan
    #[arg(long, value_name = "FILE")]
    traces: Option<PathBuf>,
    /// Maximum number of sinks for which vectors are stored or the model is re-run
    #[arg(
        long,
        value_name = "N",
        default_value_t = 200,
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    max_sinks: u32,
    /// Seed of the random choice of sinks and other tokens
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    seed: u64,
    /// Threads to compute with [default: one per CPU this process may use]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    #[command(flatten)]
    keys: KeyArgs,
}

/// Settings of `--knockout` and `--evict`.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Knock-out and eviction")]
struct KeyArgs {
    /// How keys are knocked out: hidden from later tokens, or their values set to zero
    #[arg(long, value_name = "HOW", default_value = "hide")]
    knockout_by: By,
    /// Layers at which keys are knocked out, as in `3,17..22` [default: all]
    #[arg(long, value_name = "LAYERS", allow_hyphen_values = true)]
    knockout_layers: Option<Indices>,
    /// How many times random tokens are drawn to compare with
    #[arg(
        long,
        value_name = "N",
        default_value_t = 3,
        value_parser = clap::value_parser!(u16).range(0..=100)
    )]
    draws: u16,
    /// Numbers of keys that eviction keeps, as in `64,512`; skipped for traces that are not longer
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_values_t = KeyOptions::BUDGETS
    )]
    budgets: Vec<usize>,
}

/// See [`KnockoutBy`].
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum By {
    Hide,
    Zero,
}

impl KeyArgs {
    /// The settings for a model of `layers` layers.
    fn options(&self, layers: usize) -> Result<KeyOptions> {
        let knockout_layers = match &self.knockout_layers {
            Some(indices) => indices.resolve("layer", layers)?,
            None => Vec::new(),
        };
        let budgets = match self.budgets == KeyOptions::BUDGETS {
            true => Vec::new(),
            false => self.budgets.clone(),
        };
        let knockout_by = match self.knockout_by {
            By::Hide => KnockoutBy::Hide,
            By::Zero => KnockoutBy::Zero,
        };
        Ok(KeyOptions { knockout_by, knockout_layers, draws: self.draws.into(), budgets })
    }
}

/// The requested analyses: one flag for each of [`Analysis::ALL`]. Without flags,
/// [`Analysis::by_default`].
#[derive(Debug)]
struct Analyses(Vec<Analysis>);

impl clap::Args for Analyses {
    fn augment_args(command: clap::Command) -> clap::Command {
        let flag = |analysis: Analysis| {
            clap::Arg::new(analysis.name())
                .long(analysis.name())
                .help(analysis.help())
                .help_heading("Analyses (all but eviction, unless some are named)")
                .action(clap::ArgAction::SetTrue)
        };
        command.args(Analysis::ALL.map(flag))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Analyses::augment_args(command)
    }
}

impl clap::FromArgMatches for Analyses {
    fn from_arg_matches(matches: &clap::ArgMatches) -> Result<Analyses, clap::Error> {
        let named = |analysis: &Analysis| matches.get_flag(analysis.name());
        let named: Vec<Analysis> = Analysis::ALL.into_iter().filter(named).collect();
        Ok(Analyses(if named.is_empty() { Analysis::by_default() } else { named }))
    }

    fn update_from_arg_matches(&mut self, matches: &clap::ArgMatches) -> Result<(), clap::Error> {
        *self = Analyses::from_arg_matches(matches)?;
        Ok(())
    }
}

pub fn run(args: &Args, output: Output, out: &mut dyn Write) -> Result<(), Failure> {
    let run = Run::open(&args.run)?;
    let max_sinks = usize::try_from(args.max_sinks).unwrap_or(usize::MAX);
    let keys = args.keys.options(run.manifest().model.layers)?;
    let options = ExplainOptions { seed: args.seed, max_sinks, keys };
    let explain = Explain::new(&run, &args.analyses.0, options)?;
    // The passes to come are those of the model alone, and the texts are not.
    let mut of_texts = run.manifest().remarks.clone();
    of_texts.retain(|remark| remark.kind == Remark::SUPPRESSED_TEXT);
    progress::remarks(output, &of_texts)?;
    let left: Vec<&str> = explain.remaining().iter().map(|analysis| analysis.name()).collect();
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
    print(&run, &explain.findings()?, output, out)
}

/// Prints the file and the finding of each analysis.
fn print(
    run: &Run,
    found: &[Explained],
    output: Output,
    out: &mut dyn Write,
) -> Result<(), Failure> {
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
