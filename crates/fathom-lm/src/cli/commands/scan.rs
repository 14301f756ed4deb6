//! `fathom scan`: finds attention sinks in traces and writes a run directory.

use std::io::Write;
use std::path::PathBuf;

use fathom_report::{sink_table, summary, unaligned_sentence};
use fathom_sinks::{Agreement, ReadNote, RunWriter, SinkRow};
use serde_json::json;

use crate::cli::detect_args::DetectArgs;
use crate::cli::failure::Failure;
use crate::cli::model_args::{ModelArgs, load};
use crate::cli::output::Output;
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
    #[command(flatten)]
    detect: DetectArgs,
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
        let number = |n: Option<u32>| n.and_then(|n| usize::try_from(n).ok());
        Ok(ScanOptions {
            attention: self.attention,
            all_heads: self.all_heads,
            max_tokens: number(self.max_tokens),
            limit: number(self.limit),
            ..self.detect.options()?
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
