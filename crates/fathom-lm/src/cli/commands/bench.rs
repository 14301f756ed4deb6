//! `fathom bench`: all decoding modes on the same prompts, compared with plain decoding.

mod print;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::ValueEnum;
use fathom_decode::bench::{Batches, BenchProtocol, BenchResult, Plan, first_difference};
use fathom_decode::engine::{Engine, EngineOptions, ModeChoice};
use fathom_decode::{GammaLimits, Mode, Placement};
use fathom_kernels::Cpu;
use fathom_measure::median;
use fathom_model::{Encoded, Error, Remark, Remarks, Result, RowFields, read_prompts_with};
use fathom_report::BenchRow;

use crate::Pair;
use crate::cli::draft_arg::DraftArg;
use crate::cli::failure::Failure;
use crate::cli::gamma_arg::GammaArg;
use crate::cli::mode_arg::ModeName;
use crate::cli::output::Output;
use crate::cli::pair_args::PairArgs;
use crate::cli::progress::{self, LoadingBar};
use crate::cli::prompt_args::PromptArgs;

/// Measure plain, speculative and parallel speculative decoding on the same prompts
///
/// Follows the protocol and the columns of the published benchmark: complete batches, a warm-up,
/// speculative decoding for a fixed number of steps and plain decoding for a fixed number of
/// tokens, both at temperature 0 and with end-of-text ignored. Times are those of decoding; prefill
/// is listed separately. Speedups are printed only if the texts of all modes agree. There are two
/// accountings. In the published one, draft and target have separate cores; plain decoding uses the
/// target's, and the draft's are idle. In the other, plain and speculative decoding use the whole
/// machine.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    fathom bench --target ./target --draft ./draft --data prompts --batch-sizes 1,8 --limit 16\n  \
    fathom bench --target ./target --draft ./draft --data prompts --protocol natural --csv \
    > bench.csv\n\n\
    Exit code 1: the texts of the modes differ.")]
pub struct Args {
    #[command(flatten)]
    pair: PairArgs,
    /// The draft: a smaller model with the target's vocabulary, or `suffix` for guesses from the
    /// text itself
    #[arg(long, value_name = "D")]
    draft: DraftArg,
    /// Directory with the prompts of the benchmarks, one file NAME.jsonl each
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Names of benchmarks, comma separated
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "NAMES",
        default_value = "AIME,CNNDM,GSM8K,HumanEval"
    )]
    benchmarks: Vec<String>,
    /// Batch sizes, comma separated
    #[arg(long, value_delimiter = ',', value_name = "N,…", default_value = "1,4,8,16")]
    batch_sizes: Vec<usize>,
    /// Decoding modes to compare with ar, which is always measured [default: sd,pearl; with
    /// --draft suffix: suffix]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "MODES")]
    modes: Option<Vec<ModeName>>,
    /// Accountings to print, comma separated
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
    #[arg(long, value_name = "N", default_value_t = 100,
          value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
    /// Fixed protocol: tokens of plain decoding
    #[arg(long, value_name = "N", default_value_t = 200,
          value_parser = clap::value_parser!(u32).range(1..))]
    ar_tokens: u32,
    /// Natural protocol: maximum number of tokens of a text
    #[arg(long, value_name = "N", default_value_t = 256,
          value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,
    /// Natural protocol: end a text that runs into a loop where it repeats for the first time
    #[arg(long)]
    cut_loops: bool,
    /// Natural protocol: `sd`, `pearl` and `forked` without free guesses, as in the fixed one
    #[arg(long)]
    no_free_guesses: bool,
    /// Maximum number of prompts of each benchmark; an incomplete last batch is left out
    #[arg(long, value_name = "N", default_value_t = 128,
          value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// Leave out prompts with more than N tokens [default: the target's context less the length of
    /// the text]
    #[arg(long, value_name = "N")]
    max_prompt_tokens: Option<usize>,
    /// Draft length in tokens; `auto` measures which is fastest
    #[arg(long, value_name = "N", default_value = "auto")]
    gamma: GammaArg,
    /// Measure everything N times, the modes in turn, and print the median run
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..))]
    repeats: u32,
    /// Print comma-separated values
    #[arg(long, conflicts_with = "json")]
    csv: bool,
}

