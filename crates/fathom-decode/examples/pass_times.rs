//! Records how long passes of a target take as the load of the machine changes: the data of the
//! planner's ablation (`src/planner/README.md`).
//!
//! ```text
//! cargo run -p fathom-decode --example pass_times -- TARGET DRAFT BATCH SWEEPS > times.csv
//! ```
//!
//! A sweep times one pass of the target over 1, 2, 4, 8 and 16 tokens of every sequence, and the
//! draft drafting one token for every sequence, for BATCH sequences. Each line is one sweep: the
//! batch size, whether both models run at the same time, and the microseconds of the drafted token
//! and of the five passes.

use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use fathom_backend::Backend;
use fathom_decode::philox4x32;
use fathom_kernels::{Cpu, CpuOptions};
use fathom_model::{Error, LogitRows, Result, Sequence, SequenceOptions, Step, Transformer};

/// Tokens of each sequence that a pass of the target scores.
const ROWS: [usize; 5] = [1, 2, 4, 8, 16];
/// Tokens in each sequence's cache before a measured pass.
const CONTEXT: usize = 128;
/// Fed token ids are below this.
const IDS: u32 = 1000;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match record(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn record(arguments: &[String]) -> Result<()> {
    let [target, draft, batch, sweeps] = arguments else {
        return Err(Error::Request("expected TARGET DRAFT BATCH SWEEPS".to_owned()));
    };
    let number = |text: &str| -> Result<usize> {
        let refuse = |_| Error::Request(format!("`{text}` is not a whole number"));
        text.parse().map_err(refuse)
    };
    let (batch, sweeps) = (number(batch)?, number(sweeps)?);
    let (target, draft) = (load(Path::new(target))?, load(Path::new(draft))?);
    println!("batch,co_running,draft_us,rows1_us,rows2_us,rows4_us,rows8_us,rows16_us");
    alone(&target, &draft, batch, sweeps)?;
    co_running(&target, &draft, batch, sweeps)
}

/// One thread for each model, as on two devices of their own.
fn load(dir: &Path) -> Result<Transformer<Cpu>> {
    let options = CpuOptions {
        threads: Some(1),
        precision: fathom_backend::Precision::Bf16,
        ..CpuOptions::default()
    };
    let cpu = Cpu::new(options).map_err(|error| Error::Request(error.to_string()))?;
    Transformer::load(dir, cpu)
}

/// The draft drafts while the target waits.
fn alone(
    target: &Transformer<Cpu>,
    draft: &Transformer<Cpu>,
    batch: usize,
    sweeps: usize,
) -> Result<()> {
    let (mut targets, mut drafts) = (sequences(target, batch)?, sequences(draft, batch)?);
    for _ in 0..sweeps {
        let drafting = seconds_of_pass(draft, &mut drafts, 1)?;
        print_sweep(batch, false, drafting, target, &mut targets)?;
    }
    Ok(())
}

/// The draft drafts all the time.
fn co_running(
    target: &Transformer<Cpu>,
    draft: &Transformer<Cpu>,
    batch: usize,
    sweeps: usize,
) -> Result<()> {
    let ended = AtomicBool::new(false);
    let drafting = AtomicU64::new(0.0_f64.to_bits()); // seconds of the draft's last pass
    thread::scope(|scope| {
        let drafter = scope.spawn(|| -> Result<()> {
            draft.backend().attach_thread();
            let mut drafts = sequences(draft, batch)?;
            while !ended.load(Ordering::Relaxed) {
                let seconds = seconds_of_pass(draft, &mut drafts, 1)?;
                drafting.store(seconds.to_bits(), Ordering::Relaxed);
            }
            Ok(())
        });
        let recorded = sequences(target, batch).and_then(|mut targets| {
            while drafting.load(Ordering::Relaxed) == 0 && !drafter.is_finished() {
                thread::yield_now();
            }
            (0..sweeps).try_for_each(|_| {
                let seconds = f64::from_bits(drafting.load(Ordering::Relaxed));
                print_sweep(batch, true, seconds, target, &mut targets)
            })
        });
        ended.store(true, Ordering::Relaxed);
        let drafted = drafter.join().unwrap_or_else(|_| Err(Error::Request("a panic".to_owned())));
        recorded.and(drafted)
    })
}

fn print_sweep(
    batch: usize,
    co_running: bool,
    drafting: f64,
    target: &Transformer<Cpu>,
    sequences: &mut [Sequence<Cpu>],
) -> Result<()> {
    let mut line = format!("{batch},{},{:.0}", u8::from(co_running), drafting * 1e6);
    for rows in ROWS {
        line += &format!(",{:.0}", seconds_of_pass(target, sequences, rows)? * 1e6);
    }
    println!("{line}");
    Ok(())
}

fn sequences(model: &Transformer<Cpu>, batch: usize) -> Result<Vec<Sequence<Cpu>>> {
    let mut sequences = Vec::new();
    for index in 0..batch {
        let mut sequence = model.new_sequence(SequenceOptions::default());
        let tokens = tokens(index, CONTEXT);
        let mut step = [Step { sequence: &mut sequence, tokens: &tokens, logits: LogitRows::None }];
        model.forward(&mut step, None)?;
        sequences.push(sequence);
    }
    Ok(sequences)
}

fn tokens(index: usize, len: usize) -> Vec<u32> {
    (0..len as u32).map(|at| philox4x32([at, 0, 0, 0], [index as u32, 0])[0] % IDS).collect()
}

/// Seconds of a pass over `rows` tokens of every sequence. Truncates the sequences to [`CONTEXT`]
/// afterwards.
fn seconds_of_pass(
    model: &Transformer<Cpu>,
    sequences: &mut [Sequence<Cpu>],
    rows: usize,
) -> Result<f64> {
    let tokens = tokens(0, rows);
    let step = |sequence| Step { sequence, tokens: &tokens, logits: LogitRows::All };
    let mut steps: Vec<Step<'_, Cpu>> = sequences.iter_mut().map(step).collect();
    let start = Instant::now();
    model.forward_argmax(&mut steps, model.config().vocab, None)?;
    let seconds = start.elapsed().as_secs_f64();
    sequences.iter_mut().try_for_each(|sequence| model.truncate(sequence, CONTEXT))?;
    Ok(seconds)
}
