//! `fathom explain`: how the sinks of a run form, and what they do.

use std::io::Write;
use std::path::{Path, PathBuf};

use fathom_model::{Error, ModelConfig, Remarks, Result, data_files};
use fathom_report::finding;
use fathom_sinks::explain::{
    Analysis, ExplainOptions, ExplainProgress, Explanation, Inputs, check_adapter, check_model,
    check_traces, result_file,
};
use fathom_sinks::{ModelNote, Run};
use indicatif::ProgressBar;
use serde_json::json;

use crate::cli::Output;
use crate::commands::scan::engine;
use crate::failure::Failure;
use crate::model_args::{ComputeArgs, Precision, TextFiles};
use crate::model_source::{AdapterSource, ModelSource};
use crate::progress;
use crate::traces::{Reading, Traces, read_traces};

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
    let asked = args.analyses.asked();
    let explanation = Explanation::new(&run, &asked, options)?;
    let left: Vec<&str> = explanation.analyses().iter().map(|analysis| analysis.name()).collect();
    if !left.is_empty() {
        progress::note(output, &format!("{}: {}", left.join(", "), explanation.cost()));
    }
    if explanation.needs_model() {
        with_model(args, &run, &explanation, output)?;
    } else {
        explanation.without_model()?;
    }

    say(run.dir(), &asked, output, out)
}

/// Says what was found, a sentence an analysis, and where the result lies.
fn say(run: &Path, asked: &[Analysis], output: Output, out: &mut dyn Write) -> Result<(), Failure> {
    let mut files = serde_json::Map::new();
    let mut findings = serde_json::Map::new();
    for analysis in asked {
        let file = result_file(run, *analysis).display().to_string();
        let found = finding(run, *analysis)?.unwrap_or_default();
        if !output.json {
            writeln!(out, "{file}\n    {found}")?;
        }
        files.insert(analysis.name().to_owned(), json!(file));
        findings.insert(analysis.name().to_owned(), json!(found));
    }
    if output.json {
        writeln!(out, "{}", json!({ "run": run, "explain": files, "findings": findings }))?;
    }
    Ok(())
}

fn with_model(args: &Args, run: &Run, explanation: &Explanation<'_>, output: Output) -> Result<()> {
    let manifest = run.manifest();
    let source = args.source(&manifest.model)?;
    let traces = args.traces.as_deref().unwrap_or(Path::new(&manifest.traces.file));
    if args.traces.is_none() && manifest.traces.sha256.is_empty() {
        let problem =
            "the run's traces came from standard input, and are gone: it cannot be explained";
        return Err(Error::Request(problem.to_owned()));
    }
    let all_there = |files: Vec<PathBuf>| files.iter().all(|file| file.exists());
    if args.traces.is_none() && !data_files(traces)?.is_some_and(all_there) {
        let problem = "the run's traces are not here any more: give `--traces`";
        return Err(Error::file(traces, problem));
    }
    check_traces(run, traces)?;
    check_model(run, &source.dir)?;
    if let Some(adapter) = &source.adapter {
        check_adapter(run, &adapter.dir)?;
    }

    let options = &manifest.options;
    let config = ModelConfig::from_dir(&source.dir)?;
    let text = TextFiles::from_dir(&source.dir, !options.chat_template, options.prompts.clone())?;
    // What is remarkable about them was told by the scan, and is in the run's manifest.
    let read = manifest.traces.read.as_ref();
    let reading = Reading {
        fields: read.map(|read| read.named.clone()).unwrap_or_default(),
        limit: options.limit,
        skip_bad_lines: read.is_some_and(|read| !read.skipped.is_empty()),
    };
    let Traces { traces, .. } = read_traces(traces, &text, &config, &reading, &mut Remarks::new())?;
    let precision = match options.precision.as_str() {
        "bf16" => Precision::Bf16,
        _ => Precision::F32,
    };
    let compute = ComputeArgs { precision, threads: args.threads, isa: None };
    let model = source.load(compute.backend()?, output)?;
    let checkpoint = source.checkpoint(&config)?;
    let mut bar = Bar { output, bar: ProgressBar::hidden() };
    let tokenizer = text.tokenizer.as_ref();
    let inputs = Inputs {
        model: &model,
        checkpoint: &checkpoint,
        traces: &traces,
        text: &|ids| tokenizer.and_then(|tokenizer| tokenizer.decode(ids).ok()),
        engine: &engine(&model),
    };
    let explained = explanation.with_model(&inputs, &mut bar);
    bar.bar.finish_and_clear();
    explained
}

impl Args {
    /// Where the run's model is.
    fn source(&self, scanned: &ModelNote) -> Result<ModelSource> {
        let name = self.model.as_deref().unwrap_or(&scanned.id);
        let source = ModelSource::find(name, None).map_err(|error| match &self.model {
            Some(_) => error,
            None => Error::Request(format!(
                "the run's model is not here: {error}; if it is elsewhere, name that with `--model`"
            )),
        })?;
        Ok(ModelSource { adapter: self.adapter(scanned)?, ..source })
    }

    /// Where the run's adapter is, if it had one.
    fn adapter(&self, scanned: &ModelNote) -> Result<Option<AdapterSource>> {
        match (&self.adapter, &scanned.adapter) {
            (None, None) => Ok(None),
            (Some(_), None) => {
                let problem = "--adapter: the run's model had no adapter, and is explained as it was";
                Err(Error::Request(problem.to_owned()))
            }
            (Some(name), Some(_)) => AdapterSource::find(name).map(Some),
            (None, Some(scanned)) => AdapterSource::find(&scanned.path).map(Some).map_err(|_| {
                Error::Request(format!(
                    "the run's adapter `{}` is not here: if it is elsewhere, name that with `--adapter`",
                    scanned.path
                ))
            }),
        }
    }
}

/// A progress bar a step.
struct Bar {
    output: Output,
    bar: ProgressBar,
}

impl ExplainProgress for Bar {
    fn start(&mut self, step: &'static str, unit: &'static str, steps: usize) {
        self.bar.finish_and_clear();
        self.bar = progress::bar(self.output, step, unit, steps as u64);
    }

    fn advance(&mut self, steps: usize) {
        self.bar.inc(steps as u64);
    }
}
