//! Running estimates that forget.

/// A mean in which an observation weighs `decay` times the one after it; 1 forgets nothing.
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
    /// Of nothing yet.
    pub fn new(decay: f64) -> Mean {
        Mean { decay, weight: 0.0, sum: 0.0 }
    }

    /// Counts an observation.
    pub fn record(&mut self, x: f64) {
        self.weight = self.weight * self.decay + 1.0;
        self.sum = self.sum * self.decay + x;
    }

    /// `None` before the first observation.
    pub fn value(&self) -> Option<f64> {
        (self.weight > 0.0).then(|| self.sum / self.weight)
    }

    /// The mean that `weight` observations of `prior` and then these have: for few observations.
    pub fn value_after(&self, prior: f64, weight: f64) -> f64 {
        (self.sum + prior * weight) / (self.weight + weight)
    }
}

/// A least-squares line y = a + b·x, b ≥ 0, that forgets as [`Mean`] does: what a pass costs by its rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Line {
    x: Mean,
    y: Mean,
    xx: Mean,
    xy: Mean,
    /// b, as far as it could be seen.
    slope: f64,
}

impl Default for Line {
    /// The plain least-squares line.
    fn default() -> Line {
        Line::new(1.0)
    }
}

impl Line {
    /// Through nothing yet.
    pub fn new(decay: f64) -> Line {
        let mean = Mean::new(decay);
        Line { x: mean, y: mean, xx: mean, xy: mean, slope: 0.0 }
    }

    /// Counts an observation.
    pub fn record(&mut self, x: f64, y: f64) {
        self.x.record(x);
        self.y.record(y);
        self.xx.record(x * x);
        self.xy.record(x * y);
        let mean = |mean: &Mean| mean.value().unwrap_or(0.0);
        let (x, y) = (mean(&self.x), mean(&self.y));
        let variance = mean(&self.xx) - x * x;
        // Without spread in x there is no slope to be seen, and the last one seen holds; a pass over more
        // rows is never cheaper.
        if variance > 1e-3 * x * x {
            self.slope = ((mean(&self.xy) - x * y) / variance).max(0.0);
        }
    }

    /// `None` before the first observation.
    pub fn at(&self, at: f64) -> Option<f64> {
        let (x, y) = (self.x.value()?, self.y.value()?);
        // A pass does not cost less than a row's share of the mean one.
        Some((y + self.slope * (at - x)).max(y * (at / x).min(1.0)))
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
        let mut line = Line::new(0.9);
        assert_eq!(line.at(1.0), None);
        line.record(4.0, 10.0);
        assert_eq!((line.at(8.0), line.at(1.0)), (Some(10.0), Some(10.0))); // one point: no slope
        (0..40).for_each(|i| line.record(f64::from(i % 5), 2.0 + 0.5 * f64::from(i % 5)));
        assert!((line.at(8.0).unwrap() - 6.0).abs() < 0.2);
        (0..40).for_each(|i| line.record(f64::from(i % 5), 5.0 - f64::from(i % 5)));
        assert!((line.at(8.0).unwrap() - 3.0).abs() < 0.5); // never cheaper
    }

    #[test]
    fn a_slope_is_remembered_where_none_is_to_be_seen() {
        let mut line = Line::new(0.9);
        (0..40).for_each(|i| line.record(f64::from(1 + i % 5), 2.0 + f64::from(1 + i % 5)));
        (0..200).for_each(|_| line.record(1.0, 3.0));
        assert!((line.at(5.0).unwrap() - 7.0).abs() < 0.1);
    }
}
