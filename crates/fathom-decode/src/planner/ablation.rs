//! Ablation of the estimator of `pass_cost.rs`: replays of recorded pass times with it, with a
//! Kalman filter and with simpler estimators. `tests/data/README.md` describes the recordings, and
//! the planner's `README.md` the results. To print them:
//! `cargo test -p fathom-decode --lib ablation -- --nocapture`

mod kalman;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use super::auto_mode::AutoMode;
use super::pass_cost::PassCost;
use super::running::Mean;
use crate::engine::ModeChoice;
use crate::simulate::{Chances, Simulation};
use crate::{Mode, RequestRng};
use kalman::KalmanFilter;

/// The modes of the recordings.
const MODES: [Mode; 3] = [Mode::Ar, Mode::Sd, Mode::Pearl];
/// Rows of each sequence in the recorded passes.
const ROWS: [f64; 5] = [1.0, 2.0, 4.0, 8.0, 16.0];
/// Sweeps before anything is counted. They show 1 and 4 rows, as warm-up steps with γ = 4 do.
const WARM_UP: usize = 20;
/// Largest γ: `sd` scores γ + 1 rows of each sequence.
const MAX_GAMMA: usize = 15;
/// γ changes only for an expected gain of this factor, as in `gamma.rs`.
const WORTH_CHANGING: f64 = 1.02;
/// Acceptance probabilities of the simulated drafts.
const ACCEPTANCE: [f64; 3] = [0.6, 0.85, 0.95];

/// Seconds at one moment of a recording.
#[derive(Clone, Copy, Debug)]
struct Sweep {
    /// One drafted token for every sequence.
    draft: f64,
    /// A pass over [`ROWS`] rows of every sequence.
    pass: [f64; 5],
}

impl Sweep {
    /// Seconds of a pass over `rows` rows of every sequence, linear between the recorded ones.
    fn pass(&self, rows: f64) -> f64 {
        let after = ROWS.iter().position(|&known| known >= rows).unwrap_or(4).max(1);
        let (a, b) = (after - 1, after);
        let t = (rows - ROWS[a]) / (ROWS[b] - ROWS[a]);
        self.pass[a] + t * (self.pass[b] - self.pass[a])
    }

    /// The medians of `sweeps`.
    fn median(sweeps: &[Sweep]) -> Sweep {
        let of = |value: &dyn Fn(&Sweep) -> f64| quantile(sweeps.iter().map(value).collect(), 0.5);
        Sweep { draft: of(&|s| s.draft), pass: [0, 1, 2, 3, 4].map(|i| of(&|s| s.pass[i])) }
    }
}

/// The sweeps of one batch size.
struct Recording {
    batch: usize,
    /// Only one model runs, and both run: index 0 and 1.
    sweeps: [Vec<Sweep>; 2],
    /// Costs without measurement noise: medians of nine sweeps around each.
    smooth: [Vec<Sweep>; 2],
}

fn recordings(name: &str) -> Vec<Recording> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name);
    let text = std::fs::read_to_string(path).unwrap();
    let mut all: BTreeMap<usize, [Vec<Sweep>; 2]> = BTreeMap::new();
    for line in text.lines().skip(1) {
        let numbers: Vec<f64> = line.split(',').map(|number| number.parse().unwrap()).collect();
        let [batch, co_running, draft, passes @ ..] = &numbers[..] else { panic!("{line}") };
        let pass: [f64; 5] = passes.try_into().unwrap();
        let sweep = Sweep { draft: draft * 1e-6, pass: pass.map(|us| us * 1e-6) };
        all.entry(*batch as usize).or_default()[*co_running as usize].push(sweep);
    }
    let smooth = |sweeps: &Vec<Sweep>| -> Vec<Sweep> {
        let around = |i: usize| &sweeps[i.saturating_sub(4)..(i + 5).min(sweeps.len())];
        (0..sweeps.len()).map(|i| Sweep::median(around(i))).collect()
    };
    let new = |(batch, sweeps): (usize, [Vec<Sweep>; 2])| Recording {
        batch,
        smooth: [smooth(&sweeps[0]), smooth(&sweeps[1])],
        sweeps,
    };
    all.into_iter().map(new).collect()
}

fn quantile(mut values: Vec<f64>, q: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * q).round() as usize]
}

