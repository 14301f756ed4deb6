//! A Kalman filter for the affine cost of a target pass, to compare `pass_cost.rs` with.

use crate::planner::running::Mean;

/// n: standard deviation of one pass's measured time, as a share of it.
const NOISE: f64 = 0.1;
/// s: standard deviation of the change of the machine's speed between two passes, as a share. Other
/// programs, or other guests of the same host, slow passes over few and many rows by the same
/// factor.
const SPEED_DRIFT: f64 = 0.015;
/// g: standard deviation of the change of `pass` or `row` alone between two passes, as a share of
/// the pass. Growing contexts cause it.
const SHAPE_DRIFT: f64 = 0.005;
/// Standard deviation of the rows' share of the first pass, before a second number of rows is seen.
const UNKNOWN_SPLIT: f64 = 0.5;
/// Residuals are clipped to this many standard deviations: an interruption by another program says
/// little about the next pass.
const OUTLIER: f64 = 3.0;
/// Lower bound of a pass in seconds, for coarse clocks.
const SHORTEST: f64 = 1e-9;
/// Standard deviations by which the optimistic estimate is below the expected one.
const OPTIMISM: f64 = 2.0;

/// Seconds of a target pass over `rows` rows, `pass + row · rows`, estimated by a Kalman filter.
///
/// Its process noise is large along the direction in which both parts change by the same factor and
/// small in either part alone, so that a slower machine is told from more expensive rows while
/// every pass has the same number of rows.
///
/// The state is x = (p, c) = (`pass`, `row`) with covariance P, h = (1, r), T = hᵀ·x:
///
/// ```text
/// predict   P ← P + s²·x·xᵀ + g²·T²·diag(1, 1/r²)
/// residual  e = clip(t - T, ±3·√V)                    V = hᵀ·P·h + (n·T)²
/// update    x ← x + P·h·e / V,   P ← P - P·h·hᵀ·P / V,   p, c ≥ 0
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KalmanFilter {
    /// `None` before the first pass.
    estimate: Option<Estimate>,
    /// Mean rows of the last passes.
    rows: Mean,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Estimate {
    /// Seconds of a pass without its rows.
    pass: f64,
    /// Seconds of one row.
    row: f64,
    covariance: Covariance,
}

/// Covariance matrix P of (`pass`, `row`).
#[derive(Clone, Copy, Debug, PartialEq)]
struct Covariance {
    pass: f64,
    both: f64,
    row: f64,
}

impl Covariance {
    /// (P·h)₁, (P·h)₂ and hᵀ·P·h with h = (1, rows): the covariances of `pass` and of `row` with
    /// the seconds of a pass over `rows` rows, and the variance of those seconds.
    fn with_seconds(self, rows: f64) -> (f64, f64, f64) {
        let (pass, row) = (self.pass + self.both * rows, self.both + self.row * rows);
        (pass, row, pass + row * rows)
    }

    /// Variance of `row` given the seconds of a pass over `rows` rows.
    fn row_given_seconds(self, rows: f64) -> f64 {
        let (_, row, seconds) = self.with_seconds(rows);
        if seconds > 0.0 { (self.row - row * row / seconds).max(0.0) } else { 0.0 }
    }

    /// The nearest positive semidefinite matrix. Rounding of nearly equal numbers can leave it.
    fn positive_semidefinite(self) -> Covariance {
        let (pass, row) = (self.pass.max(0.0), self.row.max(0.0));
        let most = (pass * row).sqrt();
        Covariance { pass, both: self.both.max(-most).min(most), row }
    }
}

impl Default for KalmanFilter {
    fn default() -> KalmanFilter {
        KalmanFilter { estimate: None, rows: Mean::new(0.9) }
    }
}

impl KalmanFilter {
    /// Records a pass over `rows` ≥ 1 rows.
    pub fn record(&mut self, rows: f64, seconds: f64) {
        self.rows.record(rows);
        self.estimate = Some(match self.estimate {
            None => Estimate::first(rows, seconds),
            Some(estimate) => estimate.next(rows, seconds),
        });
    }

    /// Expected seconds of a pass over `rows` rows; `None` before the first.
    pub fn at(&self, rows: f64) -> Option<f64> {
        self.below(rows, 0.0)
    }

    /// Optimistic seconds of a pass over `rows` rows: lower where the cost is less certain relative
    /// to recent passes.
    pub fn optimistic(&self, rows: f64) -> Option<f64> {
        self.below(rows, OPTIMISM)
    }

    fn below(&self, rows: f64, deviations: f64) -> Option<f64> {
        let (estimate, recent) = (self.estimate?, self.rows.value()?);
        // The uncertainty of the machine's speed is common to all passes and does not count.
        let deviation = estimate.covariance.row_given_seconds(recent).sqrt();
        let discount = deviations * (rows - recent).abs() * deviation;
        let recently = estimate.seconds(recent);
        // A pass over more rows is never cheaper than a recent pass, and one over fewer rows costs
        // at least its share.
        Some((estimate.seconds(rows) - discount).max(recently * (rows / recent).min(1.0)))
    }
}

impl Estimate {
    /// From the first pass. Its split is unknown: all of it counts as `pass`.
    fn first(rows: f64, seconds: f64) -> Estimate {
        let seconds = seconds.max(SHORTEST);
        let (noise, split) = (NOISE * seconds, UNKNOWN_SPLIT * seconds);
        let covariance = Covariance {
            pass: noise * noise + split * split,
            both: -split * split / rows,
            row: split * split / (rows * rows),
        };
        Estimate { pass: seconds, row: 0.0, covariance }
    }

    fn seconds(&self, rows: f64) -> f64 {
        self.pass + self.row * rows
    }

    /// Prediction and update with another pass.
    fn next(self, rows: f64, seconds: f64) -> Estimate {
        let Estimate { mut pass, mut row, mut covariance } = self;
        let expected = self.seconds(rows).max(SHORTEST);
        let (speed, shape) = (SPEED_DRIFT * SPEED_DRIFT, SHAPE_DRIFT * expected);
        covariance.pass += speed * pass * pass + shape * shape;
        covariance.both += speed * pass * row;
        covariance.row += speed * row * row + (shape / rows).powi(2);

        let (with_pass, with_row, variance) = covariance.with_seconds(rows);
        let variance = variance.max(0.0) + (NOISE * expected).powi(2);
        let bound = OUTLIER * variance.sqrt();
        let residual = (seconds - expected).max(-bound).min(bound);
        pass += with_pass / variance * residual;
        row += with_row / variance * residual;
        covariance.pass -= with_pass * with_pass / variance;
        covariance.both -= with_pass * with_row / variance;
        covariance.row -= with_row * with_row / variance;
        let covariance = covariance.positive_semidefinite();
        // Neither part is negative. The seconds of this pass stay the same.
        let seconds = (pass + row * rows).max(0.0);
        if row < 0.0 {
            (pass, row) = (seconds, 0.0);
        } else if pass < 0.0 {
            (pass, row) = (0.0, seconds / rows);
        }
        Estimate { pass, row, covariance }
    }
}
