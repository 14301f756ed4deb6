//! Cosines of vectors.

use fathom_vector::{dot, norm};

/// The cosine of two vectors with known norms; 0 if either is zero.
pub(crate) fn cosine(a: &[f32], a_norm: f32, b: &[f32], b_norm: f32) -> f32 {
    cosine_of_dot(dot(a, b), a_norm, b_norm)
}

/// The cosine from a dot product and two norms; 0 if either vector is zero.
pub(crate) fn cosine_of_dot(dot: f32, a_norm: f32, b_norm: f32) -> f32 {
    let norms = f64::from(a_norm) * f64::from(b_norm);
    if norms > 0.0 { (f64::from(dot) / norms).clamp(-1.0, 1.0) as f32 } else { 0.0 }
}

/// The cosine of two vectors; 0 if either is zero.
pub(crate) fn cosine_of(a: &[f32], b: &[f32]) -> f32 {
    cosine(a, norm(a), b, norm(b))
}
