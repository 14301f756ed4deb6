//! Running estimates with exponential forgetting.

/// An exponentially weighted mean: each observation has `decay` times the weight of the next one. A
/// decay of 1 is a plain mean.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mean {
    decay: f64,
    weight: f64,
    sum: f64,
}

impl Default for Mean {
    /// A plain mean.
    fn default() -> Mean {
        Mean::new(1.0)
    }
}

impl Mean {
    /// A mean without observations.
    pub fn new(decay: f64) -> Mean {
        Mean { decay, weight: 0.0, sum: 0.0 }
    }

    /// Records an observation.
    pub fn record(&mut self, x: f64) {
        self.weight = self.weight * self.decay + 1.0;
        self.sum = self.sum * self.decay + x;
    }

    /// `None` before the first observation.
    pub fn value(&self) -> Option<f64> {
        (self.weight > 0.0).then(|| self.sum / self.weight)
    }

    /// The mean with `weight` additional observations of `prior`, for few observations.
    pub fn value_after(&self, prior: f64, weight: f64) -> f64 {
        (self.sum + prior * weight) / (self.weight + weight)
    }
}

/// A least-squares line y = a + b·x with b ≥ 0: seconds of a pass (y) by its rows (x).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Line {
    x: Mean,
    y: Mean,
    xx: Mean,
    xy: Mean,
}

impl Line {
    /// Records an observation.
    pub fn record(&mut self, x: f64, y: f64) {
        self.x.record(x);
        self.y.record(y);
        self.xx.record(x * x);
        self.xy.record(x * y);
    }

    /// y at x = `at`. `None` before the first observation.
    pub fn at(&self, at: f64) -> Option<f64> {
        let (x, y) = (self.x.value()?, self.y.value()?);
        let variance = self.xx.value()? - x * x;
        // Without spread in x the slope is unknown. A pass over more rows is never cheaper.
        let spread = variance > 1e-3 * x * x;
        let slope = if spread { ((self.xy.value()? - x * y) / variance).max(0.0) } else { 0.0 };
        // A pass costs at least its rows' share of the mean pass.
        Some((y + slope * (at - x)).max(y * (at / x).min(1.0)))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_mean_forgets() {
        let mut mean = Mean::new(0.9);
        assert_eq!(mean.value(), None);
        (0..50).for_each(|_| mean.record(1.0));
        assert!((mean.value().unwrap() - 1.0).abs() < 1e-12);
        (0..50).for_each(|_| mean.record(3.0));
        assert!((mean.value().unwrap() - 3.0).abs() < 0.02);
    }

    #[test]
    fn a_line_goes_through_its_points() {
        let through = |points: &[(f64, f64)]| {
            let mut line = Line::default();
            points.iter().for_each(|&(x, y)| line.record(x, y));
            line
        };
        assert_eq!(Line::default().at(1.0), None);
        let one = through(&[(4.0, 10.0)]); // no slope
        assert_eq!((one.at(8.0), one.at(1.0)), (Some(10.0), Some(10.0)));
        let rising = through(&[(0.0, 2.0), (2.0, 3.0), (4.0, 4.0)]);
        assert!((rising.at(8.0).unwrap() - 6.0).abs() < 1e-9);
        let falling = through(&[(0.0, 5.0), (2.0, 3.0), (4.0, 1.0)]); // never cheaper
        assert!((falling.at(8.0).unwrap() - 3.0).abs() < 1e-9);
    }
}
