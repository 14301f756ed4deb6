//! `fathom scan`: traces through a model, into a run directory.

use std::io::Write;
use std::path::PathBuf;

use crate::{Error, Format, ReadOptions, Result, Run, ScanOptions, Traces, is_piped};
use fathom_report::{sink_table, summary};
use fathom_sinks::{ReadNote, RunWriter, SinkRow};
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

/// Find the attention sinks in traces of a model
///
/// Runs every trace of a JSONL file through the model once and writes a run directory: run.json,
/// detections.jsonl, sinks.parquet, norms.parquet and, with --attention, scores.parquet. Each trace
/// is on disk before the next begins; a scan that was killed goes on with --resume and ends with
/// the same bytes.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  \
    fathom scan --model Qwen/Qwen2.5-0.5B-Instruct --traces traces.jsonl --out run --attention\n  \
    fathom table run\n\n\
    A trace is a line {\"prompt\": \"…\", \"output\": \"…\"}, {\"messages\": […]} that ends with the \
    assistant's answer, or {\"input_ids\": […]}.")]
pub struct Args {
    /// Traces: a JSONL, JSON or Parquet file (.gz and .zst too), a directory or a pattern of such
    /// files, or `-` for standard input
    #[arg(long, value_name = "FILE")]
    traces: PathBuf,
    /// Run directory to write; new or empty, unless --resume
    #[arg(long, value_name = "RUN")]
    out: PathBuf,
    /// Rules of the paper, or of its published scripts
    #[arg(long, value_enum, default_value_t = PresetName::Paper, value_name = "NAME")]
    preset: PresetName,
    /// A token is a sink where its cosine with the reference is above this [default: the preset's,
    /// 0.95 or 0.9]
    #[arg(long, value_name = "τ", value_parser = parse_threshold)]
    threshold: Option<f32>,
    /// Positions that may be the reference sink, such as `0,1,2`; of several, the one with the
    /// largest norm
    #[arg(long, value_name = "POSITIONS", default_value = "0", value_parser = parse_reference,
          allow_hyphen_values = true)]
    reference: Indices,
    /// The reference is a primary sink where its norm rises by at least so many times the mean
    /// token's
    #[arg(long, value_name = "FACTOR", default_value_t = 5.0, value_parser = parse_rise)]
    rise: f32,
    /// Whose sinks count where the reference is large in several runs of layers; all are stored
    #[arg(long, value_enum, default_value_t = PhasesName::Largest, value_name = "WHICH")]
    phases: PhasesName,
    /// Measure sink scores as well: the attention every token receives, per layer and head
    #[arg(long)]
    attention: bool,
    /// With --attention: keep each head's score for every token, not for sinks only
    #[arg(long, requires = "attention")]
    all_heads: bool,
    /// Look at the first N tokens of each trace
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: Option<u32>,
    /// Look at the first N traces
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// Go on with the run in --out
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
    let traces = Traces::read_with(&args.traces, &files, &args.reading())?;
    args.say_how(traces.note(), output);
    progress::remarks(output, &files.scan_remarks(&traces, &options)?)?;
    let model = load(files, output)?;
    let mut bar = ScanBar::new(output);
    let scan = model.scan(&traces, options).out(&args.out).resume(args.resume);
    let run = scan.progress(&mut bar).run()?;
    drop(bar);
    report(&run, output, out)
}

impl Args {
    fn reading(&self) -> ReadOptions {
        ReadOptions {
            fields: self.rows.fields(),
            limit: self.limit.and_then(|limit| usize::try_from(limit).ok()),
            skip_bad_lines: self.rows.skip_bad_lines,
        }
    }

    /// With --verbose: from which fields rows were read.
    fn say_how(&self, note: &ReadNote, output: Output) {
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

/// Says what a run holds.
fn report(run: &Run, output: Output, out: &mut dyn Write) -> Result<(), Failure> {
    let manifest = run.manifest();
    let traces = run.detections()?;
    let row = SinkRow::new(&manifest.model.name(), Some(manifest.model.rope_base), &traces);
    if output.json {
        writeln!(
            out,
            "{}",
            json!({
                "run": run.dir(), "counts": manifest.counts, "sinks": row, "remarks": manifest.remarks
            })
        )?;
    } else {
        let table = sink_table(&[row]).render(Format::Markdown);
        write!(out, "{}\n{table}", summary(manifest, &traces))?;
    }
    Ok(())
}