/// An estimator of the seconds of a pass by its rows.
#[derive(Clone, Debug)]
enum Estimator {
    /// The planner's; γ is chosen by its optimistic or by its expected cost.
    PassCost { cost: PassCost, optimistic: bool },
    /// A Kalman filter for an affine cost, likewise.
    Kalman { cost: KalmanFilter, optimistic: bool },
    /// An exponentially weighted mean for each number of rows.
    Means { decay: f64, curve: Curve },
    /// A least-squares line with exponential forgetting.
    Line { decay: f64, x: Mean, y: Mean, xx: Mean, xy: Mean },
}

/// Means by rows, linear in between and constant outside.
#[derive(Clone, Debug)]
struct Curve {
    decay: f64,
    by_rows: BTreeMap<usize, Mean>,
}

impl Curve {
    fn new(decay: f64) -> Curve {
        Curve { decay, by_rows: BTreeMap::new() }
    }

    fn record(&mut self, rows: f64, value: f64) {
        let new = || Mean::new(self.decay);
        self.by_rows.entry(rows.round() as usize).or_insert_with(new).record(value);
    }

    fn at(&self, rows: f64) -> Option<f64> {
        let value = |(&at, mean): (&usize, &Mean)| Some((at as f64, mean.value()?));
        let below = self.by_rows.range(..=rows.floor() as usize).next_back().and_then(value);
        let above = self.by_rows.range(rows.ceil() as usize..).next().and_then(value);
        match (below, above) {
            (Some(a), Some(b)) if b.0 > a.0 => Some(a.1 + (rows - a.0) / (b.0 - a.0) * (b.1 - a.1)),
            (a, b) => a.or(b).map(|nearest| nearest.1),
        }
    }
}

impl Estimator {
    fn all() -> Vec<Estimator> {
        let decays = [0.8, 0.9, 0.95];
        let means = decays.map(|decay| Estimator::Means { decay, curve: Curve::new(decay) });
        let lines = decays.map(|decay| {
            let mean = Mean::new(decay);
            Estimator::Line { decay, x: mean, y: mean, xx: mean, xy: mean }
        });
        let planners = [true, false].map(|optimistic| {
            let cost = PassCost::default();
            Estimator::PassCost { cost, optimistic }
        });
        let kalman = [true, false].map(|optimistic| {
            let cost = KalmanFilter::default();
            Estimator::Kalman { cost, optimistic }
        });
        planners.into_iter().chain(kalman).chain(means).chain(lines).collect()
    }

    fn record(&mut self, rows: f64, seconds: f64) {
        // The first two clip outliers themselves; the others do as `speeds.rs` does.
        let clipped = seconds.min(2.0 * self.at(rows).unwrap_or(seconds));
        match self {
            Estimator::PassCost { cost, .. } => cost.record(rows, seconds),
            Estimator::Kalman { cost, .. } => cost.record(rows, seconds),
            Estimator::Means { curve, .. } => curve.record(rows, clipped),
            Estimator::Line { x, y, xx, xy, .. } => {
                x.record(rows);
                y.record(clipped);
                xx.record(rows * rows);
                xy.record(rows * clipped);
            }
        }
    }

    fn at(&self, rows: f64) -> Option<f64> {
        match self {
            Estimator::PassCost { cost, .. } => cost.at(rows),
            Estimator::Kalman { cost, .. } => cost.at(rows),
            Estimator::Means { curve, .. } => curve.at(rows),
            Estimator::Line { x, y, xx, xy, .. } => {
                let (x, y) = (x.value()?, y.value()?);
                let variance = xx.value()? - x * x;
                let spread = variance > 1e-3 * x * x;
                let slope = if spread { ((xy.value()? - x * y) / variance).max(0.0) } else { 0.0 };
                Some((y + slope * (rows - x)).max(y * (rows / x).min(1.0)))
            }
        }
    }

    /// The cost by which γ is chosen.
    fn optimistic(&self, rows: f64) -> Option<f64> {
        match self {
            Estimator::PassCost { cost, optimistic: true } => cost.optimistic(rows),
            Estimator::Kalman { cost, optimistic: true } => cost.optimistic(rows),
            other => other.at(rows),
        }
    }
}

impl fmt::Display for Estimator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Estimator::PassCost { optimistic: true, .. } => f.write_str("PassCost"),
            Estimator::PassCost { .. } => f.write_str("PassCost, not optimistic"),
            Estimator::Kalman { optimistic: true, .. } => f.write_str("Kalman filter"),
            Estimator::Kalman { .. } => f.write_str("Kalman filter, not optimistic"),
            Estimator::Means { decay, .. } => write!(f, "mean by rows, decay {decay}"),
            Estimator::Line { decay, .. } => write!(f, "least-squares line, decay {decay}"),
        }
    }
}