/// `--protocol`: when a text ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ProtocolName {
    /// After a fixed number of steps or tokens
    Fixed,
    /// At its end-of-text token
    Natural,
}

/// `--accounting`: which cores each mode uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Accounting {
    /// Draft and target have separate cores; ar uses the target's
    OneCoreEach,
    /// ar uses all cores; so do draft and target in sd, one after the other
    WholeMachine,
}

/// The prompts of a benchmark as token ids.
struct Benchmark {
    name: String,
    prompts: Vec<Vec<u32>>,
}

pub fn run(args: &Args, output: Output, out: &mut dyn Write) -> Result<(), Failure> {
    let pair = args.pair.open(args.draft.model(), &PromptArgs::default())?;
    let options = args.engine_options(&pair);
    options.validate()?;
    args.check_modes()?;
    args.check_protocol()?;
    let mut remarks = Remarks::new();
    remarks.extend(pair.remarks());
    let benchmarks = args.read_benchmarks(&pair, &mut remarks)?;
    progress::remarks(output, &remarks.into_vec())?;
    let eos: Arc<[u32]> = pair.eos().into();
    let mut rows = Vec::new();
    for batch_size in &args.batch_sizes {
        for benchmark in &benchmarks {
            let batches = Batches::complete(&benchmark.prompts, *batch_size)
                .ok_or_else(|| args.no_batch(benchmark, *batch_size))?;
            rows.push((benchmark, *batch_size, batches));
        }
    }

    let mut setups = Vec::with_capacity(args.accounting.len());
    for accounting in &args.accounting {
        let mut placement = args.pair.placement();
        if *accounting == Accounting::OneCoreEach {
            placement.alone = placement.together;
        }
        let mut bar = LoadingBar::new(output);
        let (target, draft) = pair.load(placement, &mut |done, of| bar.show(done, of))?;
        drop(bar);
        let engine = Engine::new(target, draft, options)?;
        setups.push(Setup { accounting: *accounting, placement, engine, rows: Vec::new() });
    }
    let bar = progress::bar(output, "measuring", "rows", rows.len() as u64);
    for (benchmark, batch_size, batches) in rows {
        let runs = args.measure(&mut setups, batches, &eos)?;
        for (setup, modes) in setups.iter_mut().zip(runs) {
            let Some(ar) = modes.first().and_then(|runs| median_run(runs)) else { continue };
            for runs in &modes {
                let Some(measured) = median_run(runs) else { continue };
                setup.rows.push(BenchRow {
                    batch_size,
                    benchmark: benchmark.name.clone(),
                    speedup: relative(runs, &modes[0]),
                    predicted: measured.predicted_speedup(ar)?,
                    held_out: measured.held_out()?,
                    of_best: of_best(runs, &modes),
                    measured: measured.clone(),
                });
            }
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    args.print(&setups, output, out)
}

/// The engine for one accounting, and the rows measured with it.
struct Setup {
    accounting: Accounting,
    placement: Placement,
    engine: Engine<Cpu>,
    rows: Vec<BenchRow>,
}

/// The run with the median throughput.
fn median_run(runs: &[BenchResult]) -> Option<&BenchResult> {
    let mut runs: Vec<&BenchResult> = runs.iter().collect();
    runs.sort_by(|a, b| a.throughput().total_cmp(&b.throughput()));
    runs.get(runs.len() / 2).copied()
}

/// The median ratio of the throughput of `runs` to that of `others`. Runs of the same repetition
/// are about a second apart, so a slow phase of the machine affects both and cancels.
fn relative(runs: &[BenchResult], others: &[BenchResult]) -> f64 {
    let turns = runs.iter().zip(others);
    median(turns.map(|(run, other)| run.throughput() / other.throughput()).collect())
}

/// The throughput of `auto` relative to the best fixed mode. `None` for a fixed mode.
fn of_best(runs: &[BenchResult], modes: &[Vec<BenchResult>]) -> Option<f64> {
    let is_auto =
        |runs: &[BenchResult]| runs.first().is_some_and(|run| run.mode == ModeChoice::Auto);
    let others = modes.iter().filter(|others| !is_auto(others));
    is_auto(runs).then(|| others.map(|others| relative(runs, others)).fold(f64::INFINITY, f64::min))
}

/// Checks that all modes generated the same greedy texts.
fn check_texts<'m>(mut runs: impl Iterator<Item = &'m BenchResult>) -> Result<(), Failure> {
    let Some(first) = runs.next() else { return Ok(()) };
    for run in runs {
        if let Some((prompt, position)) = first_difference(&first.texts, &run.texts) {
            return Err(Failure::Check(format!(
                "the text of prompt {prompt} differs from plain decoding's at token {position} \
                 with {:?}; no speedup is printed for texts that differ",
                run.mode
            )));
        }
    }
    Ok(())
}

impl Args {
    /// `ar`, then the other modes without duplicates.
    fn modes(&self) -> Vec<ModeChoice> {
        let mut modes = vec![ModeChoice::Always(Mode::Ar)];
        let default = match self.draft {
            DraftArg::Model(_) => [ModeName::Sd, ModeName::Pearl].as_slice(),
            DraftArg::Suffix => &[ModeName::Suffix],
        };
        let others = self.modes.as_deref().unwrap_or(default);
        for mode in others.iter().map(|mode| ModeChoice::from(*mode)) {
            if !modes.contains(&mode) {
                modes.push(mode);
            }
        }
        modes
    }

    /// Checks that modes that need a draft model have one.
    fn check_modes(&self) -> Result<()> {
        let needing = self.modes().into_iter().find_map(|mode| match mode {
            ModeChoice::Always(mode) => mode.needs_draft_model().then_some(mode),
            ModeChoice::Auto => None,
        });
        match (self.draft.model(), needing) {
            (None, Some(mode)) => Err(Error::Request(format!(
                "--modes: `{mode}` needs a draft model; expected `ar`, `suffix` or `auto` with \
                 --draft suffix"
            ))),
            _ => Ok(()),
        }
    }

    fn check_protocol(&self) -> Result<()> {
        match (self.cut_loops, self.protocol) {
            (true, ProtocolName::Fixed) => {
                Err(Error::Request("--cut-loops needs --protocol natural".to_owned()))
            }
            _ => Ok(()),
        }
    }

    /// Measures every mode in every setup; returns runs by setup, mode (`ar` first), repetition.
    fn measure(
        &self,
        setups: &mut [Setup],
        batches: Batches<'_>,
        eos: &Arc<[u32]>,
    ) -> Result<Vec<Vec<Vec<BenchResult>>>, Failure> {
        let plan = Plan {
            batches,
            modes: &self.modes(),
            protocol: self.protocol(),
            repeats: usize::try_from(self.repeats).unwrap_or(1),
            eos: Arc::clone(eos),
            free_guesses: self.protocol == ProtocolName::Natural && !self.no_free_guesses,
        };
        let mut engines: Vec<_> = setups.iter_mut().map(|setup| &mut setup.engine).collect();
        let runs = plan.measure(&mut engines)?;
        check_texts(runs.iter().flatten().flatten())?;
        Ok(runs)
    }

    fn protocol(&self) -> BenchProtocol {
        let number = |n: u32| usize::try_from(n).unwrap_or(usize::MAX);
        match self.protocol {
            ProtocolName::Fixed => BenchProtocol::Fixed {
                steps: number(self.steps),
                ar_tokens: number(self.ar_tokens),
            },
            ProtocolName::Natural => BenchProtocol::Natural {
                max_tokens: number(self.max_tokens),
                cut_loops: self.cut_loops,
            },
        }
    }

    fn engine_options(&self, pair: &Pair) -> EngineOptions {
        let largest = self.batch_sizes.iter().copied().max().unwrap_or(0);
        let smallest = self.batch_sizes.iter().copied().min().unwrap_or(0);
        EngineOptions {
            mode: ModeChoice::Auto,
            gamma: self.gamma.into(),
            batch_size: if smallest == 0 { 0 } else { largest }, // 0 is refused by name
            kv_pages: pair.kv_pages(largest),
            vocab: pair.vocab(),
            prefix_cache: false, // prefill is measured
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
        // A name with a path separator could leave the directory.
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
