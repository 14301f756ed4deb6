//! What a pass of the target costs, on a machine whose speed changes.

use super::running::Mean;

/// Standard deviation of one pass's measured time, as a share of it.
const NOISE: f64 = 0.1;
/// How much the machine's speed changes from pass to pass, likewise: other programs, other machines
/// on the same host. It makes passes over many rows and over few slower by the same factor.
const SPEED_DRIFT: f64 = 0.015;
/// How much either part of the cost changes by itself, as longer contexts do.
const SHAPE_DRIFT: f64 = 0.005;
/// Before a second number of rows was seen: how much of a pass may be in its rows.
const UNKNOWN_SPLIT: f64 = 0.5;
/// What lies further from the expected than so many standard deviations counts as that far: another
/// program's interruption says little about the next pass.
const OUTLIER: f64 = 3.0;
/// No pass takes less, in seconds, whatever a coarse clock says.
const SHORTEST: f64 = 1e-9;
/// Standard deviations that a hopeful estimate lies below the expected one.
const HOPE: f64 = 2.0;

/// Seconds of a pass by the rows it scores, `pass + row · rows`, estimated by a Kalman filter.
///
/// A least-squares line that forgets confuses two things while passes have the same number of rows:
/// it takes a machine that has become slower for rows that have become dearer. Here they are apart:
/// a drift that both parts share is expected to be large, one of either part alone small, and what
/// was learnt of the rows' share stays. Its uncertainty grows slowly; [`PassCost::hopeful`] makes a
/// number of rows that was not tried for long worth trying again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PassCost {
    /// `None` before the first pass.
    estimate: Option<Estimate>,
    /// Of the last passes.
    rows: Mean,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Estimate {
    /// Seconds of a pass, and of each of its rows.
    pass: f64,
    row: f64,
    covariance: Covariance,
}

/// Of `pass` and `row`.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Covariance {
    pass: f64,
    both: f64,
    row: f64,
}

impl Covariance {
    /// Those of `pass` and of `row` with `pass + row · rows`, and the variance of that.
    fn with_seconds(self, rows: f64) -> (f64, f64, f64) {
        let (pass, row) = (self.pass + self.both * rows, self.both + self.row * rows);
        (pass, row, pass + row * rows)
    }

    /// Variance of `row` if the seconds of a pass over `rows` rows were known.
    fn row_given_seconds(self, rows: f64) -> f64 {
        let (_, row, seconds) = self.with_seconds(rows);
        if seconds > 0.0 { (self.row - row * row / seconds).max(0.0) } else { 0.0 }
    }

    /// The nearest that there can be: differences of nearly equal numbers are rounded.
    fn possible(self) -> Covariance {
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
    /// Counts a pass over `rows ≥ 1` rows.
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

    /// The same as far as one may hope, the less is known of such passes beside those that were
    /// made last.
    pub fn hopeful(&self, rows: f64) -> Option<f64> {
        self.below(rows, HOPE)
    }

    fn below(&self, rows: f64, deviations: f64) -> Option<f64> {
        let (estimate, usual) = (self.estimate?, self.rows.value()?);
        // What the machine's speed does to all passes alike is not hoped for.
        let deviation = estimate.covariance.row_given_seconds(usual).sqrt();
        let hope = deviations * (rows - usual).abs() * deviation;
        let usually = estimate.seconds(usual);
        // A pass over more rows is never cheaper, and one over fewer costs at least its rows'
        // share.
        Some((estimate.seconds(rows) - hope).max(usually * (rows / usual).min(1.0)))
    }
}

impl Estimate {
    /// Nothing is known of how the first pass splits: as if all of it were in the pass.
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

    /// After another pass.
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
        let surprise = (seconds - expected).max(-bound).min(bound);
        pass += with_pass / variance * surprise;
        row += with_row / variance * surprise;
        covariance.pass -= with_pass * with_pass / variance;
        covariance.both -= with_pass * with_row / variance;
        covariance.row -= with_row * with_row / variance;
        let covariance = covariance.possible();
        // Neither part is negative; what such a pass costs stays.
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

    /// Passes over numbers of rows that take turns, by a machine of this speed.
    fn record(cost: &mut PassCost, passes: usize, rows: &[f64], slowness: f64) {
        for i in 0..passes {
            let rows = rows[i % rows.len()];
            cost.record(rows, slowness * (2.0 + 0.5 * rows));
        }
    }

    #[test]
    fn one_number_of_rows_says_nothing_of_others() {
        let mut cost = PassCost::default();
        assert_eq!((cost.at(1.0), cost.hopeful(1.0)), (None, None));
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

    /// Where a least-squares line would say that rows cost nothing, or all.
    #[test]
    fn a_machine_that_changes_its_speed_does_not_change_the_share_of_the_rows() {
        let mut cost = PassCost::default();
        record(&mut cost, 40, &[2.0, 8.0], 1.0);
        record(&mut cost, 40, &[8.0], 2.0);
        record(&mut cost, 1, &[10.0], 1.9);
        let relative = cost.at(2.0).unwrap() / cost.at(8.0).unwrap();
        assert!((relative - 0.5).abs() < 0.05, "{relative}");
        assert!((cost.at(8.0).unwrap() - 12.0).abs() < 0.5, "{:?}", cost.at(8.0));
    }

    #[test]
    fn what_was_not_tried_for_long_is_hoped_to_be_cheaper() {
        let mut cost = PassCost::default();
        record(&mut cost, 40, &[2.0, 8.0], 1.0);
        let hoped = |cost: &PassCost, rows| cost.hopeful(rows).unwrap() / cost.at(rows).unwrap();
        let soon = hoped(&cost, 16.0);
        record(&mut cost, 400, &[8.0], 1.0);
        let late = hoped(&cost, 16.0);
        assert!(late < 0.97 * soon && (hoped(&cost, 8.0) - 1.0).abs() < 1e-9, "{soon} {late}");
        record(&mut cost, 40, &[16.0, 8.0], 1.0);
        assert!(hoped(&cost, 16.0) > 0.97, "{}", hoped(&cost, 16.0));
    }

    #[test]
    fn an_interrupted_pass_counts_little_and_nothing_is_negative() {
        let mut cost = PassCost::default();
        record(&mut cost, 40, &[2.0, 8.0], 1.0);
        cost.record(8.0, 1000.0);
        assert!(cost.at(8.0).unwrap() < 1.2 * 6.0, "{:?}", cost.at(8.0));
        for rows in [8.0, 2.0, 30.0, 1.0] {
            (0..50).for_each(|_| cost.record(rows, 0.0));
            assert!(cost.at(1.0).unwrap() >= 0.0 && cost.hopeful(64.0).unwrap() >= 0.0);
        }
    }

    proptest::proptest! {
        /// Whatever a clock says, estimates are numbers one can plan with.
        #[test]
        fn estimates_are_finite_and_never_negative(
            passes in proptest::collection::vec((1_u32..4096, 0.0_f64..100.0, 0_i32..12), 1..200),
        ) {
            let mut cost = PassCost::default();
            for (rows, seconds, tens) in passes {
                cost.record(f64::from(rows), seconds / 10_f64.powi(tens));
                for rows in [1.0, 17.0, 5000.0] {
                    let (at, hopeful) = (cost.at(rows).unwrap(), cost.hopeful(rows).unwrap());
                    assert!(at.is_finite() && 0.0 <= hopeful && hopeful <= at, "{cost:?}");
                }
            }
        }
    }
}
