//! The benchmark's tables.

use fathom_decode::bench::{BenchResult, HeldOut};
use fathom_decode::engine::{EngineMetrics, ModeChoice};
use serde_json::json;

use crate::{Cell, Column, Table};

/// One measurement of the benchmark.
#[derive(Clone, Debug)]
pub struct BenchRow {
    /// Texts decoded together.
    pub batch_size: usize,
    /// The benchmark that the prompts are from.
    pub benchmark: String,
    /// What was measured.
    pub measured: BenchResult,
    /// Throughput relative to plain decoding with the same accounting, median over the repeats.
    pub speedup: f64,
    /// The speedup that the simulator predicts.
    pub predicted: Option<f64>,
    /// Tokens per step of each half of the prompts, measured and predicted from the other half.
    pub held_out: Option<[HeldOut; 2]>,
    /// For the automatic mode: its throughput relative to the best single mode, by repeat.
    pub of_best: Option<f64>,
}

/// A table with the columns of the published one.
pub fn bench_table(draft: &str, target: &str, rows: &[BenchRow]) -> Table {
    let mut table = Table::new(columns());
    for row in rows {
        table.push(cells(draft, target, row));
    }
    table
}

/// Like [`bench_table`], for several accountings, whose names are in the last column.
pub fn bench_table_of_all(draft: &str, target: &str, all: &[(&str, &[BenchRow])]) -> Table {
    let mut columns = columns();
    columns.push(Column::text("accounting", "Accounting"));
    let mut table = Table::new(columns);
    for (accounting, rows) in all {
        for row in *rows {
            let mut cells = cells(draft, target, row);
            cells.push(Cell::text(*accounting));
            table.push(cells);
        }
    }
    table
}

fn columns() -> Vec<Column> {
    vec![
        Column::text("draft_model", "Draft Model"),
        Column::text("target_model", "Target Model"),
        Column::number("batch_size", "Batch Size"),
        Column::text("benchmark", "Benchmark"),
        Column::text("mode", "Mode"),
        Column::number("num_tokens", "Num Tokens"),
        Column::number("time_s", "Time (s)"),
        Column::number("throughput_tok_s", "Throughput (tok/s)"),
        Column::number("mat", "MAT"),
        Column::number("speedup", "Speedup"),
    ]
}

fn cells(draft: &str, target: &str, row: &BenchRow) -> Vec<Cell> {
    let m = &row.measured;
    vec![
        Cell::text(draft),
        Cell::text(target),
        Cell::count(row.batch_size),
        Cell::text(&row.benchmark),
        Cell::text(mode_name(m.mode)),
        Cell::count(m.tokens()),
        number(m.seconds, 2),
        number(m.throughput(), 2),
        number(m.mat, 2),
        number(row.speedup, 2),
    ]
}

