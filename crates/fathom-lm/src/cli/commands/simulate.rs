//! `fathom simulate`: PEARL's state machine with simulated acceptance.

use std::io::Write;
use std::path::{Path, PathBuf};

use fathom_decode::seed_table::{self, Prediction};
use fathom_decode::simulate::{self, Chances, Protocol, StepCosts};
use fathom_decode::{Lengths, Mode};
use fathom_model::{Error, Result};
use fathom_report::{Cell, Column, Format, Table};
use serde_json::json;

use crate::cli::failure::Failure;
use crate::cli::output::Output;

/// Predict the speed of speculative decoding for a given acceptance
///
/// Runs the state machines of the decoder with every draft token accepted with the same
/// probability. Costs are in units of one pass of the target over one token. Draft and target have
/// separate resources; `ar` uses the target's. In `suffix`, every guess has γ tokens and costs
/// nothing.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    fathom simulate --mat 7.3 --gamma 9\n  \
    fathom simulate --mat 4 --gamma 5 --draft-cost 0.2 --verify-cost 1.1 --json\n  \
    fathom simulate --seed-table bench_summary_l40s.md")]
pub struct Args {
    #[command(flatten)]
    input: SimulationInput,
    /// Draft length in tokens
    #[arg(long, value_name = "N", required_unless_present = "seed_table",
          value_parser = clap::value_parser!(u16).range(1..=1024))]
    gamma: Option<u16>,
    /// Cost of drafting one token [default: 1/γ, where PEARL's draft and target take equally long]
    #[arg(long, value_name = "C", conflicts_with = "seed_table")]
    draft_cost: Option<f64>,
    /// Cost of the target's pass over a chunk
    #[arg(long, value_name = "C", default_value_t = 1.0, conflicts_with = "seed_table")]
    verify_cost: f64,
    /// `forked`: chance that a rejection is one that the draft prepared for
    #[arg(long, value_name = "X", default_value_t = seed_table::BRANCH_CHANCE)]
    branch_chance: f64,
    /// `forked`: cost of drafting a token for a text and its branches, relative to the text alone
    #[arg(long, value_name = "C", default_value_t = 1.0, conflicts_with = "seed_table")]
    branch_cost: f64,
    /// Random seed
    #[arg(long, value_name = "N", default_value_t = 0, conflicts_with = "seed_table")]
    seed: u64,
    /// Print comma-separated values
    #[arg(long, conflicts_with = "json")]
    csv: bool,
}

/// What to simulate.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct SimulationInput {
    /// Mean accepted tokens: the mean length of a run of accepted tokens, including the corrected
    /// token at its end
    #[arg(long, value_name = "X")]
    mat: Option<f64>,
    /// The published benchmark table (markdown): fit one γ per model pair and predict tokens per
    /// step
    #[arg(long, value_name = "FILE", conflicts_with = "gamma")]
    seed_table: Option<PathBuf>,
}

pub fn run(args: &Args, output: Output, out: &mut dyn Write) -> Result<(), Failure> {
    let format = if args.csv { Format::Csv } else { Format::Markdown };
    if let Some(path) = &args.input.seed_table {
        return predict(path, args.branch_chance()?, output, format, out);
    }
    let table = args.simulate()?;
    if output.json {
        writeln!(out, "{:#}", table.to_json())?;
    } else {
        write!(out, "{}", table.render(format))?;
    }
    Ok(())
}

impl Args {
    /// Simulates one MAT and γ: one row per decoding mode.
    fn simulate(&self) -> Result<Table> {
        let gamma = usize::from(self.gamma.unwrap_or(1)); // clap requires --gamma with --mat
        let mat = positive("--mat", self.input.mat.unwrap_or(1.0), 1.0)?;
        let draft = positive("--draft-cost", self.draft_cost.unwrap_or(1.0 / gamma as f64), 0.0)?;
        let verify = positive("--verify-cost", self.verify_cost, 0.0)?;
        let branch_cost = positive("--branch-cost", self.branch_cost, 0.0)?;
        let chances = Chances { acceptance: 1.0 - 1.0 / mat, branch: self.branch_chance()? };
        let protocol = Protocol { sequences: 100, batch: 1, steps: 1000, seed: self.seed };

        let mut table = Table::new(vec![
            Column::text("mode", "Mode"),
            Column::number("gamma", "γ"),
            Column::number("acceptance", "Acceptance"),
            Column::number("tokens_per_step", "Tokens per step"),
            Column::number("mat", "MAT"),
            Column::number("speedup", "Speedup"),
        ]);
        for mode in Mode::ALL {
            // A pass costs 1 over one token and --verify-cost over a full chunk, linear in between.
            // A full pass of SD or suffix has γ + 1 rows, the last committed token and γ drafts.
            // One of PEARL has γ rows.
            let extra_rows = match mode {
                Mode::Sd | Mode::Suffix => gamma,
                Mode::Ar | Mode::Pearl | Mode::Forked => gamma.max(2) - 1,
            } as f64;
            let cost = |rows| 1.0 + (verify - 1.0) * (rows - 1.0) / extra_rows;
            let draft = if mode == Mode::Forked { draft * branch_cost } else { draft };
            let costs = StepCosts::new(draft, cost);
            let lengths = Lengths::same(gamma);
            let simulated = simulate::run(mode, lengths, chances, protocol, &costs)?;
            let drafts = |cell| if mode.drafts() { cell } else { Cell::none() };
            table.push(vec![
                Cell::text(mode.to_string()),
                drafts(Cell::count(gamma)),
                drafts(number(chances.acceptance, 3)),
                number(simulated.tokens_per_step, 3),
                number(simulated.mat, 2),
                number(simulated.tokens_per_second, 2), // plain decoding has 1
            ]);
        }
        Ok(table)
    }
}

