//! Matrix products and attention by themselves, at the shapes of models.

use std::io::Write;
use std::time::Duration;

use fathom_kernels::limits::{self, Limits};
use fathom_kernels::workload::{Attending, Products, Work, median_time};
use fathom_kernels::{Backend, Cpu, Precision};
use serde_json::{Value, json};

use crate::cli::Output;
use crate::failure::Failure;
use crate::progress;
use crate::speed_tables::{limits_json, limits_line, percent};
use crate::subject::Shape;

/// Rows of the products: decoding, verification, prefill.
const ROWS: [usize; 10] = [1, 2, 4, 8, 16, 32, 64, 128, 512, 2048];
/// The most rows an output head computes logits for at once.
const HEAD_ROWS: usize = 128;
/// Keys of the attention.
const TOKENS: [usize; 4] = [512, 2048, 8192, 16_384];
/// Query rows of the attention: decoding, verification, the last chunk of a prefill.
const QUERIES: [(&str, usize); 3] = [("decode", 1), ("verify", 16), ("prefill", 512)];

/// Products of one matrix, or attention at one length.
struct Line {
    shape: String,
    what: String,
    /// What was to be done and how long it took, by rows; `None` where that is never run.
    runs: Vec<Option<(Work, Duration)>>,
    /// The best of the limits measured before and after this shape's runs.
    limits: Limits,
}

/// Measures and prints both tables.
pub fn run(
    cpu: &Cpu,
    shapes: &[Shape],
    repeats: usize,
    output: Output,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let lines = shapes.len() * (5 + TOKENS.len());
    let bar = progress::bar(output, "measuring", "kernels", lines as u64);
    let (mut products, mut attention) = (Vec::new(), Vec::new());
    let mut limits = limits::measure(cpu);
    let mut best = limits;
    for &shape in shapes {
        let before = limits;
        let (first_product, first_attention) = (products.len(), attention.len());
        for (what, k, n) in shape.shape().products() {
            let runs = multiply(cpu, k, n, what == "head", repeats);
            let what = format!("{what}: {k} → {n}");
            products.push(Line { shape: shape.name(), what, runs, limits });
            bar.inc(1);
        }
        for tokens in TOKENS {
            let runs = attend(cpu, shape, tokens, repeats);
            let what = format!("{tokens} keys");
            attention.push(Line { shape: shape.name(), what, runs, limits });
            bar.inc(1);
        }
        limits = limits::measure(cpu);
        let these = before.or_better(limits);
        best = best.or_better(limits);
        for line in products[first_product..].iter_mut().chain(&mut attention[first_attention..]) {
            line.limits = these;
        }
    }
    bar.finish_and_clear();

    let names = || ROWS.map(|rows| rows.to_string());
    let mut columns: Vec<String> = QUERIES.map(|(name, _)| name.to_owned()).into();
    columns.push("column sums".to_owned());
    let precision = match cpu.precision() {
        Precision::F32 => "f32",
        Precision::Bf16 => "bf16",
    };
    if output.json {
        let report = json!({
            "precision": precision,
            "threads": cpu.threads(),
            "kernels": cpu.isa().name(),
            "limits": limits_json(&best),
            "products": lines_json(&products, &names(), cpu),
            "attention": lines_json(&attention, &columns, cpu),
        });
        writeln!(out, "{report}")?;
        return Ok(());
    }
    writeln!(out, "{precision}, {} threads, {}", cpu.threads(), cpu.isa())?;
    writeln!(out, "{}\n", limits_line(&best))?;
    writeln!(out, "Matrix products by rows, as fractions of the limit:\n")?;
    table(&products, &names(), cpu, out)?;
    writeln!(out, "\nAttention by keys, as fractions of the limit:\n")?;
    table(&attention, &columns, cpu, out)
}

/// Products with a `k × n` matrix, by [`ROWS`].
fn multiply(
    cpu: &Cpu,
    k: usize,
    n: usize,
    is_head: bool,
    repeats: usize,
) -> Vec<Option<(Work, Duration)>> {
    let mut products = Products::new(cpu, k, n);
    let runs = ROWS.map(|rows| {
        (!is_head || rows <= HEAD_ROWS).then(|| {
            let work = products.set_rows(rows);
            (work, median_time(repeats, || products.run()))
        })
    });
    runs.into()
}

/// Attention over `tokens` keys, by [`QUERIES`], then the second pass of the sink scores.
fn attend(cpu: &Cpu, shape: Shape, tokens: usize, repeats: usize) -> Vec<Option<(Work, Duration)>> {
    let sizes = shape.shape();
    let head_dim = sizes.hidden / sizes.heads;
    let mut attending = Attending::new(cpu, (sizes.heads, sizes.kv_heads, head_dim), tokens);
    let mut runs = Vec::with_capacity(QUERIES.len() + 1);
    let mut work = Work { bytes: 0.0, flops: 0.0 };
    for (_, rows) in QUERIES {
        work = attending.set_rows(rows);
        runs.push(Some((work, median_time(repeats, || attending.run()))));
    }
    // Of the products only the scores, of the cache only the keys.
    let half = Work { bytes: work.bytes / 2.0, flops: work.flops / 2.0 };
    runs.push(Some((half, median_time(repeats, || attending.add_column_sums()))));
    runs
}

fn table(
    lines: &[Line],
    columns: &[String],
    cpu: &Cpu,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    writeln!(out, "| shape | | {} |", columns.join(" | "))?;
    writeln!(out, "|---|---|{}", "---:|".repeat(columns.len()))?;
    for Line { shape, what, runs, limits } in lines {
        let cell = |run: &Option<(Work, Duration)>| match run {
            Some((work, time)) => percent(work.of_limit(cpu, limits, *time)),
            None => "–".to_owned(),
        };
        let cells: Vec<String> = runs.iter().map(cell).collect();
        writeln!(out, "| {shape} | {what} | {} |", cells.join(" | "))?;
    }
    Ok(())
}

fn lines_json(lines: &[Line], columns: &[String], cpu: &Cpu) -> Vec<Value> {
    let measured = lines.iter().flat_map(|line| {
        let runs = columns.iter().zip(&line.runs);
        runs.filter_map(move |(column, run)| Some((line, column, run.as_ref()?)))
    });
    measured
        .map(|(line, column, (work, time))| {
            json!({
                "shape": line.shape,
                "what": line.what,
                "at": column,
                "seconds": time.as_secs_f64(),
                "bytes": work.bytes,
                "flops": work.flops,
                "of_limit": work.of_limit(cpu, &line.limits, *time),
            })
        })
        .collect()
}
