//! The statistics that results report.

use serde::{Deserialize, Serialize};

/// Summary of a sample.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Number of values.
    pub n: usize,
    /// Their mean.
    pub mean: f64,
    /// The least.
    pub min: f64,
    /// Lower quartile; quartiles are linearly interpolated, as in numpy.
    pub q25: f64,
    /// Median.
    pub median: f64,
    /// Upper quartile.
    pub q75: f64,
    /// The largest.
    pub max: f64,
}

/// A proportion with its Wilson 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Share {
    /// Number of cases.
    pub n: usize,
    /// Number of cases that have the property.
    pub count: usize,
    /// `count / n`.
    pub share: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end of the interval.
    pub high: f64,
}

/// A line fitted by least squares: y ≈ `slope` · x + `intercept`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// Number of points.
    pub n: usize,
    /// Slope.
    pub slope: f64,
    /// Value at x = 0.
    pub intercept: f64,
    /// R², the share of y's variance that the line explains.
    pub r2: f64,
}

impl Summary {
    /// The summary of these values; `None` if there are none.
    pub(super) fn of(values: impl IntoIterator<Item = f64>) -> Option<Summary> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let n = values.len();
        let quantile = |q: f64| {
            let place = q * (n - 1) as f64;
            let (below, above) = (values[place.floor() as usize], values[place.ceil() as usize]);
            below + (above - below) * place.fract()
        };
        let mean = values.iter().sum::<f64>() / n as f64;
        let (q25, median, q75) = (quantile(0.25), quantile(0.5), quantile(0.75));
        Some(Summary { n, mean, min, q25, median, q75, max })
    }
}

impl Share {
    /// `count` of `n`. Without cases, the interval is from 0 to 1.
    pub(super) fn of(count: usize, n: usize) -> Share {
        const Z: f64 = 1.959_963_984_540_054; // 97.5 % quantile of the normal distribution
        if n == 0 {
            return Share { n, count, share: 0.0, low: 0.0, high: 1.0 };
        }
        let (cases, share) = (n as f64, count as f64 / n as f64);
        let z2 = Z * Z / cases;
        let centre = (share + z2 / 2.0) / (1.0 + z2);
        let half = Z / (1.0 + z2) * (share * (1.0 - share) / cases + z2 / (4.0 * cases)).sqrt();
        let (low, high) = ((centre - half).clamp(0.0, share), (centre + half).clamp(share, 1.0));
        Share { n, count, share, low, high }
    }
}

impl Line {
    /// Fitted to points (x, y); `None` with fewer than three, or if all x are the same.
    pub(super) fn fit(points: &[(f64, f64)]) -> Option<Line> {
        let n = points.len() as f64;
        let mean = |of: &dyn Fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / n;
        let (x, y) = (mean(&|p| p.0), mean(&|p| p.1));
        let xx = mean(&|p| (p.0 - x).powi(2));
        let yy = mean(&|p| (p.1 - y).powi(2));
        let xy = mean(&|p| (p.0 - x) * (p.1 - y));
        // A smaller spread of x is rounding.
        if points.len() < 3 || xx <= 1e-20 * x.powi(2).max(1.0) {
            return None;
        }
        let slope = xy / xx;
        let r2 = if yy > 0.0 { xy * xy / (xx * yy) } else { 1.0 };
        Some(Line { n: points.len(), slope, intercept: y - slope * x, r2 })
    }
}

/// A running mean.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(super) struct Mean {
    sum: f64,
    n: usize,
}

impl Mean {
    pub fn add(&mut self, values: &[f64]) {
        self.sum += values.iter().sum::<f64>();
        self.n += values.len();
    }

    pub fn merge(&mut self, other: &Mean) {
        self.sum += other.sum;
        self.n += other.n;
    }

    /// The mean; 0 without values.
    pub fn get(&self) -> f64 {
        if self.n == 0 { 0.0 } else { self.sum / self.n as f64 }
    }
}

/// Spearman's ρ: the correlation of ranks, where equal values share their mean rank. `None` with
/// fewer than three points, or if all x or all y are the same.
pub(super) fn spearman(points: &[(f64, f64)]) -> Option<f64> {
    let x = ranks(&points.iter().map(|p| p.0).collect::<Vec<_>>());
    let y = ranks(&points.iter().map(|p| p.1).collect::<Vec<_>>());
    let line = Line::fit(&x.into_iter().zip(y).collect::<Vec<_>>())?;
    let varies = points.iter().any(|p| p.1 != points[0].1);
    varies.then(|| line.r2.sqrt().copysign(line.slope))
}

fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*a].total_cmp(&values[*b]));
    let mut ranks = vec![0.0; values.len()];
    let mut done = 0;
    for equal in order.chunk_by(|a, b| values[*a] == values[*b]) {
        let rank = done as f64 + (equal.len() + 1) as f64 / 2.0;
        equal.iter().for_each(|i| ranks[*i] = rank);
        done += equal.len();
    }
    ranks
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-12
    }

    /// `numpy.quantile([3, 1, 4, 1, 5, 9], [.25, .5, .75])`
    #[test]
    fn quartiles_are_numpy_s() {
        let summary = Summary::of([3.0, 1.0, 4.0, 1.0, 5.0, 9.0]).unwrap();
        assert_eq!((summary.n, summary.min, summary.max), (6, 1.0, 9.0));
        assert_eq!((summary.q25, summary.median, summary.q75), (1.5, 3.5, 4.75));
        assert!(close(summary.mean, 23.0 / 6.0));
        assert_eq!(Summary::of([]), None);
    }

    /// `scipy.stats.binomtest(count, n).proportion_ci(method="wilson")`
    #[test]
    fn intervals_are_wilson_s() {
        let near = |share: Share, low: f64, high: f64| {
            assert!((share.low - low).abs() < 1e-9, "{share:?}");
            assert!((share.high - high).abs() < 1e-9, "{share:?}");
        };
        near(Share::of(8, 10), 0.490_162_471_5, 0.943_317_848_5);
        near(Share::of(0, 10), 0.0, 0.277_532_799_9);
        near(Share::of(10, 10), 0.722_467_200_1, 1.0);
        near(Share::of(0, 0), 0.0, 1.0);
    }

    /// `scipy.stats.linregress` and `spearmanr`.
    #[test]
    fn lines_and_ranks_are_scipy_s() {
        let points = [(1.0, 2.0), (2.0, 1.0), (3.0, 4.0), (4.0, 3.0), (5.0, 7.0)];
        let line = Line::fit(&points).unwrap();
        assert!(close(line.slope, 1.2) && close(line.intercept, -0.2), "{line:?}");
        assert!(close(line.r2, 14.4 / 21.2), "{line:?}");
        assert!(close(spearman(&points).unwrap(), 0.8));
        let ties = [(1.0, 1.0), (2.0, 2.0), (2.0, 3.0), (3.0, 3.0)];
        assert!(close(spearman(&ties).unwrap(), 0.833_333_333_333_333_4));
        let falling = points.map(|(x, y)| (x, -y));
        assert!(close(spearman(&falling).unwrap(), -0.8));
        assert_eq!(Line::fit(&[(1.0, 2.0), (1.0, 3.0), (1.0, 4.0)]), None);
        assert_eq!(spearman(&[(1.0, 2.0), (2.0, 2.0), (3.0, 2.0)]), None);
    }
}
