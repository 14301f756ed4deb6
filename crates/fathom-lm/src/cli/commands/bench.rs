//! `fathom bench`: every way of decoding on the same prompts, against plain decoding.

mod print;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::Pair;
use clap::ValueEnum;
use fathom_decode::bench::{Batches, Measured, Plan, Protocol, first_difference};
use fathom_decode::engine::{Engine, EngineOptions, ModeChoice};
use fathom_decode::{GammaLimits, Mode, Placement};
use fathom_kernels::Cpu;
use fathom_measure::median;
use fathom_model::{Encoded, Error, Remark, Remarks, Result, RowFields, read_prompts_with};
use fathom_report::BenchRow;

use crate::cli::failure::Failure;
use crate::cli::gamma_arg::GammaArg;
use crate::cli::output::Output;
use crate::cli::pair_args::PairArgs;
use crate::cli::progress::{self, LoadingBar};
use crate::cli::prompt_args::PromptArgs;

/// Measure plain, speculative and parallel speculative decoding on the same prompts
///
/// The published benchmark's protocol and columns: complete batches, a warm-up, speculation for a
/// fixed number of steps with end-of-text ignored, plain decoding for a fixed number of tokens, all
/// at temperature 0. Time is that of decoding; prefill is listed apart. No speedup is printed
/// unless all texts agree. Two accountings: in the published one, draft and target have cores of
/// their own, and plain decoding has the target's while the draft's idle; in the other, plain and
/// speculative decoding get the whole machine.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    fathom bench --target ./target --draft ./draft --data prompts --batch-sizes 1,8 --limit 16\n  \
    fathom bench --target ./target --draft ./draft --data prompts --protocol natural --csv > bench.csv\n\n\
    Exit code 1: the modes' texts differ.")]
pub struct Args {
    #[command(flatten)]
    pair: PairArgs,
    /// A smaller model with the target's vocabulary, which drafts
    #[arg(long, value_name = "D")]
    draft: String,
    /// Directory of the benchmarks' prompts, NAME.jsonl each
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Which benchmarks, by name, comma separated
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "NAMES",
        default_value = "AIME,CNNDM,GSM8K,HumanEval"
    )]
    benchmarks: Vec<String>,
    /// Texts at a time, comma separated
    #[arg(long, value_delimiter = ',', value_name = "N,…", default_value = "1,4,8,16")]
    batch_sizes: Vec<usize>,
    /// Ways of decoding to compare with ar, which is always measured
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        value_name = "MODES",
        default_value = "ar,sd,pearl"
    )]
    modes: Vec<ModeName>,
    /// Which accountings to print
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        value_name = "NAMES",
        default_value = "one-core-each,whole-machine"
    )]
    accounting: Vec<Accounting>,
    /// When a text ends
    #[arg(long, value_enum, default_value_t = ProtocolName::Fixed, value_name = "NAME")]
    protocol: ProtocolName,
    /// Fixed protocol: steps of speculative decoding
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
    /// Fixed protocol: tokens of plain decoding
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    ar_tokens: u32,
    /// Natural protocol: most tokens of a text
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,
    /// Prompts of each benchmark; those that fill no batch are left out
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// Leave out prompts with more tokens [default: what leaves room for the text in the target's
    /// context]
    #[arg(long, value_name = "N")]
    max_prompt_tokens: Option<usize>,
    /// Tokens to draft at a time; `auto` measures which length is fastest
    #[arg(long, value_name = "N", default_value = "auto")]
    gamma: GammaArg,
    /// Measure everything so often, in turns, and print the median run
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    repeats: u32,
    /// Print comma-separated values
    #[arg(long, conflicts_with = "json")]
    csv: bool,
}

/// `--modes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ModeName {
    /// A pass of the target for every token
    Ar,
    /// Draft, then verify
    Sd,
    /// Draft and verify at the same time
    Pearl,
    /// Measure, and do what is fastest
    Auto,
}

impl From<ModeName> for ModeChoice {
    fn from(name: ModeName) -> ModeChoice {
        match name {
            ModeName::Ar => ModeChoice::Always(Mode::Ar),
            ModeName::Sd => ModeChoice::Always(Mode::Sd),
            ModeName::Pearl => ModeChoice::Always(Mode::Pearl),
            ModeName::Auto => ModeChoice::Auto,
        }
    }
}

/// `--protocol`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ProtocolName {
    /// After a fixed number of steps or tokens
    Fixed,
    /// At its end-of-text token
    Natural,
}

