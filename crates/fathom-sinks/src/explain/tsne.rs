//! Exact t-SNE (van der Maaten & Hinton 2008) with the defaults scikit-learn uses for
//! `method="exact"`, started from the principal components.

use nalgebra::DMatrix;

use super::gram::{centred, eigenpairs};

/// Steps with exaggerated attraction, and steps after those.
const EARLY: usize = 250;
const LATE: usize = 750;
const EXAGGERATION: f64 = 12.0;

/// Coordinates `[n]` of points with these squared distances `[n, n]`, and the remaining
/// Kullback-Leibler divergence. Nothing is random.
pub(super) fn tsne(distances: &DMatrix<f64>, perplexity: f64) -> (Vec<[f64; 2]>, f64) {
    let n = distances.nrows();
    let p = joint_probabilities(distances, perplexity);
    let mut y = principal_coordinates(distances);
    let mut velocity = vec![[0.0; 2]; n];
    let mut gains = vec![[1.0f64; 2]; n];
    let learning_rate = (n as f64 / EXAGGERATION / 4.0).max(50.0);
    for step in 0..EARLY + LATE {
        let (exaggeration, momentum) = if step < EARLY { (EXAGGERATION, 0.5) } else { (1.0, 0.8) };
        let gradient = gradient(&p, &y, exaggeration);
        for i in 0..n {
            for d in 0..2 {
                let same_way = gradient[i][d] * velocity[i][d] < 0.0;
                let gain = if same_way { gains[i][d] + 0.2 } else { gains[i][d] * 0.8 };
                gains[i][d] = gain.max(0.01);
                velocity[i][d] =
                    momentum * velocity[i][d] - learning_rate * gains[i][d] * gradient[i][d];
                y[i][d] += velocity[i][d];
            }
        }
    }
    let left = divergence(&p, &y);
    (y, left)
}

/// p_ij = (p_j|i + p_i|j) / 2n, with the width of each row's Gaussian chosen for its perplexity.
fn joint_probabilities(distances: &DMatrix<f64>, perplexity: f64) -> DMatrix<f64> {
    let n = distances.nrows();
    let mut conditional = DMatrix::zeros(n, n);
    for i in 0..n {
        let others: Vec<f64> = (0..n).filter(|j| *j != i).map(|j| distances[(i, j)]).collect();
        let row = conditional_row(&others, perplexity.ln());
        for (j, p) in (0..n).filter(|j| *j != i).zip(row) {
            conditional[(i, j)] = p;
        }
    }
    (&conditional + conditional.transpose()) / (2.0 * n as f64)
}

/// exp(-β·d) normalised, with β found by bisection so that the entropy is `target`.
fn conditional_row(distances: &[f64], target: f64) -> Vec<f64> {
    let nearest = distances.iter().copied().fold(f64::INFINITY, f64::min);
    let mean = distances.iter().map(|d| d - nearest).sum::<f64>() / distances.len() as f64;
    let (mut beta, mut low, mut high) = (1.0 / mean.max(f64::MIN_POSITIVE), 0.0, f64::INFINITY);
    let mut row = vec![0.0; distances.len()];
    for _ in 0..100 {
        row = distances.iter().map(|d| (-beta * (d - nearest)).exp()).collect();
        let sum: f64 = row.iter().sum();
        row.iter_mut().for_each(|p| *p /= sum);
        let entropy: f64 = row.iter().filter(|p| **p > 0.0).map(|p| -p * p.ln()).sum();
        if (entropy - target).abs() < 1e-5 {
            break;
        }
        if entropy > target {
            low = beta;
            beta = if high.is_finite() { (beta + high) / 2.0 } else { (beta * 2.0).min(f64::MAX) };
        } else {
            high = beta;
            beta = (beta + low) / 2.0;
        }
    }
    row
}