/// Relative errors of one-step forecasts.
#[derive(Default)]
struct Errors {
    /// Of passes over the rows that run.
    same_rows: Vec<f64>,
    /// Of passes over the other rows of the same sweep, which the choice of γ needs.
    other_rows: Vec<f64>,
}

/// Forecasts while γ is constant for 100 sweeps at a time, as in a long text: each sweep runs one
/// pass of the recording; the forecasts for it and for the other rows are compared with the sweep.
fn forecast_errors(estimator: &Estimator, recording: &Recording, errors: &mut Errors) {
    for sweeps in &recording.sweeps {
        let mut estimator = estimator.clone();
        let batch = recording.batch as f64;
        for (i, sweep) in sweeps.iter().enumerate() {
            let run = match i {
                _ if i < WARM_UP => 2 * (i % 2),
                _ => [3, 1, 4, 2][i / 100 % 4],
            };
            if i >= WARM_UP {
                for (row, rows) in ROWS.into_iter().enumerate() {
                    let forecast = estimator.at(batch * rows).unwrap();
                    let error = (forecast / sweep.pass[row] - 1.0).abs();
                    match row == run {
                        true => errors.same_rows.push(error),
                        false => errors.other_rows.push(error),
                    }
                }
            }
            estimator.record(batch * ROWS[run], sweep.pass[run]);
        }
    }
}

/// Expected tokens of one sequence per second, with independent acceptance α, for costs of a
/// drafted token and of a pass by its rows of each sequence.
fn rate(
    mode: Mode,
    gamma: usize,
    alpha: f64,
    batch: usize,
    draft: f64,
    pass: impl Fn(f64) -> f64,
) -> f64 {
    let g = gamma as f64;
    let run = 1.0 / (1.0 - alpha);
    let alpha_gamma = alpha.powi(gamma as i32);
    match mode {
        Mode::Ar => 1.0 / pass(1.0),
        Mode::Sd => (1.0 - alpha * alpha_gamma) * run / (g * draft + pass(g + 1.0)),
        Mode::Suffix => (1.0 - alpha * alpha_gamma) * run / pass(g + 1.0),
        // The ablation has no branches.
        Mode::Pearl | Mode::Forked => {
            let post = alpha / (1.0 - alpha_gamma);
            let step = |rows| (g * draft).max(pass(rows));
            let seconds = match batch {
                1 => step(1.0) + post * step(g),
                _ => (1.0 + post) * step((1.0 + post * g) / (1.0 + post)),
            };
            run / seconds
        }
    }
}

/// Replays a recording, one step per sweep: the share of throughput lost against the best mode and
/// γ of every moment.
fn regret(
    estimator: &Estimator,
    recording: &Recording,
    alpha: f64,
    choice: ModeChoice,
    seed: u64,
) -> f64 {
    let batch = recording.batch;
    let mut costs = [estimator.clone(), estimator.clone()];
    let mut drafts = [Mean::new(0.95), Mean::new(0.95)];
    let mut gammas: BTreeMap<Mode, usize> = BTreeMap::new();
    let mut auto = AutoMode::default();
    let new = |request| {
        Simulation::new(Chances::acceptance(alpha), RequestRng::new(seed, request)).unwrap()
    };
    let mut all: Vec<Simulation> = (0..batch as u64).map(new).collect();
    let (mut chosen, mut best) = (0.0, 0.0);
    for i in 0..recording.sweeps[0].len() {
        if i < WARM_UP {
            for (at, sweeps) in recording.sweeps.iter().enumerate() {
                let row = 2 * (i % 2);
                costs[at].record(batch as f64 * ROWS[row], sweeps[i].pass[row]);
                drafts[at].record(sweeps[i].draft);
            }
            continue;
        }
        let of = |mode: Mode| usize::from(mode == Mode::Pearl);
        let expected = |mode: Mode, gamma: usize, optimistic: bool| {
            let cost = &costs[of(mode)];
            let rows = |each: f64| each * batch as f64;
            let pass = |each| match optimistic {
                true => cost.optimistic(rows(each)).unwrap(),
                false => cost.at(rows(each)).unwrap(),
            };
            rate(mode, gamma, alpha, batch, drafts[of(mode)].value().unwrap(), pass)
        };
        for mode in [Mode::Sd, Mode::Pearl] {
            let best = (1..=MAX_GAMMA)
                .max_by(|a, b| expected(mode, *a, true).total_cmp(&expected(mode, *b, true)))
                .unwrap();
            let current = gammas.entry(mode).or_insert(best);
            if expected(mode, best, true) > WORTH_CHANGING * expected(mode, *current, true) {
                *current = best;
            }
        }
        let gamma = |mode: Mode| gammas.get(&mode).copied().unwrap_or(0);
        let mode = match choice {
            ModeChoice::Always(mode) => mode,
            ModeChoice::Auto => {
                auto.choose(&MODES, batch, 0, |mode| Some(expected(mode, gamma(mode), false)))
            }
        };
        // The step, and its measured costs.
        if mode != Mode::Pearl {
            all.iter_mut().for_each(|one| _ = one.pearl.clear());
        }
        let rows: usize = all.iter().map(|one| one.rows(mode, gamma(mode))).sum();
        all.iter_mut().for_each(|one| _ = one.step(mode, gamma(mode)).unwrap());
        let sweep = recording.sweeps[of(mode)][i];
        costs[of(mode)].record(rows as f64, sweep.pass(rows as f64 / batch as f64));
        if mode != Mode::Ar {
            drafts[of(mode)].record(sweep.draft);
        }
        // The throughput of the choice and of the best choice, without measurement noise.
        let worth = |mode: Mode, gamma: usize| {
            let smooth = &recording.smooth[of(mode)][i];
            rate(mode, gamma, alpha, batch, smooth.draft, |rows| smooth.pass(rows))
        };
        chosen += worth(mode, gamma(mode));
        let modes = MODES.into_iter().filter(|&mode| match choice {
            ModeChoice::Always(always) => mode == always,
            ModeChoice::Auto => true,
        });
        let each = modes.flat_map(|mode| (1..=MAX_GAMMA).map(move |gamma| worth(mode, gamma)));
        best += each.fold(0.0, f64::max);
    }
    1.0 - chosen / best
}