/// `--accounting`: who has which cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Accounting {
    /// Draft and target have cores of their own; ar has the target's
    OneCoreEach,
    /// ar has all cores, and so have draft and target in sd, taking turns
    WholeMachine,
}

/// A benchmark's prompts as token ids.
struct Benchmark {
    name: String,
    prompts: Vec<Vec<u32>>,
}

pub fn run(args: &Args, output: Output, out: &mut dyn Write) -> Result<(), Failure> {
    let pair = args.pair.open(Some(&args.draft), &PromptArgs::default())?;
    let options = args.engine_options(&pair);
    options.validate()?;
    let mut remarks = Remarks::new();
    remarks.extend(pair.remarks());
    let benchmarks = args.read_benchmarks(&pair, &mut remarks)?;
    progress::remarks(output, &remarks.into_vec())?;
    let eos: Arc<[u32]> = pair.eos().into();

    let mut accountings = Vec::with_capacity(args.accounting.len());
    for accounting in &args.accounting {
        let mut placement = args.pair.placement();
        if *accounting == Accounting::OneCoreEach {
            placement.alone = placement.together;
        }
        let mut bar = LoadingBar::new(output);
        let (target, draft) = pair.load(placement, &mut |done, of| bar.show(done, of))?;
        drop(bar);
        let engine = Engine::new(target, draft, options)?;
        accountings.push(Accounted {
            accounting: *accounting,
            placement,
            engine,
            rows: Vec::new(),
        });
    }
    let count = benchmarks.len() * args.batch_sizes.len();
    let bar = progress::bar(output, "measuring", "rows", count as u64);
    for batch_size in &args.batch_sizes {
        for benchmark in &benchmarks {
            let batches = Batches::complete(&benchmark.prompts, *batch_size)
                .ok_or_else(|| args.no_batch(benchmark, *batch_size))?;
            let runs = args.measure(&mut accountings, batches, &eos)?;
            for (accounted, modes) in accountings.iter_mut().zip(runs) {
                let Some(ar) = modes.first().and_then(|runs| median_run(runs)) else { continue };
                for runs in &modes {
                    let Some(measured) = median_run(runs) else { continue };
                    accounted.rows.push(BenchRow {
                        batch_size: *batch_size,
                        benchmark: benchmark.name.clone(),
                        speedup: relative(runs, &modes[0]),
                        predicted: measured.predicted_speedup(ar)?,
                        of_best: of_best(runs, &modes),
                        measured: measured.clone(),
                    });
                }
            }
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    args.print(&accountings, output, out)
}

/// One way to share the machine, and what was measured so.
struct Accounted {
    accounting: Accounting,
    placement: Placement,
    engine: Engine<Cpu>,
    rows: Vec<BenchRow>,
}

/// The run with the median throughput.
fn median_run(runs: &[Measured]) -> Option<&Measured> {
    let mut runs: Vec<&Measured> = runs.iter().collect();
    runs.sort_by(|a, b| a.throughput().total_cmp(&b.throughput()));
    runs.get(runs.len() / 2).copied()
}

/// Throughput relative to other runs', each to the one of the same turn, a second or so before or
/// after it: the median. What slows the machine for longer than that slows both.
fn relative(runs: &[Measured], others: &[Measured]) -> f64 {
    let turns = runs.iter().zip(others);
    median(turns.map(|(run, other)| run.throughput() / other.throughput()).collect())
}

/// What `auto` makes of the best single way; `None` of another.
fn of_best(runs: &[Measured], modes: &[Vec<Measured>]) -> Option<f64> {
    let is_auto = |runs: &[Measured]| runs.first().is_some_and(|run| run.mode == ModeChoice::Auto);
    let others = modes.iter().filter(|others| !is_auto(others));
    is_auto(runs).then(|| others.map(|others| relative(runs, others)).fold(f64::INFINITY, f64::min))
}

/// Greedy texts must not depend on how they were decoded.
fn check_texts<'m>(mut runs: impl Iterator<Item = &'m Measured>) -> Result<(), Failure> {
    let Some(first) = runs.next() else { return Ok(()) };
    for run in runs {
        if let Some((prompt, position)) = first_difference(&first.texts, &run.texts) {
            return Err(Failure::Answer(format!(
                "the text of prompt {prompt} differs from plain decoding's at token {position} with {:?}; no \
                 speedup is printed for texts that differ",
                run.mode
            )));
        }
    }
    Ok(())
}

impl Args {
    /// ar, then the others once each.
    fn modes(&self) -> Vec<ModeChoice> {
        let mut modes = vec![ModeChoice::Always(Mode::Ar)];
        for mode in self.modes.iter().map(|mode| ModeChoice::from(*mode)) {
            if !modes.contains(&mode) {
                modes.push(mode);
            }
        }
        modes
    }

    /// All runs of every mode, ar first, for each accounting.
    fn measure(
        &self,
        accountings: &mut [Accounted],
        batches: Batches<'_>,
        eos: &Arc<[u32]>,
    ) -> Result<Vec<Vec<Vec<Measured>>>, Failure> {
        let plan = Plan {
            batches,
            modes: &self.modes(),
            protocol: self.protocol(),
            repeats: usize::try_from(self.repeats).unwrap_or(1),
            eos: Arc::clone(eos),
        };
        let mut engines: Vec<_> =
            accountings.iter_mut().map(|accounted| &mut accounted.engine).collect();
        let runs = plan.measure(&mut engines)?;
        check_texts(runs.iter().flatten().flatten())?;
        Ok(runs)
    }

    fn protocol(&self) -> Protocol {
        let number = |n: u32| usize::try_from(n).unwrap_or(usize::MAX);
        match self.protocol {
            ProtocolName::Fixed => {
                Protocol::Fixed { steps: number(self.steps), ar_tokens: number(self.ar_tokens) }
            }
            ProtocolName::Natural => Protocol::Natural { max_tokens: number(self.max_tokens) },
        }
    }

    fn engine_options(&self, pair: &Pair) -> EngineOptions {
        let largest = self.batch_sizes.iter().copied().max().unwrap_or(0);
        let smallest = self.batch_sizes.iter().copied().min().unwrap_or(0);
        EngineOptions {
            mode: ModeChoice::Always(Mode::Pearl),
            gamma: self.gamma.into(),
            batch_size: if smallest == 0 { 0 } else { largest }, // 0 is refused by name
            kv_pages: pair.kv_pages(largest),
            vocab: pair.vocab(),
        }
    }

    fn read_benchmarks(&self, pair: &Pair, remarks: &mut Remarks) -> Result<Vec<Benchmark>> {
        let max_gamma = match self.gamma {
            GammaArg::Auto => GammaLimits::default().max,
            GammaArg::Fixed(gamma) => gamma,
        };
        let reach = self.protocol().reach(max_gamma);
        let room = pair.context().saturating_sub(reach);
        let longest = self.max_prompt_tokens.unwrap_or(room).min(pair.context() - 1);
        let mut read = |name: &String| self.read_benchmark(name, pair, longest, remarks);
        let benchmarks = self.benchmarks.iter().map(&mut read).collect::<Result<Vec<_>>>()?;
        let prompts = benchmarks.iter().flat_map(|benchmark| &benchmark.prompts);
        let longest = prompts.map(Vec::len).max().unwrap_or(0).saturating_add(reach);
        remarks.extend(pair.draft_remark(longest));
        Ok(benchmarks)
    }

    fn read_benchmark(
        &self,
        name: &str,
        pair: &Pair,
        longest: usize,
        remarks: &mut Remarks,
    ) -> Result<Benchmark> {
        // A name, not a path: it stays in the directory.
        if Path::new(name).file_name().is_none_or(|file| file != name) {
            return Err(Error::Request(format!(
                "--benchmarks: `{name}` is not a benchmark's name"
            )));
        }
        let path = self.data.join(format!("{name}.jsonl"));
        let encoder = pair.encoder();
        let mut prompts = Vec::new();
        let mut left_out = 0;
        for prompt in read_prompts_with(&path, &RowFields::default(), remarks)? {
            if prompts.len() == self.limit as usize {
                break;
            }
            let Encoded { ids, remarks: more, .. } = prompt.encode(&encoder)?;
            remarks.extend(more);
            match ids.len() <= longest {
                true => prompts.push(ids),
                false => left_out += 1,
            }
        }
        if left_out > 0 {
            let text = format!("{left_out} prompts of more than {longest} tokens are left out");
            remarks.add(Remark::advice("long-prompts", format!("{name}: {text}")));
        }
        Ok(Benchmark { name: name.to_owned(), prompts })
    }

    fn no_batch(&self, benchmark: &Benchmark, batch_size: usize) -> Error {
        let path = self.data.join(format!("{}.jsonl", benchmark.name));
        Error::file(
            &path,
            format!(
                "has {} prompts to measure with, which do not fill a batch of {batch_size}",
                benchmark.prompts.len()
            ),
        )
    }
}
