//! Matrix products and attention by themselves, at the shapes of models.

use std::io::Write;

use fathom_kernels::limits::{self, Limits};
use fathom_kernels::workload::{Attending, Products, Work, median_time};
use fathom_kernels::{Backend, Cpu};
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
const QUERIES: [(&str, usize); 3] = [("decode", 1), ("verify", 16), ("prefill", PREFILL_ROWS)];
const PREFILL_ROWS: usize = 512;

/// A kernel's speed at one size.
struct Speed {
    work: Work,
    seconds: f64,
    of_limit: f64,
}

/// Products of one matrix, or attention at one length.
struct Line {
    shape: String,
    what: String,
    /// By rows; `None` where that is never run.
    speeds: Vec<Option<Speed>>,
}

/// Measures and prints both tables.
pub fn run(
    cpu: &Cpu,
    shapes: &[Shape],
    repeats: usize,
    output: Output,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let limits = limits::measure(cpu);
    let lines = shapes.len() * (5 + TOKENS.len());
    let bar = progress::bar(output, "measuring", "kernels", lines as u64);
    let (mut products, mut attention) = (Vec::new(), Vec::new());
    for &shape in shapes {
        for (what, k, n) in shape.shape().products() {
            let mut work = Products::new(cpu, k, n);
            let speeds = ROWS.map(|rows| {
                if what == "head" && rows > HEAD_ROWS {
                    return None;
                }
                let takes = work.set_rows(rows);
                let time = median_time(repeats, || work.run());
                Some(speed(cpu, &limits, takes, time))
            });
            let what = format!("{what}: {k} → {n}");
            products.push(Line { shape: shape.name(), what, speeds: speeds.into() });
            bar.inc(1);
        }
        for tokens in TOKENS {
            attention.push(attend(cpu, &limits, shape, tokens, repeats));
            bar.inc(1);
        }
    }
    bar.finish_and_clear();

    let names = || ROWS.map(|rows| rows.to_string());
    let mut columns: Vec<String> = QUERIES.map(|(name, _)| name.to_owned()).into();
    columns.push("column sums".to_owned());
    if output.json {
        let precision = format!("{:?}", cpu.precision()).to_lowercase();
        let report = json!({
            "precision": precision,
            "threads": cpu.threads(),
            "kernels": cpu.isa().name(),
            "limits": limits_json(&limits),
            "products": lines_json(&products, &names()),
            "attention": lines_json(&attention, &columns),
        });
        writeln!(out, "{report}")?;
        return Ok(());
    }
    writeln!(out, "{:?}, {} threads, {}", cpu.precision(), cpu.threads(), cpu.isa())?;
    writeln!(out, "{}\n", limits_line(&limits))?;
    writeln!(out, "Matrix products by rows, as fractions of the limit:\n")?;
    table(&products, &names(), out)?;
    writeln!(out, "\nAttention by keys, as fractions of the limit:\n")?;
    table(&attention, &columns, out)
}

/// Attention over `tokens` keys; the last entry is the second pass of the sink scores.
fn attend(cpu: &Cpu, limits: &Limits, shape: Shape, tokens: usize, repeats: usize) -> Line {
    let sizes = shape.shape();
    let head_dim = sizes.hidden / sizes.heads;
    let mut work = Attending::new(cpu, (sizes.heads, sizes.kv_heads, head_dim), tokens);
    let mut speeds = Vec::with_capacity(QUERIES.len() + 1);
    for (_, rows) in QUERIES {
        let takes = work.set_rows(rows);
        let time = median_time(repeats, || work.run());
        speeds.push(Some(speed(cpu, limits, takes, time)));
        if rows == PREFILL_ROWS {
            let takes = Work { bytes: takes.bytes / 2.0, flops: takes.flops / 2.0 };
            let time = median_time(repeats, || work.add_column_sums());
            speeds.push(Some(speed(cpu, limits, takes, time)));
        }
    }
    Line { shape: shape.name(), what: format!("{tokens} keys"), speeds }
}

fn speed(cpu: &Cpu, limits: &Limits, work: Work, time: std::time::Duration) -> Speed {
    let of_limit = work.of_limit(cpu, limits, time);
    Speed { work, seconds: time.as_secs_f64(), of_limit }
}

fn table(lines: &[Line], columns: &[String], out: &mut dyn Write) -> Result<(), Failure> {
    writeln!(out, "| shape | | {} |", columns.join(" | "))?;
    writeln!(out, "|---|---|{}", "---:|".repeat(columns.len()))?;
    for Line { shape, what, speeds } in lines {
        let cell = |speed: &Option<Speed>| {
            speed.as_ref().map_or_else(|| "–".to_owned(), |speed| percent(speed.of_limit))
        };
        let cells: Vec<String> = speeds.iter().map(cell).collect();
        writeln!(out, "| {shape} | {what} | {} |", cells.join(" | "))?;
    }
    Ok(())
}

fn lines_json(lines: &[Line], columns: &[String]) -> Vec<Value> {
    let measured = lines.iter().flat_map(|line| {
        let speeds = columns.iter().zip(&line.speeds);
        speeds.filter_map(move |(column, speed)| Some((line, column, speed.as_ref()?)))
    });
    measured
        .map(|(line, column, speed)| {
            json!({
                "shape": line.shape,
                "what": line.what,
                "at": column,
                "seconds": speed.seconds,
                "bytes": speed.work.bytes,
                "flops": speed.work.flops,
                "of_limit": speed.of_limit,
            })
        })
        .collect()
}
