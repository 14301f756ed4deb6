//! `fathom bench-engine`: the engine's speed on this machine, as fractions of the machine's limits.

use std::io::Write;
use std::path::PathBuf;

use fathom_measure::limits::{self, CurrentLimits, Limits};
use fathom_measure::{DecodeSpeed, Overhead, decode_speed, overhead, prefill_flops};
use fathom_model::Error;
use serde_json::json;

use crate::Weights;
use crate::cli::failure::Failure;
use crate::cli::kernel_speed;
use crate::cli::model_args::{ComputeArgs, load_weights};
use crate::cli::output::Output;
use crate::cli::progress;
use crate::cli::speed_tables::{decode_table, limits_json, limits_line, percent};
use crate::cli::subject::{Shape, SubjectArgs};

/// Measure prefill, decoding and scans on this machine, as fractions of its limits
///
/// Measures each configuration several times in turn and prints medians, as fractions of the
/// machine's limits: the best matrix rate of the same run, and the memory bandwidth measured just
/// before and after a step. Without --model, a synthetic checkpoint with random weights in the
/// shape of a real model is written to a temporary directory.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  fathom bench-engine --shape qwen2.5-0.5b --precision bf16\n  \
    fathom bench-engine --kernels --shape qwen2.5-1.5b --precision bf16"
)]
pub struct Args {
    #[command(flatten)]
    subject: SubjectArgs,
    /// Write the synthetic checkpoint to this directory and keep it
    #[arg(long, value_name = "DIR", conflicts_with = "model", help_heading = "Model")]
    keep: Option<PathBuf>,
    /// Lengths to prefill and to scan, in tokens, comma separated
    #[arg(long, value_delimiter = ',', default_value = "512,2048,4096", value_name = "T,…")]
    tokens: Vec<usize>,
    /// Batch sizes to decode, comma separated
    #[arg(long, value_delimiter = ',', default_value = "1,4,16", value_name = "N,…")]
    batches: Vec<usize>,
    /// Tokens of each sequence before decoding
    #[arg(long, default_value_t = 64, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    context: u32,
    /// Measure single kernels instead, matrix products and attention, at --shape or at the shapes
    /// of all real models
    #[arg(long, conflicts_with_all = ["model", "keep", "tokens", "batches", "context"])]
    kernels: bool,
    /// Number of repetitions
    #[arg(long, default_value_t = 3, value_name = "N",
          value_parser = clap::value_parser!(u16).range(1..))]
    repeats: u16,
    #[command(flatten)]
    compute: ComputeArgs,
}

/// Decoding steps in each repetition.
const STEPS: usize = 24;

pub fn run(args: &Args, output: Output, out: &mut dyn Write) -> Result<(), Failure> {
    for (option, values) in [("--tokens", &args.tokens), ("--batches", &args.batches)] {
        if values.contains(&0) {
            let message = format!("{option} 0: expected numbers of at least 1");
            return Err(Failure::Input(Error::Request(message)));
        }
    }
    if args.kernels {
        let shapes = match args.subject.shape {
            Some(shape) => vec![shape],
            None => Shape::REAL.to_vec(),
        };
        let cpu = args.compute.backend()?;
        return kernel_speed::run(&cpu, &shapes, args.repeats.into(), output, out);
    }

    let subject = args.subject.prepare(args.keep.as_deref(), output)?;
    let model = load_weights(&subject.dir, args.compute.backend()?, output)?;
    let name = subject.into_name();
    let before = limits::measure(model.backend());
    let repeats = args.repeats.into();
    let decode = {
        let memory = CurrentLimits::new(model.backend());
        let (context, steps) = (args.context as usize, STEPS * repeats);
        decode_speed(&model, &args.batches, context, steps, &mut || memory.bytes_per_s())?
    };
    let between = limits::measure(model.backend());
    let bar = progress::bar(output, "measuring", "lengths", args.tokens.len() as u64);
    let mut prefill = Vec::with_capacity(args.tokens.len());
    for tokens in &args.tokens {
        prefill.push(overhead(&model, *tokens, repeats)?);
        bar.inc(1);
    }
    bar.finish_and_clear();
    let limits = before.or_better(between).or_better(limits::measure(model.backend()));
    EngineSpeed { name: &name, model: &model, limits, decode, prefill }.write(args, output, out)
}

/// The results.
struct EngineSpeed<'a> {
    name: &'a str,
    model: &'a Weights,
    limits: Limits,
    decode: Vec<DecodeSpeed>,
    prefill: Vec<Overhead>,
}

impl EngineSpeed<'_> {
    /// The operations per second of a prefill, as a fraction of the matrix rate.
    fn of_matrix_rate(&self, row: &Overhead, args: &Args) -> f64 {
        let seconds = row.tokens as f64 / row.prefill_tokens_per_s;
        let flops = prefill_flops(self.model.config(), row.tokens);
        flops / seconds / self.limits.flops(args.compute.precision.into())
    }

    fn write(&self, args: &Args, output: Output, out: &mut dyn Write) -> Result<(), Failure> {
        let cpu = self.model.backend();
        let precision = args.compute.precision.name();
        if output.json {
            let prefill: Vec<_> = self
                .prefill
                .iter()
                .map(|row| {
                    let flops = prefill_flops(self.model.config(), row.tokens);
                    let of_matrix_rate = self.of_matrix_rate(row, args);
                    json!({ "overhead": row, "flops": flops, "of_matrix_rate": of_matrix_rate })
                })
                .collect();
            let report = json!({
                "model": self.name,
                "precision": precision,
                "threads": cpu.threads(),
                "kernels": cpu.isa().name(),
                "limits": limits_json(&self.limits),
                "weight_bytes": self.model.bytes_read(),
                "decode": self.decode,
                "prefill": prefill,
            });
            writeln!(out, "{report}")?;
            return Ok(());
        }
        writeln!(out, "{}; {precision}, {} threads, {}", self.name, cpu.threads(), cpu.isa())?;
        writeln!(out, "{}\n", limits_line(&self.limits))?;
        decode_table(&self.decode, out)?;
        writeln!(out)?;
        writeln!(
            out,
            "| T | prefill tok/s | of the matrix rate | capture | scan | scan --attention |"
        )?;
        writeln!(out, "|---:|---:|---:|---:|---:|---:|")?;
        for row in &self.prefill {
            writeln!(
                out,
                "| {} | {:.0} | {} | {:.2} × | {:.2} × | {:.2} × |",
                row.tokens,
                row.prefill_tokens_per_s,
                percent(self.of_matrix_rate(row, args)),
                row.capture,
                row.scan,
                row.scan_attention
            )?;
        }
        Ok(())
    }
}
