//! The published PEARL benchmark, compared with predictions of the state machine.

use std::collections::BTreeMap;
use std::path::Path;

use fathom_model::{Error, Result};

use crate::simulate::{self, Chances, Protocol, StepCosts};
use crate::{Lengths, Mode};

/// Tokens per sample of the published autoregressive baseline.
const AR_TOKENS: usize = 200;
/// Steps per sample of the published PEARL runs.
const PEARL_STEPS: usize = 100;
/// Candidates of γ for a model pair.
const GAMMAS: std::ops::RangeInclusive<usize> = 1..=20;

/// Chance that a rejection is one that the draft prepared for, as measured on the trained pair
/// (docs/pearl.md).
pub const BRANCH_CHANCE: f64 = 0.6;

/// A PEARL row of the table.
#[derive(Clone, Debug, PartialEq)]
pub struct PublishedRow {
    /// Draft model.
    pub draft: String,
    /// Target model.
    pub target: String,
    /// Batch size.
    pub batch_size: usize,
    /// Benchmark.
    pub benchmark: String,
    /// Samples: the autoregressive row's tokens ÷ 200.
    pub samples: usize,
    /// Mean accepted tokens.
    pub mat: f64,
    /// Tokens ÷ (samples × 100 steps).
    pub tokens_per_step: f64,
}

/// A PEARL row and its prediction by the state machine.
#[derive(Clone, Debug, PartialEq)]
pub struct Prediction {
    /// The row.
    pub row: PublishedRow,
    /// γ of the row's model pair, the same for all its rows.
    pub gamma: usize,
    /// Acceptance probability at which the simulated MAT equals the row's.
    pub acceptance: f64,
    /// Tokens per step of the simulation with this γ and acceptance.
    pub predicted: f64,
    /// Tokens per step of forked PEARL with this γ and acceptance.
    pub forked: f64,
    /// Number of samples in complete batches of the benchmark's prompts, if it differs from
    /// [`PublishedRow::samples`]. The benchmark has as many prompts as its row at batch size 1 has
    /// samples.
    pub batch_samples: Option<usize>,
}

impl Prediction {
    /// (predicted - published) / published.
    pub fn error(&self) -> f64 {
        self.predicted / self.row.tokens_per_step - 1.0
    }

    /// The error under the assumption that PEARL ran on [`Prediction::batch_samples`]. Without
    /// them, [`Prediction::error`].
    pub fn error_on_complete_batches(&self) -> f64 {
        let samples = self.batch_samples.unwrap_or(self.row.samples);
        let published = self.row.tokens_per_step * self.row.samples as f64 / samples as f64;
        self.predicted / published - 1.0
    }
}

/// Parses the PEARL rows of a markdown table with the published columns, in the table's order.
///
/// # Errors
/// Other columns, an invalid value, or a PEARL row without its AR row. The message has the line.
pub fn parse(path: &Path, table: &str) -> Result<Vec<PublishedRow>> {
    const COLUMNS: [&str; 10] = [
        "Draft Model",
        "Target Model",
        "Batch Size",
        "Benchmark",
        "Mode",
        "Num Tokens",
        "Time (s)",
        "Throughput (tok/s)",
        "MAT",
        "Speedup",
    ];
    let mut lines = (1..).zip(table.lines()).filter(|(_, line)| line.trim().starts_with('|'));
    let header = lines.next();
    if header.is_none_or(|(_, line)| cells(line) != COLUMNS) {
        let problem = format!("has no table with the columns {}", COLUMNS.join(" | "));
        return Err(Error::file(path, problem));
    }
    let mut ar_tokens = BTreeMap::new();
    let mut pearl_rows = Vec::new();
    for (number, line) in lines.filter(|(_, line)| !line.contains(":---")) {
        let cells = cells(line);
        let [draft, target, batch_size, benchmark, mode, tokens, _, _, mat, _] = cells[..] else {
            let problem = format!("has {} columns; expected {}", cells.len(), COLUMNS.len());
            return Err(Error::line(path, number, problem));
        };
        let count = |column: &str, cell: &str| {
            cell.parse::<usize>().ok().filter(|&n| n > 0).ok_or_else(|| {
                let problem = format!("`{column}` is `{cell}`; expected a positive whole number");
                Error::line(path, number, problem)
            })
        };
        let batch_size = count("Batch Size", batch_size)?;
        let tokens = count("Num Tokens", tokens)?;
        let mat =
            mat.parse::<f64>().ok().filter(|mat| (1.0..1e6).contains(mat)).ok_or_else(|| {
                Error::line(path, number, format!("`MAT` is `{mat}`; expected a number ≥ 1"))
            })?;
        let key = [draft, target, benchmark].map(str::to_owned);
        match mode {
            "AR" => drop(ar_tokens.insert((key, batch_size), tokens)),
            "PEARL" => pearl_rows.push((number, key, batch_size, tokens, mat)),
            other => {
                let problem = format!("`Mode` is `{other}`; expected AR or PEARL");
                return Err(Error::line(path, number, problem));
            }
        }
    }
    let row = |(number, key, batch_size, tokens, mat)| {
        let key = (key, batch_size);
        let samples = ar_tokens.get(&key).map_or(0, |tokens| tokens / AR_TOKENS);
        let ([draft, target, benchmark], batch_size) = key;
        if samples == 0 {
            let problem = format!("has no AR row with at least {AR_TOKENS} tokens");
            return Err(Error::line(path, number, problem));
        }
        let tokens_per_step = tokens as f64 / (samples * PEARL_STEPS) as f64;
        Ok(PublishedRow { draft, target, batch_size, benchmark, samples, mat, tokens_per_step })
    };
    pearl_rows.into_iter().map(row).collect()
}