/// Medians and 90th percentiles of the errors, and the mean regrets of `sd`, `pearl` and `auto`.
struct Scorecard {
    same_rows: [f64; 2],
    other_rows: [f64; 2],
    regrets: [f64; 3],
}

impl Scorecard {
    fn of(estimator: &Estimator, recordings: &[Recording]) -> Scorecard {
        let mut errors = Errors::default();
        recordings.iter().for_each(|one| forecast_errors(estimator, one, &mut errors));
        let choices =
            [ModeChoice::Always(Mode::Sd), ModeChoice::Always(Mode::Pearl), ModeChoice::Auto];
        let regrets = choices.map(|choice| {
            let mut each = Vec::new();
            for recording in recordings {
                for alpha in ACCEPTANCE {
                    each.extend([1, 2].map(|s| regret(estimator, recording, alpha, choice, s)));
                }
            }
            each.iter().sum::<f64>() / each.len() as f64
        });
        let quantiles = |errors: Vec<f64>| [0.5, 0.9].map(|q| quantile(errors.clone(), q));
        Scorecard {
            same_rows: quantiles(errors.same_rows),
            other_rows: quantiles(errors.other_rows),
            regrets,
        }
    }
}

impl fmt::Display for Scorecard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |values: &[f64]| {
            let each = values.iter().map(|x| format!("{:5.1} %", 100.0 * x));
            each.collect::<Vec<_>>().join(" ")
        };
        let Scorecard { same_rows, other_rows, regrets } = self;
        write!(f, "{} | {} | {}", percent(same_rows), percent(other_rows), percent(regrets))
    }
}

/// Prints the table of `README.md`, and checks the errors and regrets of the planner's estimator
/// and of the filter against it.
#[test]
fn pass_costs_forecast_and_plan_recorded_pass_times() {
    for (name, median_error, planner_regrets, filter_regrets) in [
        ("pass-times-undisturbed.csv", 0.04, [0.02, 0.04, 0.08], [0.03, 0.07, 0.1]),
        ("pass-times-disturbed.csv", 0.25, [0.11, 0.09, 0.23], [0.15, 0.15, 0.27]),
    ] {
        let recordings = recordings(name);
        println!("{name}");
        println!("{:31} | same rows p50 p90 | other rows p50 p90 | regret sd pearl auto", "");
        for estimator in Estimator::all() {
            let scores = Scorecard::of(&estimator, &recordings);
            println!("{:31} | {scores}", estimator.to_string());
            let regrets = match estimator {
                Estimator::PassCost { optimistic: true, .. } => planner_regrets,
                Estimator::Kalman { optimistic: true, .. } => filter_regrets,
                _ => continue,
            };
            assert!(scores.same_rows[0] < median_error, "{name}, {estimator}: {scores}");
            let within = scores.regrets.iter().zip(regrets).all(|(got, most)| *got < most);
            assert!(within, "{name}, {estimator}: {scores}");
        }
    }
}
