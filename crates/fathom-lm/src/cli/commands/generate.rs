//! `fathom generate`: text generation, with or without a draft model.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::time::Instant;

use clap::ValueEnum;
use fathom_decode::generation::{InOrder, TraceFile, TraceLine};
use fathom_report::Decoding;
use indicatif::ProgressBar;
use serde_json::{Value, json};

use crate::cli::decoding_args::DecodingArgs;
use crate::cli::failure::Failure;
use crate::cli::output::Output;
use crate::cli::progress::{self, LoadingBar};
use crate::cli::prompt_args::PromptArgs;
use crate::cli::sampling_args::SamplingArgs;
use crate::cli::sink_args::{SinkArgs, SinkSummary};
use crate::{
    Error, GenerateOptions, Generation, Pair, Piece, PromptFile, Prompts, Remark, Remarks, Result,
    RowFields, SamplingParams, Task, Verification,
};

/// Generate text, optionally with a draft model to make it faster
///
/// At temperature 0 the text is that of the target alone, token for token, for every mode, draft,
/// batch size and number of threads; above 0 it follows the target's distribution. A single text is
/// streamed. Several texts are JSON lines with the exact token ids, which `fathom scan` reads. With
/// --out, each line is on disk before the next; a run that was killed continues with --resume and
/// ends with the same bytes.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    fathom generate --target ./target --draft ./draft --prompt 'What is 6 times 7?'\n  \
    fathom generate --target ./target --draft ./draft --prompts GSM8K.jsonl --out traces.jsonl\n  \
    fathom generate --target ./target --draft suffix --prompts edits.jsonl\n  \
    fathom generate --target ./target --prompts GSM8K.jsonl --watch --out watched.jsonl\n  \
    fathom generate --target ./target --prompts GSM8K.jsonl --suppress secondary --at 4,7\n  \
    fathom scan --model ./target --traces traces.jsonl --out run\n\n\
    A prompt is a row with `prompt`, `problem`, `question`, `turns` or `messages`; in a file named \
    *.txt, a line of text.\n\
    Sampled text is reproducible from its --seed in the modes ar, suffix and pearl, and in sd with \
    a fixed --gamma. Otherwise it depends on the draft length, which is chosen by measurement.")]
pub struct Args {
    #[command(flatten)]
    decoding: DecodingArgs,
    #[command(flatten)]
    source: PromptSource,
    /// Use the first N prompts only
    #[arg(long, value_name = "N", requires = "prompts",
          value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// Number of texts for each prompt
    #[arg(short = 'n', long = "samples", value_name = "K", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    samples: u32,
    /// Write the texts to this file, one JSON line each; it must be new, unless --resume; `-` is
    /// standard output
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Continue the file in --out
    #[arg(long, requires = "out")]
    resume: bool,
    /// Field of a row that holds the prompt, or a dotted path such as `example.question` [default:
    /// the fields of published data sets]
    #[arg(long, value_name = "FIELD", requires = "prompts")]
    prompt_field: Option<String>,
    /// Maximum number of texts in a batch
    #[arg(long, value_name = "N", default_value_t = 8)]
    batch_size: usize,
    /// How the drafts of sampled text are judged; texts have the target's distribution either way,
    /// but those of a seed differ
    #[arg(long, value_enum, default_value_t = VerificationName::Token, value_name = "HOW")]
    verification: VerificationName,
    // Last: the heading of a flattened group also applies to the options that follow it.
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    prompt_args: PromptArgs,
    #[command(flatten)]
    sinks: SinkArgs,
}

/// `--verification`: how drafts are judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum VerificationName {
    /// One by one
    Token,
    /// Those of a pass together, which accepts at least as many
    Block,
}

impl From<VerificationName> for Verification {
    fn from(name: VerificationName) -> Verification {
        match name {
            VerificationName::Token => Verification::Token,
            VerificationName::Block => Verification::Block,
        }
    }
}

/// Where the prompts come from.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct PromptSource {
    /// A file of prompts, or `-` for standard input
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// One prompt
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
}

