//! Seconds of a target pass by its rows, on a machine whose speed changes.

use std::collections::BTreeMap;

use super::running::Mean;
use super::speeds::size_class;

/// Share of a pass's relative residual by which the machine's slowness changes.
const SPEED_GAIN: f64 = 0.22;
/// Decay of a point of the curve per pass over its rows: growing contexts change the curve slowly.
const CURVE_DECAY: f64 = 0.99;
/// A pass counts at most this multiple of the expected seconds: an interruption by another program
/// says little about the next pass.
const OUTLIER: f64 = 4.0 / 3.0;
/// Share by which the optimistic cost is lower, per square root of the number of passes since the
/// rows last ran.
const OPTIMISM: f64 = 0.005;
/// Lower bound of a pass in seconds, for coarse clocks.
const SHORTEST: f64 = 1e-9;

/// Seconds of a target pass by its rows: the machine's slowness times a curve.
///
/// Every pass changes the slowness, and with it the cost of all rows: other programs, or other
/// guests of the same host, slow passes over few and many rows by the same factor. The curve has
/// one point for each class of rows, which only passes of that class change, and slowly. It need
/// not be a line: kernels work in blocks of rows.
///
/// Formulas and an ablation: `planner/README.md`.
#[derive(Clone, Debug, PartialEq)]
pub struct PassCost {
    slowness: f64,
    /// Points of the curve by the class of their rows ([`size_class`]).
    points: BTreeMap<usize, Point>,
    /// Mean rows of the last passes.
    recent_rows: Mean,
    /// Number of passes recorded.
    passes: usize,
}

/// A point of the curve: means over the passes of one class of rows.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Point {
    rows: Mean,
    /// Seconds / slowness.
    seconds: Mean,
    /// [`PassCost::passes`] at the last pass of this class.
    last_pass: usize,
}

impl Point {
    fn new() -> Point {
        let mean = Mean::new(CURVE_DECAY);
        Point { rows: mean, seconds: mean, last_pass: 0 }
    }

    fn value(&self) -> Option<(f64, f64)> {
        Some((self.rows.value()?, self.seconds.value()?))
    }
}

impl Default for PassCost {
    fn default() -> PassCost {
        let recent_rows = Mean::new(0.9);
        PassCost { slowness: 1.0, points: BTreeMap::new(), recent_rows, passes: 0 }
    }
}

impl PassCost {
    /// Records a pass over `rows` ≥ 1 rows.
    pub fn record(&mut self, rows: f64, seconds: f64) {
        let mut seconds = seconds.max(SHORTEST);
        // The first pass of a class says more about the curve than about the machine's speed.
        if let (Some(_), Some(expected)) = (self.point(rows), self.at(rows)) {
            seconds = seconds.min(OUTLIER * expected);
            self.slowness *= 1.0 + SPEED_GAIN * (seconds / expected - 1.0);
        }
        self.passes += 1;
        self.recent_rows.record(rows);
        let point = self.points.entry(row_class(rows)).or_insert_with(Point::new);
        point.rows.record(rows);
        point.seconds.record(seconds / self.slowness);
        point.last_pass = self.passes;
    }

    /// Whether a pass over about as many rows was recorded.
    pub fn has_measured(&self, rows: f64) -> bool {
        self.point(rows).is_some()
    }

    /// Expected seconds of a pass over `rows` rows; `None` before the first.
    pub fn at(&self, rows: f64) -> Option<f64> {
        self.discounted(rows, 0.0)
    }

    /// Optimistic seconds of a pass over `rows` rows: lower the longer no pass had about as many
    /// rows.
    pub fn optimistic(&self, rows: f64) -> Option<f64> {
        let last_pass = self.point(rows).map_or(0, |point| point.last_pass);
        let age = (self.passes - last_pass) as f64;
        self.discounted(rows, OPTIMISM * age.sqrt())
    }

    fn discounted(&self, rows: f64, discount: f64) -> Option<f64> {
        let recent = self.recent_rows.value()?;
        // A pass over more rows is never cheaper than a recent pass, and one over fewer rows costs
        // at least its share.
        let least = self.curve(recent)? * (rows / recent).min(1.0);
        Some(self.slowness * (self.curve(rows)? * (1.0 - discount)).max(least))
    }

    fn point(&self, rows: f64) -> Option<&Point> {
        self.points.get(&row_class(rows))
    }

    /// Seconds / slowness: linear between the points, and outside with the slope from the first to
    /// the last point.
    fn curve(&self, rows: f64) -> Option<f64> {
        let mut points = self.points.values().filter_map(Point::value);
        let (mut below, mut above) = (None, None);
        for point in points.by_ref() {
            if point.0 > rows {
                above = Some(point);
                break;
            }
            below = Some(point);
        }
        let nearest = below.or(above)?;
        let (a, b) = match (below, above) {
            (Some(below), Some(above)) => (below, above),
            _ => {
                let first = self.points.values().find_map(Point::value)?;
                (first, points.next_back().unwrap_or(nearest))
            }
        };
        let slope = if b.0 > a.0 { (b.1 - a.1) / (b.0 - a.0) } else { 0.0 };
        let seconds = nearest.1 + slope * (rows - nearest.0);
        // More rows are never cheaper than the point below, and fewer cost at least their share.
        Some(seconds.max(nearest.1 * (rows / nearest.0).min(1.0)))
    }
}

/// Rows rounded up to a power of two.
fn row_class(rows: f64) -> usize {
    size_class(rows.ceil() as usize)
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
