//! The statistics results are told in.

use serde::{Deserialize, Serialize};

/// Where a sample lies.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Values.
    pub n: usize,
    /// Their mean.
    pub mean: f64,
    /// The least.
    pub min: f64,
    /// Lower quartile; quartiles are linearly interpolated, as numpy's.
    pub q25: f64,
    /// Median.
    pub median: f64,
    /// Upper quartile.
    pub q75: f64,
    /// The largest.
    pub max: f64,
}

/// A proportion with its 95 % interval after Wilson.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Share {
    /// Cases.
    pub n: usize,
    /// Of which so many have it.
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
    /// Points.
    pub n: usize,
    /// Slope.
    pub slope: f64,
    /// Value at x = 0.
    pub intercept: f64,
    /// R², the part of y's variance the line explains.
    pub r2: f64,
}
