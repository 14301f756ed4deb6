//! How often a rejection is one that the draft prepared for.

use super::running::Mean;
use crate::branch::CONSIDERED;

/// Exponential decay per rejection: an effective window of 200.
const DECAY: f64 = 0.995;
/// Weight, in rejections, of the assumption.
const PRIOR: f64 = 4.0;
/// Assumed chance of the likeliest rejection, and of each further one relative to the one before.
const FIRST: f64 = 0.3;
const NEXT: f64 = 0.6;
/// Upper bound of the chance of a prepared branch.
const MOST: f64 = 0.98;

/// Numbers of branches to choose from.
pub(crate) const BRANCHES: [usize; 11] = [0, 1, 2, 3, 4, 6, 8, 12, 16, 24, CONSIDERED];
/// The number of branches at a fixed γ.
pub(crate) const FIXED_BRANCHES: usize = 4;

/// The chance that a rejection is the likeliest one of those considered, the second, and so on.
#[derive(Clone, Debug)]
pub(crate) struct BranchHits {
    by_rank: [Mean; CONSIDERED],
}

impl Default for BranchHits {
    fn default() -> BranchHits {
        BranchHits { by_rank: [Mean::new(DECAY); CONSIDERED] }
    }
}

impl BranchHits {
    /// Records a rejection: its rank among those considered, with a branch of its own or not.
    pub fn record(&mut self, rank: Option<usize>) {
        for (i, mean) in self.by_rank.iter_mut().enumerate() {
            mean.record(if rank == Some(i) { 1.0 } else { 0.0 });
        }
    }

    /// The chance that one of this many branches is taken at a rejection.
    pub fn chance(&self, branches: usize) -> f64 {
        let assumed = (0..).map(|rank| FIRST * NEXT.powi(rank));
        let ranks = self.by_rank.iter().zip(assumed).take(branches);
        ranks.map(|(mean, assumed)| mean.value_after(assumed, PRIOR)).sum::<f64>().min(MOST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chances_are_learned_by_rank() {
        let mut hits = BranchHits::default();
        assert!((hits.chance(1) - FIRST).abs() < 1e-9 && hits.chance(0) == 0.0);
        for i in 0..2000 {
            hits.record([Some(0), Some(0), Some(3), None][i % 4]);
        }
        for (branches, expected) in [(1, 0.5), (3, 0.5), (4, 0.75), (32, 0.75)] {
            assert!((hits.chance(branches) - expected).abs() < 0.03, "{branches}");
        }
    }
}
