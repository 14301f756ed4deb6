//! Tables of measured speeds and of the machine's limits.

use std::io::Write;

use fathom_measure::DecodeSpeed;
use fathom_measure::limits::Limits;
use serde_json::{Value, json};

use crate::cli::failure::Failure;

/// Limits as JSON, in bytes, operations and seconds.
pub fn limits_json(limits: &Limits) -> Value {
    json!({
        "threads": limits.threads,
        "read_bytes_per_s": limits.read_bytes,
        "f32_flops_per_s": limits.f32_flops,
        "bf16_flops_per_s": limits.bf16_flops,
        "hand_off_s": limits.hand_off.as_secs_f64(),
    })
}

/// Prints the limits, one column for each number of threads.
pub fn limits_table(all: &[Limits], out: &mut dyn Write) -> Result<(), Failure> {
    let row = |out: &mut dyn Write, name: &str, of: &dyn Fn(&Limits) -> String| {
        let cells: Vec<String> = all.iter().map(of).collect();
        writeln!(out, "| {name} | {} |", cells.join(" | "))
    };
    row(out, "limits", &|limits| match limits.threads {
        1 => "1 thread".to_owned(),
        threads => format!("{threads} threads"),
    })?;
    writeln!(out, "|---|{}", "---:|".repeat(all.len()))?;
    row(out, "memory read, GB/s", &|limits| format!("{:.1}", limits.read_bytes / 1e9))?;
    row(out, "matrix rate f32, GFLOP/s", &|limits| format!("{:.0}", limits.f32_flops / 1e9))?;
    row(out, "matrix rate bf16, GFLOP/s", &|limits| match limits.bf16_flops {
        Some(flops) => format!("{:.0}", flops / 1e9),
        None => "as f32".to_owned(),
    })?;
    row(out, "hand-off, µs", &|limits| match limits.threads {
        1 => "–".to_owned(),
        _ => format!("{:.1}", limits.hand_off.as_secs_f64() * 1e6),
    })?;
    Ok(())
}

/// The limits that the fractions of a table refer to, on one line.
pub fn limits_line(limits: &Limits) -> String {
    let bf16 = limits.bf16_flops.map(|flops| format!(", bf16 {:.0} GFLOP/s", flops / 1e9));
    format!(
        "memory {:.1} GB/s, f32 {:.0} GFLOP/s{}",
        limits.read_bytes / 1e9,
        limits.f32_flops / 1e9,
        bf16.unwrap_or_default()
    )
}

/// A fraction as a percentage.
pub fn percent(fraction: f64) -> String {
    format!("{:.0} %", 100.0 * fraction)
}

/// Prints decoding speeds, one row per batch size.
pub fn decode_table(rows: &[DecodeSpeed], out: &mut dyn Write) -> Result<(), Failure> {
    let first = rows.first().map_or(1, |row| row.batch);
    writeln!(
        out,
        "| sequences | ms a step | tok/s | of weights ÷ bandwidth | times a step of {first} |"
    )?;
    writeln!(out, "|---:|---:|---:|---:|---:|")?;
    for row in rows {
        writeln!(
            out,
            "| {} | {:.2} | {:.1} | {} | {:.2} × |",
            row.batch,
            1e3 * row.step_s,
            row.tokens_per_s,
            percent(row.of_bandwidth),
            row.times_first
        )?;
    }
    Ok(())
}
