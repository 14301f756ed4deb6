//! Reference implementation of every operation: plain loops over row-major f32 slices, accumulation
//! in f64, full attention matrices. The fast kernels are tested against it.

use fathom_backend::{Attention, KeyMask, WeightView};

use crate::gemm::element;

/// `x · Wᵀ + bias`: `x` is `[rows, in]`, the result `[rows, out]`.
pub fn linear(weight: WeightView<'_>, bias: Option<&[f32]>, x: &[f32]) -> Vec<f32> {
    let weights = widen(weight);
    let mut out = Vec::new();
    for x in x.chunks_exact(weight.columns) {
        for (j, w) in weights.chunks_exact(weight.columns).enumerate() {
            let bias = bias.map_or(0.0, |bias| f64::from(bias[j]));
            out.push((dot(x, w) + bias) as f32);
        }
    }
    out
}

/// A weight matrix as f32, row-major.
pub fn widen(weight: WeightView<'_>) -> Vec<f32> {
    weight.bytes.chunks_exact(weight.dtype.size()).map(|x| element(x, weight.dtype)).collect()
}

/// `x / √(mean(x²) + eps) · weight`, row by row.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
    let mut out = Vec::new();
    for x in x.chunks_exact(weight.len()) {
        let scale = 1.0 / (dot(x, x) / x.len() as f64 + f64::from(eps)).sqrt();
        out.extend(x.iter().zip(weight).map(|(x, w)| (f64::from(*x) * scale) as f32 * w));
    }
    out
}

/// Rotates the first `2 · half` components of every head: `x` is `[rows, heads · head_dim]`, `cos`
/// and `sin` are `[rows, half]`.
pub fn rope(x: &[f32], columns: usize, head_dim: usize, cos: &[f32], sin: &[f32]) -> Vec<f32> {
    let half = cos.len() * columns / x.len();
    let mut out = x.to_vec();
    for (row, x) in out.chunks_exact_mut(columns).enumerate() {
        for head in x.chunks_exact_mut(head_dim) {
            for i in 0..half {
                let (cos, sin) = (cos[row * half + i], sin[row * half + i]);
                let (a, b) = (head[i], head[i + half]);
                head[i] = a * cos - b * sin;
                head[i + half] = b * cos + a * sin;
            }
        }
    }
    out
}

/// `x / (1 + e^-x)`
pub fn silu(x: &[f32]) -> Vec<f32> {
    x.iter().map(|&x| (f64::from(x) / (1.0 + (-f64::from(x)).exp())) as f32).collect()
}

/// The attention matrix `[heads, rows, keys]` of the last `rows` positions of a sequence of `keys`
/// tokens. `q` is `[rows, heads · head_dim]`, `k` is `[keys, kv_heads · head_dim]`.
pub fn attention_weights(
    attention: &Attention,
    q: &[f32],
    k: &[f32],
    mask: Option<&KeyMask>,
) -> Vec<f32> {
    let Attention { layer, heads, kv_heads, head_dim, scale, window } = *attention;
    let (rows, keys) = (q.len() / (heads * head_dim), k.len() / (kv_heads * head_dim));
    let mut weights = vec![0.0; heads * rows * keys];
    for head in 0..heads {
        let kv_head = head / (heads / kv_heads);
        for row in 0..rows {
            let end = keys - rows + row + 1;
            let first = window.map_or(0, |window| end.saturating_sub(window));
            let hidden = |key: &usize| mask.is_some_and(|mask| mask.hides(layer, *key, end - 1));
            let visible: Vec<usize> = (first..end).filter(|key| !hidden(key)).collect();
            let q = &q[(row * heads + head) * head_dim..][..head_dim];
            let score = |key: usize| {
                f64::from(scale) * dot(q, &k[(key * kv_heads + kv_head) * head_dim..][..head_dim])
            };
            let max = visible.iter().map(|key| score(*key)).fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = visible.iter().map(|key| (score(*key) - max).exp()).sum();
            for key in visible {
                let weight = (score(key) - max).exp() / sum;
                weights[(head * rows + row) * keys + key] = weight as f32;
            }
        }
    }
    weights
}

/// The attention result `[rows, heads · head_dim]`; `k` and `v` as in [`attention_weights`].
pub fn attend(
    attention: &Attention,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    mask: Option<&KeyMask>,
) -> Vec<f32> {
    let Attention { heads, kv_heads, head_dim, .. } = *attention;
    let (rows, keys) = (q.len() / (heads * head_dim), k.len() / (kv_heads * head_dim));
    let weights = attention_weights(attention, q, k, mask);
    let mut out = Vec::new();
    for row in 0..rows {
        for head in 0..heads {
            let weights = &weights[(head * rows + row) * keys..][..keys];
            let kv_head = head / (heads / kv_heads);
            for d in 0..head_dim {
                let value = |key: usize| f64::from(v[(key * kv_heads + kv_head) * head_dim + d]);
                let terms = weights.iter().enumerate().filter(|(_, w)| **w > 0.0);
                out.push(terms.map(|(key, w)| f64::from(*w) * value(key)).sum::<f64>() as f32);
            }
        }
    }
    out
}

/// Indices of the massive activations of a row: |xᵢ| > 100 and |xᵢ| > 1000 · median |x|.
pub fn massive(x: &[f32]) -> Vec<usize> {
    let mut sizes: Vec<f32> = x.iter().map(|x| x.abs()).collect();
    sizes.sort_by(f32::total_cmp);
    let middle = sizes.len() / 2;
    let median = match sizes.len() % 2 {
        1 => sizes[middle],
        _ => (sizes[middle - 1] + sizes[middle]) / 2.0,
    };
    (0..x.len()).filter(|i| x[*i].abs() > 100.0 && x[*i].abs() > 1000.0 * median).collect()
}

/// Column sums `[heads, keys]` of [`attention_weights`].
pub fn column_sums(
    attention: &Attention,
    q: &[f32],
    k: &[f32],
    mask: Option<&KeyMask>,
) -> Vec<f64> {
    let keys = k.len() / (attention.kv_heads * attention.head_dim);
    let weights = attention_weights(attention, q, k, mask);
    let rows = weights.len() / (attention.heads * keys);
    let mut sums = Vec::new();
    for head in weights.chunks_exact(rows * keys) {
        sums.extend(
            (0..keys)
                .map(|key| head.chunks_exact(keys).map(|row| f64::from(row[key])).sum::<f64>()),
        );
    }
    sums
}

/// The entropies of the rows of [`attention_weights`] in nats, summed over the rows, `[heads]`.
pub fn entropies(attention: &Attention, q: &[f32], k: &[f32], mask: Option<&KeyMask>) -> Vec<f64> {
    let weights = attention_weights(attention, q, k, mask);
    let of_head = |weights: &[f32]| {
        let terms = weights.iter().filter(|p| **p > 0.0).map(|p| f64::from(*p));
        -terms.map(|p| p * p.ln()).sum::<f64>()
    };
    weights.chunks_exact(weights.len() / attention.heads).map(of_head).collect()
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}
