//! Fast log-sum-exp and KL divergence of rows of logits `[vocab]`. Edited passes compute both for
//! every token.

/// The number of terms that are added in f32 before the sum continues in f64.
const BLOCK: usize = 4096;
const LANES: usize = 16;

/// ln Σ exp(logits).
pub(super) fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = largest(logits);
    let sum = sum(logits, logits, |logit, _| exp(logit - max));
    f64::from(max) + sum.ln()
}

/// A row of logits, prepared for comparison with other rows.
pub(super) struct Prediction<'a> {
    pub logits: &'a [f32],
    /// exp(logit - max), `[vocab]`.
    weights: Vec<f32>,
    /// ln Σ exp(logits).
    pub log_sum: f64,
    max: f32,
    /// The most likely token, the first of equals.
    best: usize,
}

impl<'a> Prediction<'a> {
    pub fn new(logits: &'a [f32]) -> Prediction<'a> {
        let max = largest(logits);
        let weights: Vec<f32> = logits.iter().map(|logit| exp(logit - max)).collect();
        let log_sum = f64::from(max) + sum(&weights, &weights, |weight, _| weight).ln();
        let best = logits.iter().position(|logit| *logit == max).unwrap_or(0);
        Prediction { logits, weights, log_sum, max, best }
    }

    /// KL(this ‖ other) in nats: Σ p · (log p - log q), clamped to ≥ 0. `log_sum` is the
    /// log-sum-exp of `other`.
    pub fn divergence(&self, other: &[f32], log_sum: f64) -> f64 {
        // Σ w · (a - b), where p = w / Σ w
        let mut weighted = 0.0;
        let blocks = self.logits.chunks(BLOCK).zip(other.chunks(BLOCK));
        for ((a, b), weights) in blocks.zip(self.weights.chunks(BLOCK)) {
            let differences: Vec<f32> = a.iter().zip(b).map(|(a, b)| a - b).collect();
            weighted += sum(weights, &differences, |w, d| if w > 0.0 { w * d } else { 0.0 });
        }
        let weights = (self.log_sum - f64::from(self.max)).exp();
        (weighted / weights - self.log_sum + log_sum).max(0.0)
    }

    /// Whether the most likely token is also a most likely one of `other`.
    pub fn agrees(&self, other: &[f32]) -> bool {
        other.get(self.best).is_some_and(|logit| *logit == largest(other))
    }
}

/// Lane by lane, so that the comparisons do not wait for each other.
fn largest(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane = lane.max(*value);
        }
    }
    lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max)
}

/// Σ term(a, b), in a fixed order.
fn sum(a: &[f32], b: &[f32], term: impl Fn(f32, f32) -> f32) -> f64 {
    let mut total = 0.0;
    for (a, b) in a.chunks(BLOCK).zip(b.chunks(BLOCK)) {
        let mut lanes = [0.0f32; LANES];
        let (a_chunks, a_rest) = a.as_chunks::<LANES>();
        let (b_chunks, b_rest) = b.as_chunks::<LANES>();
        for (a, b) in a_chunks.iter().zip(b_chunks) {
            for lane in 0..LANES {
                lanes[lane] += term(a[lane], b[lane]);
            }
        }
        total += lanes.iter().copied().map(f64::from).sum::<f64>();
        total += a_rest.iter().zip(b_rest).map(|(a, b)| f64::from(term(*a, *b))).sum::<f64>();
    }
    total
}

/// e^x for x ≤ 0; 0 below -87. With x = n·ln 2 + r, e^x = 2^n · e^r, where e^r is a polynomial.
/// Compilers vectorize this, but not the library's `exp`.
#[inline(always)]
fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 · 2^23: adding and subtracting it rounds to an integer
    const LN2_HIGH: f32 = 0.693_145_75; // ln 2 in two parts: n · LN2_HIGH is exact
    const LN2_LOW: f32 = 1.428_606_8e-6;
    let clamped = x.max(-87.0);
    let n = (clamped * std::f32::consts::LOG2_E + ROUND) - ROUND;
    let r = (clamped - n * LN2_HIGH) - n * LN2_LOW;
    // Taylor to r⁶: |r| ≤ ln 2 / 2, the next term is below 1.2e-7.
    let q = 1.0 / 120.0 + r * (1.0 / 720.0);
    let e = 1.0 + r * (1.0 + r * (0.5 + r * (1.0 / 6.0 + r * (1.0 / 24.0 + r * q))));
    let power = f32::from_bits(((n as i32 + 127) << 23) as u32);
    if x < -87.0 { 0.0 } else { e * power }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// In f64, as written in textbooks.
    fn log_probabilities(logits: &[f32]) -> Vec<f64> {
        let log_sum = logits.iter().map(|logit| f64::from(*logit).exp()).sum::<f64>().ln();
        logits.iter().map(|logit| f64::from(*logit) - log_sum).collect()
    }

    proptest! {
        #[test]
        fn log_sums_and_divergences_are_the_textbook_s(
            rows in proptest::collection::vec((-30.0f32..30.0, -30.0f32..30.0), 1..9000)
        ) {
            let (a, b): (Vec<f32>, Vec<f32>) = rows.into_iter().unzip();
            let (p, q) = (log_probabilities(&a), log_probabilities(&b));
            let expected: f64 = p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum();
            let prediction = Prediction::new(&a);
            let log_sum = log_sum_exp(&b);
            prop_assert!((prediction.log_sum - (f64::from(a[0]) - p[0])).abs() < 1e-5);
            prop_assert!((log_sum - (f64::from(b[0]) - q[0])).abs() < 1e-5);
            let found = prediction.divergence(&b, log_sum);
            prop_assert!((found - expected).abs() < 1e-5 * expected.max(1.0), "{found} {expected}");
            prop_assert_eq!(prediction.divergence(&a, prediction.log_sum), 0.0);
        }

        #[test]
        fn powers_of_e_are_the_library_s(x in -86.9f32..=0.0) {
            prop_assert!((exp(x) / x.exp() - 1.0).abs() < 5e-7);
        }
    }

    #[test]
    fn predictions_agree_if_the_most_likely_token_is_the_same() {
        let before = Prediction::new(&[0.0, 2.0, 1.0]);
        assert!(before.agrees(&[1.5, 1.6, 0.0]));
        assert!(before.agrees(&[1.6, 1.6, 0.0]), "the other token is as likely");
        assert!(!before.agrees(&[1.7, 1.6, 0.0]));
        let rows: Vec<f32> = (0..40).map(|i| ((i * 7) % 40) as f32).collect();
        assert_eq!((largest(&rows), largest(&rows[..17])), (39.0, 37.0));
    }

    #[test]
    fn tokens_of_probability_zero_add_nothing() {
        let (a, b) = ([0.0, f32::NEG_INFINITY, 1.0], [0.0, f32::NEG_INFINITY, 2.0]);
        let found = Prediction::new(&a).divergence(&b, log_sum_exp(&b));
        let (p, q) = (log_probabilities(&[0.0, 1.0]), log_probabilities(&[0.0, 2.0]));
        let expected: f64 = p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum();
        assert!((found - expected).abs() < 1e-6, "{found} {expected}");
    }
}
