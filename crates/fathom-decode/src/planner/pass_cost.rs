//! Seconds of a target pass by its rows, on a machine whose speed changes.

use super::running::Mean;

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
/// While every pass has the same number of rows, a least-squares line with forgetting cannot tell a
/// slower machine from more expensive rows. The filter can: its process noise is large along the
/// direction in which both parts change by the same factor and small in either part alone, so the
/// ratio of the two is remembered. The uncertainty of that ratio grows slowly, and
/// [`PassCost::optimistic`] makes row counts that have not run for long worth another try.
///
/// Formulas and an ablation: `planner/README.md`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PassCost {
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

impl Default for PassCost {
    fn default() -> PassCost {
        PassCost { estimate: None, rows: Mean::new(0.9) }
    }
}

impl PassCost {
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Records passes that cycle through `rows`, on a machine slower by `slowness`.
    fn record(cost: &mut PassCost, passes: usize, rows: &[f64], slowness: f64) {
        for i in 0..passes {
            let rows = rows[i % rows.len()];
            cost.record(rows, slowness * (2.0 + 0.5 * rows));
        }
    }

    #[test]
    fn one_pass_gives_the_same_cost_for_more_rows() {
        let mut cost = PassCost::default();
        assert_eq!((cost.at(1.0), cost.optimistic(1.0)), (None, None));
        cost.record(4.0, 10.0);
        assert_eq!((cost.at(8.0), cost.at(4.0)), (Some(10.0), Some(10.0)));
    }

    #[test]
    fn the_line_is_found() {
        let mut cost = PassCost::default();
        record(&mut cost, 40, &[1.0, 3.0, 9.0], 1.0);
        for rows in [1.0, 6.0, 16.0] {
            assert!((cost.at(rows).unwrap() / (2.0 + 0.5 * rows) - 1.0).abs() < 0.03, "{rows}");
        }
    }

    /// A least-squares line would attribute the change to the rows.
    #[test]
    fn a_change_of_speed_does_not_change_the_share_of_the_rows() {
        let mut cost = PassCost::default();
        record(&mut cost, 40, &[2.0, 8.0], 1.0);
        record(&mut cost, 40, &[8.0], 2.0);
        record(&mut cost, 1, &[10.0], 1.9);
        let relative = cost.at(2.0).unwrap() / cost.at(8.0).unwrap();
        assert!((relative - 0.5).abs() < 0.05, "{relative}");
        assert!((cost.at(8.0).unwrap() - 12.0).abs() < 0.5, "{:?}", cost.at(8.0));
    }

    #[test]
    fn the_optimistic_cost_of_rows_that_have_not_run_for_long_falls() {
        let mut cost = PassCost::default();
        record(&mut cost, 40, &[2.0, 8.0], 1.0);
        let relative =
            |cost: &PassCost, rows| cost.optimistic(rows).unwrap() / cost.at(rows).unwrap();
        let soon = relative(&cost, 16.0);
        record(&mut cost, 400, &[8.0], 1.0);
        let late = relative(&cost, 16.0);
        assert!(late < 0.97 * soon && (relative(&cost, 8.0) - 1.0).abs() < 1e-9, "{soon} {late}");
        record(&mut cost, 40, &[16.0, 8.0], 1.0);
        assert!(relative(&cost, 16.0) > 0.97, "{}", relative(&cost, 16.0));
    }

    #[test]
    fn an_interrupted_pass_counts_little_and_nothing_is_negative() {
        let mut cost = PassCost::default();
        record(&mut cost, 40, &[2.0, 8.0], 1.0);
        cost.record(8.0, 1000.0);
        assert!(cost.at(8.0).unwrap() < 1.2 * 6.0, "{:?}", cost.at(8.0));
        for rows in [8.0, 2.0, 30.0, 1.0] {
            (0..50).for_each(|_| cost.record(rows, 0.0));
            assert!(cost.at(1.0).unwrap() >= 0.0 && cost.optimistic(64.0).unwrap() >= 0.0);
        }
    }

    proptest::proptest! {
        /// Any measured times give usable estimates.
        #[test]
        fn estimates_are_finite_and_never_negative(
            passes in proptest::collection::vec((1_u32..4096, 0.0_f64..100.0, 0_i32..12), 1..200),
        ) {
            let mut cost = PassCost::default();
            for (rows, seconds, digits) in passes {
                cost.record(f64::from(rows), seconds / 10_f64.powi(digits));
                for rows in [1.0, 17.0, 5000.0] {
                    let (at, optimistic) = (cost.at(rows).unwrap(), cost.optimistic(rows).unwrap());
                    assert!(at.is_finite() && 0.0 <= optimistic && optimistic <= at, "{cost:?}");
                }
            }
        }
    }
}
