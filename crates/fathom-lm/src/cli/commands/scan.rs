//! `fathom scan`: finds attention sinks in traces and writes a run directory.

use std::io::Write;
use std::path::PathBuf;

use fathom_report::{sink_table, summary, unaligned_sentence};
use fathom_sinks::{Agreement, ReadNote, RunWriter, SinkRow};
use serde_json::json;

use crate::cli::failure::Failure;
use crate::cli::indices::Indices;
use crate::cli::model_args::{ModelArgs, load};
use crate::cli::output::Output;
use crate::cli::phases_arg::PhasesName;
use crate::cli::preset_arg::PresetName;
use crate::cli::progress::{self, ScanBar};
use crate::cli::prompt_args::PromptArgs;
use crate::cli::row_args::RowArgs;
use crate::{Error, Format, ReadOptions, Result, Run, ScanOptions, Traces, is_piped};

/// Find the attention sinks in a model's traces
///
/// Runs every trace through the model once and writes a run directory: run.json, detections.jsonl,
/// sinks.parquet, norms.parquet, tokens.parquet, measures.parquet and, with --attention,
/// scores.parquet. Each trace is on disk before the next starts; a scan that was killed continues
/// with --resume and ends with the same bytes.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  \
    fathom scan --model Qwen/Qwen2.5-0.5B-Instruct --traces traces.jsonl --out run --attention\n  \
    fathom table run\n\n\
    A trace is a row {\"prompt\": \"…\", \"output\": \"…\"}, {\"messages\": […]} that ends with \
    the assistant's answer, or {\"input_ids\": […]}.")]
pub struct Args {
    /// Traces: a JSONL, JSON or Parquet file (.gz and .zst too), a directory or a glob of such
    /// files, or `-` for standard input
    #[arg(long, value_name = "FILE")]
    traces: PathBuf,
    /// Run directory to write; it must be new or empty, unless --resume
    #[arg(long, value_name = "RUN")]
    out: PathBuf,
    /// Rules for detecting and classifying sinks
    #[arg(long, value_enum, default_value_t = PresetName::Paper, value_name = "NAME")]
    preset: PresetName,
    /// Minimum cosine with the reference sink for a token to be a sink [default: the preset's, 0.95
    /// or 0.9]
    #[arg(long, value_name = "τ", value_parser = parse_threshold)]
    threshold: Option<f32>,
    /// Candidate positions of the reference sink, such as `0,1,2`; the one with the largest norm is
    /// used
    #[arg(long, value_name = "POSITIONS", default_value = "0", value_parser = parse_reference,
          allow_hyphen_values = true)]
    reference: Indices,
    /// Minimum rise of the reference's norm, in multiples of the mean token's norm, for it to be a
    /// primary sink
    #[arg(long, value_name = "FACTOR", default_value_t = 5.0, value_parser = parse_rise)]
    rise: f32,
    /// Which sinks to list if the reference's norm is large in several runs of layers (phases);
    /// all are stored
    #[arg(long, value_enum, default_value_t = PhasesName::Largest, value_name = "WHICH")]
    phases: PhasesName,
    /// Also compute sink scores: the attention every token receives, per layer and head
    #[arg(long)]
    attention: bool,
    /// With --attention: write each head's score for every token, not only for sinks
    #[arg(long, requires = "attention")]
    all_heads: bool,
    /// Scan the first N tokens of each trace only
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: Option<u32>,
    /// Scan the first N traces only
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// Continue the run in --out
    #[arg(long)]
    resume: bool,
    #[command(flatten)]
    rows: RowArgs,
    #[command(flatten)]
    prompts: PromptArgs,
    #[command(flatten)]
    model: ModelArgs,
}

/// Reference positions must be below this: hidden states are kept up to the last candidate, so it
/// has to be a leading one.
pub const MAX_REFERENCE: usize = 256;

pub fn parse_reference(text: &str) -> Result<Indices, String> {
    let positions: Indices = text.parse()?;
    match positions.counts_from_end() {
        true => Err("the reference is among the first positions, counted from 0".to_owned()),
        false => Ok(positions),
    }
}

pub fn parse_threshold(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(threshold) if threshold > 0.0 && threshold < 1.0 => Ok(threshold),
        _ => Err("must be a number between 0 and 1".to_owned()),
    }
}

pub fn parse_rise(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(factor) if factor > 0.0 && factor.is_finite() => Ok(factor),
        _ => Err("must be a number above 0".to_owned()),
    }
}

pub fn run(args: &Args, output: Output, out: &mut dyn Write) -> Result<(), Failure> {
    match args.resume {
        true if is_piped(&args.traces)? => {
            let problem =
                "--resume: a run from standard input cannot be resumed; give --traces a file";
            return Err(Failure::Input(Error::Request(problem.to_owned())));
        }
        true => {}
        false => RunWriter::check_free(&args.out)?,
    }
    let files = args.prompts.apply(args.model.options()).open()?;
    let options = args.options()?;
    let traces = Traces::read_with(&args.traces, &files, &args.read_options())?;
    args.print_fields(traces.note(), output);
    progress::remarks(output, &files.scan_remarks(&traces, &options)?)?;
    let model = load(files, output)?;
    let mut bar = ScanBar::new(output);
    let scan = model.scan(&traces, options).out(&args.out).resume(args.resume);
    let run = scan.progress(&mut bar).run()?;
    drop(bar);
    report(&run, output, out)
}

impl Args {
    fn read_options(&self) -> ReadOptions {
        ReadOptions {
            fields: self.rows.fields(),
            limit: self.limit.and_then(|limit| usize::try_from(limit).ok()),
            skip_bad_lines: self.rows.skip_bad_lines,
        }
    }

    /// With --verbose, prints the fields that rows were read from.
    fn print_fields(&self, note: &ReadNote, output: Output) {
        if self.rows.verbose {
            for (fields, rows) in &note.fields {
                progress::note(
                    output,
                    &format!("{}: {rows} rows read from {fields}", self.traces.display()),
                );
            }
        }
    }

    fn options(&self) -> Result<ScanOptions> {
        let defaults = ScanOptions::new(self.preset.into());
        let number = |n: Option<u32>| n.and_then(|n| usize::try_from(n).ok());
        Ok(ScanOptions {
            threshold: self.threshold.unwrap_or(defaults.threshold),
            rise_factor: self.rise,
            // Hidden states are stored up to the last candidate: the limit bounds the memory.
            reference: self.reference.resolve("reference position", MAX_REFERENCE)?,
            phases: self.phases.into(),
            attention: self.attention,
            all_heads: self.all_heads,
            max_tokens: number(self.max_tokens),
            limit: number(self.limit),
            ..defaults
        })
    }
}

/// Prints the summary of a run.
fn report(run: &Run, output: Output, out: &mut dyn Write) -> Result<(), Failure> {
    let manifest = run.manifest();
    let traces = run.detections()?;
    let row = SinkRow::new(&manifest.model.name(), Some(manifest.model.rope_base), &traces);
    if output.json {
        writeln!(
            out,
            "{}",
            json!({
                "run": run.dir(),
                "counts": manifest.counts,
                "sinks": row,
                "remarks": manifest.remarks,
            })
        )?;
    } else {
        let table = sink_table(&[row]).render(Format::Markdown);
        write!(out, "{}", summary(manifest, &traces))?;
        if let Some(line) = Agreement::of_run(run, 0)?.as_ref().and_then(unaligned_sentence) {
            writeln!(
                out,
                "{line} `fathom table {} --measure unaligned` lists them.",
                run.dir().display()
            )?;
        }
        write!(out, "\n{table}")?;
    }
    Ok(())
}
