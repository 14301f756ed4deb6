//! `fathom bench-engine`: what looking into a pass costs on this machine.

use std::io::Write;

use fathom_kernels::limits::{self, Limits};
use fathom_model::{Error, Model, Result, SyntheticShape, write_synthetic};
use fathom_sinks::{Overhead, overhead};
use serde_json::json;

use crate::cli::Output;
use crate::failure::Failure;
use crate::model_args::{ComputeArgs, load};
use crate::progress;

/// Measure prefill and scan on this machine, as ratios to the bare pass
///
/// Every way of running is measured in turn, several times; medians are printed. Without --model, a
/// checkpoint of random weights at a real model's shape is written to a temporary directory.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  fathom bench-engine --shape qwen2.5-0.5b --tokens 512,2048")]
pub struct Args {
    /// The checkpoint to run; a HuggingFace directory or a hub id in the cache
    #[arg(long, value_name = "M", conflicts_with = "shape")]
    model: Option<String>,
    /// The shape of the checkpoint to make up
    #[arg(long, value_enum, default_value_t = Shape::Small, value_name = "SHAPE")]
    shape: Shape,
    /// Lengths to measure at
    #[arg(long, value_delimiter = ',', default_value = "512,2048,4096", value_name = "T,…")]
    tokens: Vec<usize>,
    /// How often to measure each
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    repeats: u16,
    #[command(flatten)]
    compute: ComputeArgs,
}

/// Shapes to make up.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Shape {
    /// Six layers of Qwen2.5-0.5B, with a vocabulary of 8192
    Small,
    /// Qwen2.5-0.5B
    #[value(name = "qwen2.5-0.5b")]
    Qwen05B,
    /// Qwen2.5-1.5B
    #[value(name = "qwen2.5-1.5b")]
    Qwen15B,
}

impl Shape {
    fn shape(self) -> SyntheticShape {
        match self {
            Shape::Small => {
                SyntheticShape { layers: 6, vocab: 8192, ..SyntheticShape::QWEN2_5_0_5B }
            }
            Shape::Qwen05B => SyntheticShape::QWEN2_5_0_5B,
            Shape::Qwen15B => SyntheticShape::QWEN2_5_1_5B,
        }
    }
}

pub fn run(args: &Args, output: Output, out: &mut dyn Write) -> Result<(), Failure> {
    if let Some(tokens) = args.tokens.iter().find(|tokens| **tokens == 0) {
        let message = format!("--tokens {tokens}: expected lengths of at least 1");
        return Err(Failure::Input(Error::Request(message)));
    }
    let scratch = tempfile::tempdir()
        .map_err(Error::io(&std::env::temp_dir(), "cannot hold a temporary directory"))?;
    let (dir, name) = match &args.model {
        Some(model) => {
            let dir = fathom_model::resolve_model_dir(model, |name| std::env::var_os(name))?;
            (dir, model.clone())
        }
        None => {
            progress::note(output, "writing a checkpoint of random weights");
            write_synthetic(scratch.path(), &args.shape.shape(), 1)?;
            let value = clap::ValueEnum::to_possible_value(&args.shape);
            let name = value.map_or_else(String::new, |value| value.get_name().to_owned());
            (scratch.path().to_owned(), format!("random weights, shape {name}"))
        }
    };
    let model = load(&dir, args.compute, output)?;
    let limits = limits::measure(model.backend());
    let flops = flops_per_token(&model);

    let bar = progress::bar(output, "measuring", "lengths", args.tokens.len() as u64);
    let mut rows = Vec::with_capacity(args.tokens.len());
    for tokens in &args.tokens {
        rows.push(overhead(&model, *tokens, args.repeats.into())?);
        bar.inc(1);
    }
    bar.finish_and_clear();

    let peak =
        |row: &Overhead| row.prefill_tokens_per_s * flops / peak_flops(&limits, args.compute);
    if output.json {
        let rows: Vec<_> = rows
            .iter()
            .map(|row| json!({ "overhead": row, "prefill_of_peak": peak(row) }))
            .collect();
        writeln!(out, "{}", json!({ "model": name, "rows": rows }))?;
        return Ok(());
    }
    writeln!(out, "{name}; {} threads\n", model.backend().threads())?;
    writeln!(out, "| T | prefill tok/s | of peak | capture | scan | scan --attention |")?;
    writeln!(out, "| ---: | ---: | ---: | ---: | ---: | ---: |")?;
    for row in &rows {
        writeln!(
            out,
            "| {} | {:.0} | {:.0} % | {:.2} × | {:.2} × | {:.2} × |",
            row.tokens,
            row.prefill_tokens_per_s,
            100.0 * peak(row),
            row.capture,
            row.scan,
            row.scan_attention
        )?;
    }
    Ok(())
}

/// Multiplications and additions of the layers' matrix products; attention is not counted.
fn flops_per_token<B: fathom_kernels::Backend>(model: &Model<B>) -> f64 {
    let c = model.config();
    let attention = c.hidden * c.head_dim * (2 * c.heads + 2 * c.kv_heads);
    2.0 * (c.layers * (attention + 3 * c.hidden * c.intermediate)) as f64
}

fn peak_flops(limits: &Limits, compute: ComputeArgs) -> f64 {
    match (compute.precision, limits.bf16_flops) {
        (crate::model_args::Precision::Bf16, Some(flops)) => flops,
        _ => limits.f32_flops,
    }
}
