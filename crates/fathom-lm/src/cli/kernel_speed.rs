//! Speed of single kernels, matrix products and attention, at the shapes of real models.

use std::io::Write;

use fathom_backend::{Backend, BackendError};
use fathom_kernels::Cpu;
use fathom_measure::limits::{self, CurrentLimits, Limits};
use fathom_measure::workload::{AttentionWorkload, Measured, ProductWorkload, Work, measure};
use fathom_model::Result;
use serde_json::{Value, json};

use crate::cli::failure::Failure;
use crate::cli::output::Output;
use crate::cli::progress;
use crate::cli::speed_tables::{limits_json, limits_line, percent};
use crate::cli::subject::Shape;

/// Rows of the matrix products: decoding, verification, prefill.
const ROWS: [usize; 10] = [1, 2, 4, 8, 16, 32, 64, 128, 512, 2048];
/// Largest number of rows measured with the output head: logits are computed for few rows at once.
const HEAD_ROWS: usize = 128;
/// Numbers of keys in attention.
const TOKENS: [usize; 4] = [512, 2048, 8192, 16_384];
/// Query rows in attention: decoding, verification, the last chunk of a prefill.
const QUERIES: [(&str, usize); 3] = [("decode", 1), ("verify", 16), ("prefill", 512)];

/// One row of a table: products with one matrix, or attention over one number of keys.
struct KernelRow {
    shape: String,
    what: String,
    /// One measurement per column; `None` for sizes that are not measured.
    runs: Vec<Option<Measured>>,
}

/// The backend, its limits, and the number of repetitions.
struct KernelBench<'a> {
    cpu: &'a Cpu,
    limits: Limits,
    now: CurrentLimits<'a>,
    repeats: usize,
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
    let bench =
        KernelBench { cpu, limits: limits::measure(cpu), now: CurrentLimits::new(cpu), repeats };
    for &shape in shapes {
        for (what, k, n) in shape.shape().products() {
            let runs = bench.multiply(k, n, what == "head")?;
            let what = format!("{what}: {k} → {n}");
            products.push(KernelRow { shape: shape.name(), what, runs });
            bar.inc(1);
        }
        for tokens in TOKENS {
            let runs = bench.attend(shape, tokens)?;
            attention.push(KernelRow { shape: shape.name(), what: format!("{tokens} keys"), runs });
            bar.inc(1);
        }
    }
    bar.finish_and_clear();

    let names = || ROWS.map(|rows| rows.to_string());
    let mut columns: Vec<String> = QUERIES.map(|(name, _)| name.to_owned()).into();
    columns.push("column sums".to_owned());
    let precision = cpu.precision().name();
    if output.json {
        let report = json!({
            "precision": precision,
            "threads": cpu.threads(),
            "kernels": cpu.isa().name(),
            "limits": limits_json(&bench.limits),
            "products": rows_json(&products, &names()),
            "attention": rows_json(&attention, &columns),
        });
        writeln!(out, "{report}")?;
        return Ok(());
    }
    writeln!(out, "{precision}, {} threads, {}", cpu.threads(), cpu.isa())?;
    writeln!(out, "{}\n", limits_line(&bench.limits))?;
    writeln!(out, "Matrix products by rows, as fractions of the limit:\n")?;
    table(&products, &names(), out)?;
    writeln!(out, "\nAttention by keys, as fractions of the limit:\n")?;
    table(&attention, &columns, out)
}

impl KernelBench<'_> {
    /// Measures products with a `k × n` matrix, one for each of [`ROWS`].
    fn multiply(&self, k: usize, n: usize, is_head: bool) -> Result<Vec<Option<Measured>>> {
        let mut products = ProductWorkload::new(self.cpu, k, n)?;
        let mut run = |rows| {
            if is_head && rows > HEAD_ROWS {
                return Ok(None);
            }
            let work = products.set_rows(rows)?;
            self.measure(work, || products.run()).map(Some)
        };
        ROWS.into_iter().map(&mut run).collect()
    }

    /// Measures attention over `tokens` keys, one for each of [`QUERIES`], then the column sums of
    /// the sink scores.
    fn attend(&self, shape: Shape, tokens: usize) -> Result<Vec<Option<Measured>>> {
        let sizes = shape.shape();
        let head_dim = sizes.hidden / sizes.heads;
        let heads = (sizes.heads, sizes.kv_heads, head_dim);
        let mut attending = AttentionWorkload::new(self.cpu, heads, tokens)?;
        let mut runs = Vec::with_capacity(QUERIES.len() + 1);
        let mut work = Work { bytes: 0.0, flops: 0.0 };
        for (_, rows) in QUERIES {
            work = attending.set_rows(rows)?;
            runs.push(Some(self.measure(work, || attending.run())?));
        }
        // Column sums compute scores but no weighted values, and read keys but no values.
        let half = Work { bytes: work.bytes / 2.0, flops: work.flops / 2.0 };
        runs.push(Some(self.measure(half, || attending.add_column_sums())?));
        Ok(runs)
    }

    fn measure(
        &self,
        work: Work,
        run: impl FnMut() -> Result<(), BackendError>,
    ) -> Result<Measured> {
        Ok(measure(&self.now, self.repeats, work, run)?)
    }
}

fn table(rows: &[KernelRow], columns: &[String], out: &mut dyn Write) -> Result<(), Failure> {
    writeln!(out, "| shape | | {} |", columns.join(" | "))?;
    writeln!(out, "|---|---|{}", "---:|".repeat(columns.len()))?;
    for KernelRow { shape, what, runs } in rows {
        let cell = |run: &Option<Measured>| {
            run.as_ref().map_or_else(|| "–".to_owned(), |run| percent(run.of_limit))
        };
        let cells: Vec<String> = runs.iter().map(cell).collect();
        writeln!(out, "| {shape} | {what} | {} |", cells.join(" | "))?;
    }
    Ok(())
}

fn rows_json(rows: &[KernelRow], columns: &[String]) -> Vec<Value> {
    let measured = rows.iter().flat_map(|row| {
        let runs = columns.iter().zip(&row.runs);
        runs.filter_map(move |(column, run)| Some((row, column, run.as_ref()?)))
    });
    measured
        .map(|(row, column, run)| {
            json!({
                "shape": row.shape,
                "what": row.what,
                "at": column,
                "seconds": run.seconds,
                "bytes": run.work.bytes,
                "flops": run.work.flops,
                "of_limit": run.of_limit,
            })
        })
        .collect()
}