fn cells(line: &str) -> Vec<&str> {
    line.trim().trim_matches('|').split('|').map(str::trim).collect()
}

/// Predicts every row from its MAT and one γ per model pair, the γ with the least mean absolute
/// error over the pair's rows.
///
/// Drafts are accepted independently, with one probability per row: the one at which the simulated
/// protocol (100 steps per sample) has the row's MAT.
///
/// Forked PEARL is simulated with the same γ and acceptance, and with a prepared branch for
/// `branch_chance` of the rejections. Tokens per step then say what it would give if the rows of
/// the branches cost the draft nothing, as on a device that is bound by memory.
///
/// # Errors
/// Errors of the state machines.
pub fn predict(rows: &[PublishedRow], branch_chance: f64) -> Result<Vec<Prediction>> {
    let simulate = |gamma| Curve::simulate(gamma, branch_chance);
    let curves: Vec<Curve> = GAMMAS.map(simulate).collect::<Result<_>>()?;
    let mut fitted = BTreeMap::new();
    let predictions = rows.iter().map(|row| {
        let curve = *fitted.entry((&row.draft, &row.target)).or_insert_with(|| {
            let same_pair =
                |other: &&PublishedRow| (&other.draft, &other.target) == (&row.draft, &row.target);
            let error = |curve: &Curve| -> f64 {
                let pair = rows.iter().filter(same_pair);
                pair.map(|row| {
                    (curve.at(row.mat).tokens_per_step / row.tokens_per_step - 1.0).abs()
                })
                .sum()
            };
            // `GAMMAS` is not empty.
            (0..curves.len())
                .min_by(|&a, &b| error(&curves[a]).total_cmp(&error(&curves[b])))
                .unwrap_or(0)
        });
        let point = curves[curve].at(row.mat);
        Prediction {
            gamma: curves[curve].gamma,
            acceptance: point.acceptance,
            predicted: point.tokens_per_step,
            forked: point.forked,
            batch_samples: batch_samples(rows, row),
            row: row.clone(),
        }
    });
    Ok(predictions.collect())
}

/// See [`Prediction::batch_samples`].
fn batch_samples(rows: &[PublishedRow], row: &PublishedRow) -> Option<usize> {
    let alone = rows.iter().find(|other| {
        other.batch_size == 1
            && (&other.draft, &other.target, &other.benchmark)
                == (&row.draft, &row.target, &row.benchmark)
    })?;
    let complete = alone.samples / row.batch_size * row.batch_size;
    (complete != row.samples).then_some(complete)
}

/// Tokens per step as a function of MAT, at one γ.
struct Curve {
    gamma: usize,
    /// Ascending in MAT.
    points: Vec<Point>,
}

/// Simulations at one acceptance probability.
#[derive(Clone, Copy)]
struct Point {
    mat: f64,
    acceptance: f64,
    /// Of PEARL.
    tokens_per_step: f64,
    /// Of forked PEARL.
    forked: f64,
}

impl Curve {
    fn simulate(gamma: usize, branch_chance: f64) -> Result<Curve> {
        let protocol = Protocol { sequences: 300, batch: 1, steps: PEARL_STEPS, seed: 0 };
        let any = StepCosts::new(0.0, |_| 1.0); // only tokens are used
        // Mean run lengths 1, 1.15, 1.15², … 76: evenly spaced on a logarithmic scale.
        let runs = (0..32).map(|i| 1.15_f64.powi(i));
        let point = |run: f64| {
            let chances = Chances { acceptance: 1.0 - 1.0 / run, branch: branch_chance };
            let simulate =
                |mode| simulate::run(mode, Lengths::same(gamma), chances, protocol, &any);
            let (pearl, forked) = (simulate(Mode::Pearl)?, simulate(Mode::Forked)?);
            Ok(Point {
                mat: pearl.mat,
                acceptance: chances.acceptance,
                tokens_per_step: pearl.published_tokens_per_step,
                forked: forked.published_tokens_per_step,
            })
        };
        let mut points: Vec<_> = runs.map(point).collect::<Result<_>>()?;
        points.sort_by(|a, b| a.mat.total_cmp(&b.mat));
        Ok(Curve { gamma, points })
    }

    /// The values at `mat`, linear between the simulated points.
    fn at(&self, mat: f64) -> Point {
        let after = self.points.partition_point(|point| point.mat < mat);
        let after = after.clamp(1, self.points.len() - 1);
        let (a, b) = (self.points[after - 1], self.points[after]);
        let t = ((mat - a.mat) / (b.mat - a.mat)).clamp(0.0, 1.0);
        let between = |a: f64, b: f64| a + t * (b - a);
        Point {
            mat,
            acceptance: between(a.acceptance, b.acceptance),
            tokens_per_step: between(a.tokens_per_step, b.tokens_per_step),
            forked: between(a.forked, b.forked),
        }
    }
}