impl Args {
    fn branch_chance(&self) -> Result<f64> {
        let chance = self.branch_chance;
        match (0.0..=1.0).contains(&chance) {
            true => Ok(chance),
            false => Err(Error::Request(format!(
                "--branch-chance is {chance}; expected a number from 0 to 1"
            ))),
        }
    }
}

/// Checks that a number is above 0 and at least `least`.
fn positive(flag: &str, x: f64, least: f64) -> Result<f64> {
    if x.is_finite() && x > 0.0 && x >= least {
        return Ok(x);
    }
    let expected = if least > 0.0 { "at least 1" } else { "above 0" };
    Err(Error::Request(format!("{flag} is {x}; expected a number {expected}")))
}

fn number(x: f64, decimals: usize) -> Cell {
    Cell::new(format!("{x:.decimals$}"), x)
}

fn signed_percent(x: f64) -> String {
    format!("{:+.1} %", 100.0 * x)
}

/// Rows with a larger relative error get an explanation.
const FAR_OFF: f64 = 0.07;

/// Prints every PEARL row of the published table with the prediction from its MAT.
fn predict(
    path: &Path,
    branch_chance: f64,
    output: Output,
    format: Format,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path, "cannot be read"))?;
    let predictions = seed_table::predict(&seed_table::parse(path, &text)?, branch_chance)?;
    let mut errors: Vec<f64> = predictions.iter().map(|p| p.error().abs()).collect();
    errors.sort_by(f64::total_cmp);
    let Some(&largest) = errors.last() else {
        return Err(Error::file(path, "has no PEARL row").into());
    };
    let median = (errors[errors.len() / 2] + errors[(errors.len() - 1) / 2]) / 2.0;
    let near = errors.iter().filter(|&&error| error <= FAR_OFF).count();
    let far_off = predictions.iter().filter(|p| p.error().abs() > FAR_OFF);
    let explanations: Vec<String> = far_off.map(explanation).collect();

    let table = prediction_table(&predictions);
    if output.json {
        let report = json!({
            "rows": table.to_json(),
            "median_error": median,
            "within_7_percent": near,
            "largest_error": largest,
            "explanations": explanations,
        });
        writeln!(out, "{report:#}")?;
        return Ok(());
    }
    write!(out, "{}", table.render(format))?;
    if format == Format::Markdown {
        writeln!(
            out,
            "\nMedian error {:.1} %; {near} of {} rows within 7 %; largest {:.1} %.",
            100.0 * median,
            predictions.len(),
            100.0 * largest
        )?;
        for explanation in explanations {
            writeln!(out, "\n{explanation}")?;
        }
    }
    Ok(())
}

fn prediction_table(predictions: &[Prediction]) -> Table {
    let mut table = Table::new(vec![
        Column::text("draft", "Draft Model"),
        Column::text("target", "Target Model"),
        Column::number("batch_size", "Batch Size"),
        Column::text("benchmark", "Benchmark"),
        Column::number("mat", "MAT"),
        Column::number("gamma", "γ"),
        Column::number("acceptance", "Acceptance"),
        Column::number("published", "Tokens per step, published"),
        Column::number("predicted", "predicted"),
        Column::number("error", "Error"),
        Column::number("forked", "forked"),
    ]);
    for p in predictions {
        table.push(vec![
            Cell::text(short(&p.row.draft)),
            Cell::text(short(&p.row.target)),
            Cell::count(p.row.batch_size),
            Cell::text(&p.row.benchmark),
            number(p.row.mat, 2),
            Cell::count(p.gamma),
            number(p.acceptance, 3),
            number(p.row.tokens_per_step, 3),
            number(p.predicted, 3),
            Cell::new(signed_percent(p.error()), p.error()),
            number(p.forked, 3),
        ]);
    }
    table
}

/// A sentence about the cause of a row's large error.
fn explanation(p: &Prediction) -> String {
    let row = &p.row;
    let which =
        format!("{}, {} at batch size {}", short(&row.draft), row.benchmark, row.batch_size);
    match p.batch_samples {
        Some(samples) => format!(
            "{which}: the published AR row counts {} samples, but the benchmark's prompts fill \
             complete batches with {samples}. Over {samples} samples the error is {}.",
            row.samples,
            signed_percent(p.error_on_complete_batches())
        ),
        None => format!(
            "{which}: MAT is the mean of the prompts' means, and acceptance varies between prompts \
             and within a text, so MAT alone does not determine tokens per step."
        ),
    }
}

/// The name without the organisation, of a HuggingFace cache directory `models--org--name`.
fn short(model: &str) -> &str {
    model.rsplit("--").next().unwrap_or(model)
}