/// The first two principal components, scaled to a standard deviation of 1e-4 along the first.
fn principal_coordinates(distances: &DMatrix<f64>) -> Vec<[f64; 2]> {
    let n = distances.nrows();
    let pairs = eigenpairs(centred(distances));
    let column = |k: usize| {
        let (value, vector) = pairs.get(k)?;
        // The sign of an eigenvector is arbitrary: we make its largest entry positive.
        let largest =
            vector.iter().copied().fold(0.0f64, |a, b| if b.abs() > a.abs() { b } else { a });
        let scale = value.max(0.0).sqrt() * largest.signum();
        Some(vector.iter().map(|x| x * scale).collect::<Vec<f64>>())
    };
    let flat = || vec![0.0; n];
    let (x, y) = (column(0).unwrap_or_else(flat), column(1).unwrap_or_else(flat));
    let deviation = (x.iter().map(|x| x * x).sum::<f64>() / n as f64).sqrt();
    let scale = 1e-4 / deviation.max(f64::MIN_POSITIVE);
    x.into_iter().zip(y).map(|(x, y)| [x * scale, y * scale]).collect()
}

/// 1 / (1 + ‖y_i - y_j‖²) and their sum over i ≠ j.
fn affinities(y: &[[f64; 2]]) -> (DMatrix<f64>, f64) {
    let n = y.len();
    let mut q = DMatrix::zeros(n, n);
    let mut sum = 0.0;
    for j in 0..n {
        for i in 0..j {
            let (a, b) = (y[i][0] - y[j][0], y[i][1] - y[j][1]);
            let value = 1.0 / (1.0 + a * a + b * b);
            (q[(i, j)], q[(j, i)]) = (value, value);
            sum += 2.0 * value;
        }
    }
    (q, sum)
}

/// 4 Σ_j (e·p_ij - q_ij / Σq) q_ij (y_i - y_j)
fn gradient(p: &DMatrix<f64>, y: &[[f64; 2]], exaggeration: f64) -> Vec<[f64; 2]> {
    let (q, sum) = affinities(y);
    let of = |i: usize| {
        let mut gradient = [0.0; 2];
        for (j, other) in y.iter().enumerate() {
            let affinity = q[(j, i)];
            let force = 4.0 * (exaggeration * p[(j, i)] - affinity / sum) * affinity;
            gradient[0] += force * (y[i][0] - other[0]);
            gradient[1] += force * (y[i][1] - other[1]);
        }
        gradient
    };
    (0..y.len()).map(of).collect()
}

fn divergence(p: &DMatrix<f64>, y: &[[f64; 2]]) -> f64 {
    let (q, sum) = affinities(y);
    let term = |(p, q): (&f64, &f64)| if *p > 0.0 { p * (p * sum / q).ln() } else { 0.0 };
    p.iter().zip(q.iter()).map(term).sum()
}

#[cfg(test)]
mod tests {
    use super::super::fixture::fixture;
    use super::super::gram::squared_distances;
    use super::*;

    #[test]
    fn the_remaining_divergence_is_no_larger_than_scikit_learn_s() {
        let fixture = fixture();
        let distances = squared_distances(&fixture.rows());
        let (y, left) = tsne(&distances, fixture.perplexity);
        assert!(left < 1.05 * fixture.kl_divergence, "{left} {}", fixture.kl_divergence);
        assert!(
            (left - divergence(&joint_probabilities(&distances, fixture.perplexity), &y)).abs()
                < 1e-12
        );
        assert!(tsne(&distances, fixture.perplexity).0 == y, "reproducible");
    }

    #[test]
    fn joint_probabilities_are_scikit_learn_s() {
        let fixture = fixture();
        let p = joint_probabilities(&squared_distances(&fixture.rows()), fixture.perplexity);
        for (i, expected) in fixture.joint_probabilities_of_first.iter().enumerate() {
            assert!((p[(0, i)] - expected).abs() < 1e-6, "{i}: {} {expected}", p[(0, i)]);
        }
    }

    #[test]
    fn points_that_coincide_stay_finite() {
        let (y, left) = tsne(&DMatrix::zeros(12, 12), 3.0);
        assert!(y.iter().flatten().all(|x| x.is_finite()) && left.is_finite());
    }
}