pub fn run(args: &Args, output: Output, out: &mut dyn Write) -> Result<(), Failure> {
    args.sampling.check()?;
    let mut remarks = Remarks::new();
    let pair = args.decoding.open(&args.prompt_args, &mut remarks)?;
    let options = args.decoding.options(args.batch_size, false);
    pair.engine_options(&options).validate()?;
    let params = args.sampling.params(pair.recommended_sampling(), &args.decoding.pair.target)?;
    params.validate_ids(pair.vocab())?;
    let sinks = args.sinks.plan(&pair)?;
    let prompts = args.prompts(&pair, &options)?;
    remarks.extend(prompts.remarks().iter().cloned());
    if let (Some(path), false) = (args.file(), args.resume) {
        TraceFile::check_new(path)?;
    }
    remarks.extend(args.advice(&pair, &params, prompts.longest()));
    let remarks = remarks.into_vec();
    progress::remarks(output, &remarks)?;
    let tasks = prompts.tasks(args.samples as usize);

    let mut bar = LoadingBar::new(output);
    let mut engine = pair.start(&options, &mut |done, layers| bar.show(done, layers))?;
    engine.set_verification(args.verification.into());
    drop(bar);
    let mut sinks = sinks.start(&engine);
    let line = TraceLine {
        origin: engine.origin().clone(),
        params: params.clone(),
        watch: sinks.watch_rules(),
        suppress: sinks.suppress_rules(),
    };
    let mut destination = args.destination(line, &tasks, output)?;
    let tasks = tasks.into_iter().skip(destination.written()).collect::<Vec<_>>();
    let bar = args.bar(&tasks, &destination, output);
    let mut generator = sinks.attach(engine.run(tasks, params));

    let start = Instant::now();
    let mut finished = FinishedTexts::default();
    while generator.pending() > 0 {
        for mut piece in generator.step()? {
            bar.inc(piece.tokens as u64);
            if let Some(generation) = &mut piece.done {
                sinks.finish(generation)?;
                finished.record(generation);
                let unused = args.sampling.max_tokens.saturating_sub(generation.tokens.len());
                bar.set_length(bar.length().unwrap_or(0).saturating_sub(unused as u64));
            }
            destination.write(piece, out)?;
        }
    }
    bar.finish_and_clear();
    let decoding = Decoding {
        metrics: generator.engine().metrics(),
        texts: finished.texts,
        mat: finished.mean_mat(),
        seconds: start.elapsed().as_secs_f64(),
        placement: Some(options.placement),
    };
    destination.finish(&decoding, &sinks.summary(), remarks, output, out)
}

impl Args {
    /// Advice about options that may not be what the user wants.
    fn advice(&self, pair: &Pair, params: &SamplingParams, longest: usize) -> Vec<Remark> {
        let recommended = self.sampling.recommendation(pair.recommended_sampling());
        let same = self.samples > 1 && params.is_greedy();
        let same = same.then(|| {
            let samples = self.samples;
            let text = format!(
                "the {samples} texts of each prompt will be the same at temperature 0; set \
                 --temperature"
            );
            Remark::advice("same-samples", text)
        });
        let longest = longest.saturating_add(params.max_tokens);
        let beyond = self.decoding.draft_remark(pair, longest);
        recommended.into_iter().chain(same).chain(beyond).collect()
    }

    fn row_fields(&self) -> RowFields {
        RowFields { prompt: self.prompt_field.clone(), output: None }
    }

    /// The prompts as token ids.
    fn prompts(&self, pair: &Pair, options: &GenerateOptions) -> Result<Prompts> {
        match (&self.source.prompts, &self.source.prompt) {
            (Some(path), _) => {
                let limit = self.limit.map(|n| n as usize);
                let file = PromptFile { fields: self.row_fields(), limit };
                Prompts::read(path, &file, pair, options)
            }
            (None, text) => match text.as_deref().unwrap_or_default() {
                "" => Err(Error::Request("--prompt is empty; expected a text".to_owned())),
                text => Prompts::new([text], pair, options),
            },
        }
    }

    /// The file to write to; `None` for standard output.
    fn file(&self) -> Option<&PathBuf> {
        self.out.as_ref().filter(|path| path.as_os_str() != "-")
    }

