//! How well two kinds of points are separated.

use nalgebra::{DMatrix, DVector};

use super::gram::centred;

/// Folds of the cross-validation.
const FOLDS: usize = 5;
/// Ridge, relative to the mean squared distance of the training points from their mean.
const RIDGE: f64 = 1e-3;

/// Mean silhouette (Rousseeuw 1987) of two clusters of points with these squared distances.
pub(super) fn silhouette(distances: &DMatrix<f64>, kinds: &[bool]) -> f64 {
    let n = kinds.len();
    let of = |i: usize| {
        let mean_to = |kind: bool| {
            let others = (0..n).filter(|j| *j != i && kinds[*j] == kind);
            let (sum, count) = others
                .fold((0.0, 0usize), |(sum, count), j| (sum + distances[(i, j)].sqrt(), count + 1));
            (count > 0).then(|| sum / count as f64)
        };
        match (mean_to(kinds[i]), mean_to(!kinds[i])) {
            (Some(own), Some(other)) if own.max(other) > 0.0 => (other - own) / own.max(other),
            _ => 0.0, // alone in its cluster
        }
    };
    (0..n).map(of).sum::<f64>() / n as f64
}

/// Balanced accuracy of a ridge classifier on held-out points. The i-th point of each kind is in
/// fold i mod 5.
pub(super) fn separability(distances: &DMatrix<f64>, kinds: &[bool]) -> f64 {
    let mut seen = [0; 2];
    let folds: Vec<usize> = kinds
        .iter()
        .map(|kind| {
            let i = &mut seen[usize::from(*kind)];
            *i += 1;
            (*i - 1) % FOLDS
        })
        .collect();
    let mut right = [0; 2];
    for fold in 0..FOLDS {
        let (held_out, fitted): (Vec<usize>, Vec<usize>) =
            (0..kinds.len()).partition(|i| folds[*i] == fold);
        for (i, value) in held_out.iter().zip(decide(distances, kinds, &fitted, &held_out)) {
            right[usize::from(kinds[*i])] += usize::from((value > 0.0) == kinds[*i]);
        }
    }
    let accuracy = |kind: usize| right[kind] as f64 / seen[kind].max(1) as f64;
    (accuracy(0) + accuracy(1)) / 2.0
}

/// Decision values y̅ + (y - y̅)ᵀ (K + αI)⁻¹ k of a ridge classifier with intercept. It is fitted
/// to the points `fitted`, with y = +1 for kind `true` and -1 for `false`, and evaluated at
/// `asked`.
fn decide(distances: &DMatrix<f64>, kinds: &[bool], fitted: &[usize], asked: &[usize]) -> Vec<f64> {
    let n = fitted.len();
    let among = DMatrix::from_fn(n, n, |i, j| distances[(fitted[i], fitted[j])]);
    let gram = centred(&among);
    let alpha = RIDGE * gram.trace() / n as f64;
    let y = DVector::from_fn(n, |i, _| if kinds[fitted[i]] { 1.0 } else { -1.0 });
    let mean = y.mean();
    let regularised = &gram + DMatrix::identity(n, n) * alpha.max(f64::MIN_POSITIVE);
    let Some(weights) = regularised.cholesky().map(|factor| factor.solve(&y.add_scalar(-mean)))
    else {
        return vec![mean; asked.len()]; // points that all coincide
    };
    // Dot products of the centred training points with a point x, up to a constant. It cancels,
    // because the weights sum to zero.
    let column_means: Vec<f64> = among.column_iter().map(|column| column.mean()).collect();
    let value = |x: &usize| {
        let products = (0..n).map(|i| -0.5 * (distances[(*x, fitted[i])] - column_means[i]));
        mean + products.zip(weights.iter()).map(|(product, weight)| product * weight).sum::<f64>()
    };
    asked.iter().map(value).collect()
}

#[cfg(test)]
mod tests {
    use super::super::fixture::fixture;
    use super::super::gram::squared_distances;
    use super::*;

    #[test]
    fn silhouettes_and_ridge_classifiers_are_scikit_learn_s() {
        let fixture = fixture();
        let distances = squared_distances(&fixture.rows());
        let kinds = &fixture.kinds;
        assert!((silhouette(&distances, kinds) - fixture.silhouette).abs() < 1e-6);
        assert!((separability(&distances, kinds) - fixture.balanced_accuracy).abs() < 1e-12);
        let half = kinds.len() / 2;
        let (fitted, asked): (Vec<usize>, Vec<usize>) = (0..kinds.len()).partition(|i| *i < half);
        let values = decide(&distances, kinds, &fitted, &asked);
        for (value, expected) in values.iter().zip(&fixture.decision_of_second_half) {
            assert!((value - expected).abs() < 1e-4, "{value} {expected}");
        }
    }

    #[test]
    fn points_that_coincide_are_not_separable() {
        let distances = DMatrix::zeros(20, 20);
        let kinds: Vec<bool> = (0..20).map(|i| i % 2 == 0).collect();
        assert!(separability(&distances, &kinds) == 0.5);
        assert!(silhouette(&distances, &kinds) == 0.0);
    }
}
