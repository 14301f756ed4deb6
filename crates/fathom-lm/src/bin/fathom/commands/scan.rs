//! `fathom scan`: traces through a model, into a run directory.

use std::io::Write;
use std::path::{Path, PathBuf};

use fathom_kernels::Cpu;
use fathom_model::{
    Error, Model, ModelConfig, Remark, Remarks, Result, TokenizedTrace, data_files,
};
use fathom_report::{Format, sink_table, summary};
use fathom_sinks::{
    Manifest, ModelNote, ReadNote, Run, RunWriter, ScanOptions, SinkRow, TraceDetection, TracesNote,
};
use indicatif::ProgressBar;
use serde_json::json;

use crate::cli::Output;
use crate::commands::table::PresetName;
use crate::failure::Failure;
use crate::indices::Indices;
use crate::model_args::{ModelArgs, TextFiles};
use crate::model_source::ModelSource;
use crate::progress;
use crate::prompt_args::PromptArgs;
use crate::row_args::RowArgs;
use crate::traces::{Reading, Traces, of_other_writers, read_traces};

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

fn parse_reference(text: &str) -> Result<Indices, String> {
    let positions: Indices = text.parse()?;
    match positions.counts_from_end() {
        true => Err("the reference is among the first positions, counted from 0".to_owned()),
        false => Ok(positions),
    }
}

fn parse_threshold(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(threshold) if threshold > 0.0 && threshold < 1.0 => Ok(threshold),
        _ => Err("must be a number between 0 and 1".to_owned()),
    }
}

fn parse_rise(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(factor) if factor > 0.0 && factor.is_finite() => Ok(factor),
        _ => Err("must be a number above 0".to_owned()),
    }
}

pub fn run(args: &Args, output: Output, out: &mut dyn Write) -> Result<(), Failure> {
    let from_pipe = data_files(&args.traces)?.is_none();
    match args.resume {
        true if from_pipe => {
            let problem =
                "--resume: a run from standard input cannot be resumed; give --traces a file";
            return Err(Failure::Input(Error::Request(problem.to_owned())));
        }
        true => {}
        false => RunWriter::check_free(&args.out)?,
    }
    let source = args.model.source()?;
    let config = ModelConfig::from_dir(&source.dir)?;
    let text =
        TextFiles::from_dir(&source.dir, args.prompts.no_chat_template, args.prompts.options())?;
    let options = args.options(&text)?;
    let mut remarks = Remarks::new();
    remarks.extend(source.remarks(&config)?);
    remarks.extend(text.remarks());
    let Traces { traces, writers, note: read } =
        read_traces(&args.traces, &text, &config, &args.reading(), &mut remarks)?;
    args.say_how(&read, output);
    if from_pipe {
        let text = "a run from standard input cannot be resumed or explained: its traces are gone \
                    afterwards";
        remarks.add(Remark::advice("standard-input", text));
    }
    remarks.extend(of_other_writers(&args.traces, &writers, &source, &config)?);
    remarks.extend(long_traces(&traces, &config, &options));
    progress::remarks(output, &remarks)?;
    let model = source.load(args.model.compute.backend()?, output)?;
    let job = Job {
        model: &model,
        note: note(&source, &config)?,
        traces: &traces,
        traces_note: TracesNote { read: Some(read), ..TracesNote::new(&args.traces)? },
        text: &text,
        options,
        remarks: remarks.into_vec(),
    };
    let run = job.run(&args.out, args.resume, output)?;
    report(&run, output, out)
}

/// What the run's manifest says about a model.
fn note(source: &ModelSource, config: &ModelConfig) -> Result<ModelNote> {
    let note = ModelNote::new(&source.name, &source.dir, config)?;
    match &source.adapter {
        None => Ok(note),
        Some(adapter) => note.with_adapter(&adapter.name, &adapter.dir),
    }
}

impl Args {
    fn reading(&self) -> Reading {
        Reading {
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

    fn options(&self, text: &TextFiles) -> Result<ScanOptions> {
        let defaults = ScanOptions::new(self.preset.into());
        let number = |n: Option<u32>| n.and_then(|n| usize::try_from(n).ok());
        Ok(ScanOptions {
            threshold: self.threshold.unwrap_or(defaults.threshold),
            rise_factor: self.rise,
            // Hidden states are kept up to the last candidate, so it has to be a leading one.
            reference: self.reference.resolve("reference position", 256)?,
            attention: self.attention,
            all_heads: self.all_heads,
            max_tokens: number(self.max_tokens),
            limit: number(self.limit),
            chat_template: text.template.is_some(),
            prompts: text.options.clone(),
            precision: self.model.compute.precision.name().to_owned(),
            ..defaults
        })
    }
}

/// The remark that traces go beyond what the model was made for: it runs, but as HuggingFace would
/// run it.
fn long_traces(
    traces: &[TokenizedTrace],
    config: &ModelConfig,
    options: &ScanOptions,
) -> Option<Remark> {
    let cut = options.max_tokens.unwrap_or(usize::MAX);
    let longest = traces.iter().map(|trace| trace.ids.len().min(cut)).max().unwrap_or(0);
    let limit = config.max_position_embeddings;
    (longest > limit).then(|| {
        let text = format!(
            "the longest trace has {longest} tokens, and the model's max_position_embeddings is {limit}; \
             --max-tokens {limit} stays within it"
        );
        Remark::advice("long-traces", text)
    })
}

/// Everything a scan is made of.
pub struct Job<'a> {
    pub model: &'a Model<Cpu>,
    pub note: ModelNote,
    pub traces: &'a [TokenizedTrace],
    pub traces_note: TracesNote,
    pub text: &'a TextFiles,
    pub options: ScanOptions,
    pub remarks: Vec<Remark>,
}

impl Job<'_> {
    /// Scans into `dir` with a progress bar.
    pub fn run(self, dir: &Path, resume: bool, output: Output) -> Result<Run> {
        let engine = engine(self.model);
        let mut manifest = Manifest::new(self.note, self.traces_note, engine, self.options);
        manifest.remarks = self.remarks;
        let writer = match resume {
            true => RunWriter::resume_with(dir, manifest, self.traces)?,
            false => RunWriter::create(dir, manifest)?,
        };
        let token_text =
            |id| self.text.tokenizer.as_ref().map(|tokenizer| tokenizer.token_text(id));
        let mut bar = Bar(progress::bar(output, "scanning", "tokens", 0));
        let run = fathom_sinks::scan(self.model, self.traces, &token_text, writer, &mut bar);
        bar.0.finish_and_clear();
        run
    }
}

/// Which kernels a model computes with.
pub fn engine(model: &Model<Cpu>) -> String {
    format!("cpu {}", model.backend().isa())
}

/// A progress bar that watches a scan.
struct Bar(ProgressBar);

impl fathom_sinks::Progress for Bar {
    fn start(&mut self, tokens: usize) {
        self.0.set_length(tokens as u64);
        self.0.reset(); // the clock starts now
    }

    fn advance(&mut self, tokens: usize) {
        self.0.inc(tokens as u64);
    }

    fn trace(&mut self, _: &TraceDetection) {}
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