    fn destination(&self, line: TraceLine, tasks: &[Task], output: Output) -> Result<Destination> {
        Ok(match self.file() {
            None if self.resume => {
                let problem =
                    "--resume: lines on standard output cannot be resumed; give --out a file";
                return Err(Error::Request(problem.to_owned()));
            }
            Some(path) if self.resume => {
                Destination::File(path.clone(), TraceFile::resume(path, line, tasks)?)
            }
            Some(path) => Destination::File(path.clone(), TraceFile::create(path, line)?),
            None if output.json => Destination::Object(line, InOrder::default(), Vec::new()),
            None if tasks.len() == 1 && self.out.is_none() => Destination::Text,
            None => Destination::Lines(line, InOrder::default()),
        })
    }

    /// A bar that counts tokens towards the maximum. The maximum shrinks when a text ends early.
    fn bar(&self, tasks: &[Task], destination: &Destination, output: Output) -> ProgressBar {
        match destination {
            Destination::Text => ProgressBar::hidden(), // the text is streamed instead
            _ => {
                let most = self.sampling.max_tokens.saturating_mul(tasks.len());
                progress::bar(output, "generating", "tokens", most as u64)
            }
        }
    }
}

/// Statistics of the finished texts.
#[derive(Default)]
struct FinishedTexts {
    texts: usize,
    mat_sum: f64,
}

impl FinishedTexts {
    fn record(&mut self, generation: &Generation) {
        self.texts += 1;
        self.mat_sum += generation.mat;
    }

    fn mean_mat(&self) -> Option<f64> {
        (self.texts > 0).then(|| self.mat_sum / self.texts as f64)
    }
}

/// Where texts are written.
enum Destination {
    /// Standard output, one text, streamed.
    Text,
    /// Standard output, one JSON line per text.
    Lines(TraceLine, InOrder<String>),
    /// Standard output, one JSON object with all texts and the metrics.
    Object(TraceLine, InOrder<Value>, Vec<Value>),
    /// A file, one JSON line per text.
    File(PathBuf, TraceFile),
}

impl Destination {
    /// The number of texts that a resumed file already holds.
    fn written(&self) -> usize {
        match self {
            Destination::File(_, file) => usize::try_from(file.written()).unwrap_or(usize::MAX),
            _ => 0,
        }
    }

    fn write(&mut self, piece: Piece, out: &mut dyn Write) -> Result<(), Failure> {
        match (self, &piece.done) {
            (Destination::Text, _) => {
                write!(out, "{}", printable(&piece.text))?;
                out.flush()?;
            }
            (Destination::File(_, file), Some(generation)) => file.push(generation)?,
            (Destination::Lines(line, order), Some(generation)) => {
                order.insert(piece.index, Value::Object(line.object(generation)).to_string());
                while let Some(line) = order.take_next() {
                    writeln!(out, "{line}")?;
                }
            }
            (Destination::Object(line, order, ready), Some(generation)) => {
                order.insert(piece.index, Value::Object(line.object(generation)));
                ready.extend(std::iter::from_fn(|| order.take_next()));
            }
            _ => {}
        }
        Ok(())
    }

    /// Prints the summary.
    fn finish(
        self,
        decoding: &Decoding<'_>,
        sinks: &SinkSummary,
        remarks: Vec<Remark>,
        output: Output,
        out: &mut dyn Write,
    ) -> Result<(), Failure> {
        let print_summary = || {
            progress::note(output, &decoding.summary());
            sinks.print(output);
        };
        let metrics = || decoding.to_json();
        match self {
            Destination::Text => {
                writeln!(out)?;
                print_summary();
            }
            Destination::Lines(..) => print_summary(),
            Destination::Object(_, _, texts) => {
                writeln!(
                    out,
                    "{}",
                    sinks.add_to(
                        json!({ "texts": texts, "metrics": metrics(), "remarks": remarks })
                    )
                )?;
            }
            Destination::File(path, _) if output.json => {
                writeln!(
                    out,
                    "{}",
                    sinks.add_to(json!({ "file": path, "metrics": metrics(), "remarks": remarks }))
                )?;
            }
            Destination::File(path, _) => {
                writeln!(out, "{}", path.display())?;
                print_summary();
            }
        }
        Ok(())
    }
}

/// The text without control characters if standard output is a terminal: generated text is
/// untrusted and must not control the terminal.
fn printable(text: &str) -> String {
    if !io::stdout().is_terminal() {
        return text.to_owned();
    }
    let is_printable = |c: char| !c.is_control() || matches!(c, '\n' | '\t');
    text.chars().filter(|&c| is_printable(c)).collect()
}
