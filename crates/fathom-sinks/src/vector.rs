//! Dot products of long rows.

/// Independent partial sums, so that the compiler can use vector registers.
const LANES: usize = 16;

/// Σ aᵢ·bᵢ. The order of summation depends on the length only.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (a_chunks, a_rest) = a.as_chunks::<LANES>();
    let (b_chunks, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for i in 0..LANES {
            lanes[i] += a[i] * b[i];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    lanes.iter().sum::<f32>() + rest
}

/// ‖a‖.
pub(crate) fn norm(a: &[f32]) -> f32 {
    dot(a, a).sqrt()
}

/// The cosine of two vectors whose norms are known; 0 where either is zero.
pub(crate) fn cosine(a: &[f32], a_norm: f32, b: &[f32], b_norm: f32) -> f32 {
    let norms = f64::from(a_norm) * f64::from(b_norm);
    if norms > 0.0 { (f64::from(dot(a, b)) / norms).clamp(-1.0, 1.0) as f32 } else { 0.0 }
}
