//! Running estimates that forget.

/// A mean in which an observation weighs `decay` times the one after it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mean {
    decay: f64,
    weight: f64,
    sum: f64,
}

impl Mean {
    pub fn new(decay: f64) -> Mean {
        Mean { decay, weight: 0.0, sum: 0.0 }
    }

    pub fn record(&mut self, x: f64) {
        self.weight = self.weight * self.decay + 1.0;
        self.sum = self.sum * self.decay + x;
    }

    /// `None` before the first observation.
    pub fn value(&self) -> Option<f64> {
        (self.weight > 0.0).then(|| self.sum / self.weight)
    }
}

/// A least-squares line y = a + b·x, b ≥ 0, that forgets as [`Mean`] does: what a pass costs by its rows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Line {
    x: Mean,
    y: Mean,
    xx: Mean,
    xy: Mean,
}

impl Line {
    pub fn new(decay: f64) -> Line {
        let mean = Mean::new(decay);
        Line { x: mean, y: mean, xx: mean, xy: mean }
    }

    pub fn record(&mut self, x: f64, y: f64) {
        self.x.record(x);
        self.y.record(y);
        self.xx.record(x * x);
        self.xy.record(x * y);
    }

    /// `None` before the first observation.
    pub fn at(&self, at: f64) -> Option<f64> {
        let (x, y) = (self.x.value()?, self.y.value()?);
        let variance = self.xx.value()? - x * x;
        let covariance = self.xy.value()? - x * y;
        // Without spread in x there is no slope to be seen; a pass over more rows is never cheaper.
        let slope = if variance > 1e-6 * x * x { (covariance / variance).max(0.0) } else { 0.0 };
        // Nor does a pass cost less than a row's share of the mean one.
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
        let mut line = Line::new(0.9);
        assert_eq!(line.at(1.0), None);
        line.record(4.0, 10.0);
        assert_eq!((line.at(8.0), line.at(1.0)), (Some(10.0), Some(10.0))); // one point: no slope
        (0..40).for_each(|i| line.record(f64::from(i % 5), 2.0 + 0.5 * f64::from(i % 5)));
        assert!((line.at(8.0).unwrap() - 6.0).abs() < 0.2);
        (0..40).for_each(|i| line.record(f64::from(i % 5), 5.0 - f64::from(i % 5)));
        assert!((line.at(8.0).unwrap() - 3.0).abs() < 0.5); // never cheaper
    }
}