/// Where the time was spent, and how many drafts were accepted. Bubbles: the share of steps that
/// scored a single row because nothing was pending; branch hits: the share of rejections after
/// which a prepared branch went on; wasted rows: the share of the target's rows that gave no token;
/// held out: tokens per step of each half of the prompts, relative to what the simulator predicts
/// from the other half.
pub fn breakdown_table(rows: &[BenchRow]) -> Table {
    let mut table = Table::new(vec![
        Column::number("batch_size", "Batch"),
        Column::text("benchmark", "Benchmark"),
        Column::text("mode", "Mode"),
        Column::number("steps", "Steps"),
        Column::text("steps_by_mode", "By mode"),
        Column::number("gamma", "γ"),
        Column::number("tokens_per_step", "Tokens/step"),
        Column::number("acceptance", "Accepted"),
        Column::text("acceptance_by_position", "Accepted by position"),
        Column::number("bubbles", "Bubbles"),
        Column::number("branch_hits", "Branch hits"),
        Column::number("wasted_drafts", "Wasted"),
        Column::number("wasted_rows", "Wasted rows"),
        Column::number("prefill_s", "Prefill (s)"),
        Column::number("draft_s", "Draft (s)"),
        Column::number("verify_s", "Verify (s)"),
        Column::number("wait_s", "Wait (s)"),
        Column::number("sampling_s", "Sampling (s)"),
        Column::number("predicted_speedup", "Predicted"),
        Column::number("measured_of_predicted", "Measured/predicted"),
        Column::text("held_out", "Held out"),
        Column::number("of_best", "Of the best"),
    ]);
    for row in rows {
        let (m, metrics) = (&row.measured, &row.measured.metrics);
        let by_position = metrics.acceptance.by_position();
        let parallel = metrics.steps.keys().any(|mode| mode.is_parallel());
        let (branches, sequence_steps) = (metrics.branches, m.sequence_steps.max(1) as f64);
        let shown = by_position.iter().take(POSITIONS).map(|share| format!("{:.0}", 100.0 * share));
        let shown = shown.collect::<Vec<_>>().join(" ");
        table.push(vec![
            Cell::count(row.batch_size),
            Cell::text(&row.benchmark),
            Cell::text(mode_name(m.mode)),
            Cell::count(m.steps),
            steps_by_mode(metrics),
            number(m.gamma, 1),
            number(m.tokens_per_step(), 2),
            metrics.acceptance.rate().map_or(none(), percent),
            Cell::new(shown, by_position),
            if parallel { percent(metrics.bubbles as f64 / sequence_steps) } else { none() },
            if branches.drafted > 0 { percent(branches.rate()) } else { none() },
            Cell::count(metrics.wasted),
            percent(metrics.wasted_rows() as f64 / metrics.target_rows.max(1) as f64),
            number(metrics.prefill_seconds, 2),
            number(metrics.draft_seconds, 2),
            number(metrics.verify_seconds, 2),
            number(metrics.wait_seconds, 2),
            number(metrics.judge_seconds, 3),
            row.predicted.map_or(none(), |predicted| number(predicted, 2)),
            row.predicted.map_or(none(), |predicted| number(row.speedup / predicted, 2)),
            row.held_out.map_or(none(), held_out),
            row.of_best.map_or(none(), |of_best| number(of_best, 2)),
        ]);
    }
    table
}

/// Measured over predicted tokens per step, of both halves.
fn held_out(halves: [HeldOut; 2]) -> Cell {
    let shown = halves.map(|half| format!("{:.2}", half.ratio())).join(", ");
    let all = halves.map(
        |HeldOut { measured, predicted }| json!({ "measured": measured, "predicted": predicted }),
    );
    Cell::new(shown, serde_json::Value::from(all.to_vec()))
}

/// The number of steps in each mode.
fn steps_by_mode(metrics: &EngineMetrics) -> Cell {
    let each = metrics.steps.iter();
    let shown = each.clone().map(|(mode, n)| format!("{n} {mode}")).collect::<Vec<_>>().join(", ");
    let all = each.map(|(mode, n)| (mode.to_string(), (*n).into()));
    Cell::new(shown, serde_json::Value::Object(all.collect()))
}

/// Positions shown in text formats; JSON has all.
const POSITIONS: usize = 8;

fn mode_name(mode: ModeChoice) -> String {
    match mode {
        ModeChoice::Always(mode) => mode.to_string().to_uppercase(),
        ModeChoice::Auto => "AUTO".to_owned(),
    }
}

fn number(x: f64, decimals: usize) -> Cell {
    Cell::new(format!("{x:.decimals$}"), x)
}

fn percent(share: f64) -> Cell {
    Cell::new(format!("{:.1} %", 100.0 * share), share)
}

fn none() -> Cell {
    Cell::new("–", serde_json::Value::Null)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Format;

    #[test]
    fn the_columns_are_those_of_the_published_table() {
        let row = BenchRow {
            batch_size: 4,
            benchmark: "GSM8K".to_owned(),
            measured: BenchResult {
                mode: ModeChoice::Auto,
                seconds: 2.0,
                mat: 3.256,
                texts: vec![vec![0; 30], vec![0; 20]],
                ..BenchResult::default()
            },
            speedup: 1.5,
            predicted: None,
            held_out: None,
            of_best: None,
        };
        let text = bench_table("d", "t", &[row]).render(Format::Csv);
        assert_eq!(
            text,
            "Draft Model,Target Model,Batch Size,Benchmark,Mode,Num Tokens,Time (s),\
             Throughput (tok/s),MAT,Speedup\r\nd,t,4,GSM8K,AUTO,50,2.00,25.00,3.26,1.50\r\n"
        );
    }
}
