//! Rotary position embedding: the frequencies of all HuggingFace rope types.
//!
//! Su et al., "RoFormer" (arXiv 2104.09864): component pair `i` of a query or key at position `t`
//! is rotated by the angle `t · inv_freq[i]`. The rope types differ only in `inv_freq` and in a
//! factor on the cosines and sines. Pairs are `(i, i + rotary_dim/2)`, HuggingFace's "rotate half"
//! layout.
//!
//! The arithmetic follows the order of operations of HuggingFace transformers 5 in f32, because a
//! difference in the last bit of a frequency grows with the position it is multiplied by. Powers,
//! cosines and sines are computed in f64 and rounded once.

use std::f64::consts::PI;

/// The rotary embedding of a checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Base of the geometric series of wavelengths (`rope_theta`), above 1.
    pub theta: f64,
    /// Number of leading components of a head that are rotated; even, at most `head_dim`. The rest
    /// are unchanged.
    pub rotary_dim: usize,
    /// The rope type with its parameters.
    pub kind: RopeKind,
}

/// The rope types, with all defaults of their parameters filled in.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeKind {
    /// `theta^(-2i/d)`.
    Default,
    /// Position interpolation (arXiv 2306.15595): every frequency divided by `factor`.
    Linear {
        /// Divisor of every frequency.
        factor: f64,
    },
    /// Dynamic NTK-aware scaling: beyond the trained length the base grows with the sequence.
    Dynamic {
        /// How fast the base grows with the length.
        factor: f64,
        /// Trained length in tokens; the base is unchanged up to it.
        max_position_embeddings: usize,
    },
    /// Llama 3.1: low frequencies are divided by `factor`, high ones kept, those between blended.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Frequencies with wavelengths above `original / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Frequencies with wavelengths below `original / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Trained length in tokens (`original` above).
        original_max_position_embeddings: usize,
    },
    /// YaRN (arXiv 2309.00071): a ramp between kept and divided frequencies.
    Yarn {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Multiplies cosines and sines.
        attention_factor: f64,
        /// Rotations over the trained length above which a frequency is kept.
        beta_fast: f64,
        /// Rotations over the trained length below which a frequency is divided.
        beta_slow: f64,
        /// Trained length.
        original_max_position_embeddings: usize,
        /// Whether the ends of the ramp are rounded outwards to whole frequencies.
        truncate: bool,
    },
    /// LongRoPE (arXiv 2402.13753): one divisor per frequency, two sets of them.
    LongRope {
        /// Divisors for sequences up to the trained length, `[rotary_dim / 2]`.
        short_factor: Vec<f32>,
        /// Divisors for all positions of longer sequences, `[rotary_dim / 2]`.
        long_factor: Vec<f32>,
        /// Trained length in tokens.
        original_max_position_embeddings: usize,
        /// Multiplies cosines and sines, with either set.
        attention_factor: f64,
    },
}

impl RopeKind {
    /// Its `rope_type`.
    pub fn name(&self) -> &'static str {
        match self {
            RopeKind::Default => "default",
            RopeKind::Linear { .. } => "linear",
            RopeKind::Dynamic { .. } => "dynamic",
            RopeKind::Llama3 { .. } => "llama3",
            RopeKind::Yarn { .. } => "yarn",
            RopeKind::LongRope { .. } => "longrope",
        }
    }
}

/// The rotary frequencies for sequences of a given length.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeFrequencies {
    /// Radians per position, `[rotary_dim / 2]`.
    pub inv_freq: Vec<f32>,
    /// Multiplies cosines and sines, and so attention logits by its square.
    pub attention_scaling: f32,
}

impl RopeConfig {
    /// The frequencies HuggingFace uses in a forward pass whose last position is `total_len - 1`.
    pub fn inv_freq(&self, total_len: usize) -> RopeFrequencies {
        let plain = |attention: f64, inv_freq| RopeFrequencies {
            inv_freq,
            attention_scaling: attention as f32,
        };
        let base = self.theta as f32;
        match &self.kind {
            RopeKind::Default => plain(1.0, self.wavelengths(base).map(|w| 1.0 / w).collect()),
            RopeKind::Linear { factor } => {
                plain(1.0, self.wavelengths(base).map(|w| 1.0 / w / *factor as f32).collect())
            }
            RopeKind::Dynamic { factor, max_position_embeddings } => {
                let base = self.dynamic_base(*factor, *max_position_embeddings, total_len);
                plain(1.0, self.wavelengths(base).map(|w| 1.0 / w).collect())
            }
            RopeKind::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            } => {
                let blend = Llama3Blend {
                    factor: *factor as f32,
                    low: *low_freq_factor,
                    high: *high_freq_factor,
                    original: *original_max_position_embeddings as f64,
                };
                plain(1.0, self.wavelengths(base).map(|w| blend.apply(1.0 / w)).collect())
            }
            RopeKind::Yarn {
                factor,
                attention_factor,
                beta_fast,
                beta_slow,
                original_max_position_embeddings,
                truncate,
            } => {
                let original = *original_max_position_embeddings as f64;
                let (low, high) = self.yarn_range(*beta_fast, *beta_slow, original, *truncate);
                let divided =
                    |i: usize| ((i as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
                let inv_freq = self.wavelengths(base).enumerate().map(|(i, w)| {
                    let kept = 1.0 - divided(i);
                    1.0 / (*factor as f32 * w) * (1.0 - kept) + 1.0 / w * kept
                });
                plain(*attention_factor, inv_freq.collect())
            }
            RopeKind::LongRope {
                short_factor,
                long_factor,
                original_max_position_embeddings,
                attention_factor,
            } => {
                let factors = if total_len > *original_max_position_embeddings {
                    long_factor
                } else {
                    short_factor
                };
                let inv_freq =
                    self.wavelengths(base).zip(factors).map(|(w, factor)| 1.0 / (factor * w));
                plain(*attention_factor, inv_freq.collect())
            }
        }
    }

    /// A number that identifies the frequencies for a length: lengths with equal numbers have equal
    /// frequencies. When the regime of a sequence changes, its cached keys are stale.
    pub fn regime(&self, total_len: usize) -> u64 {
        match &self.kind {
            RopeKind::Default
            | RopeKind::Linear { .. }
            | RopeKind::Llama3 { .. }
            | RopeKind::Yarn { .. } => 0,
            RopeKind::Dynamic { max_position_embeddings, .. } => {
                total_len.max(*max_position_embeddings) as u64
            }
            RopeKind::LongRope { original_max_position_embeddings, .. } => {
                u64::from(total_len > *original_max_position_embeddings)
            }
        }
    }

    /// `base^(2i/d)` for `i` in `0..d/2`: positions per radian.
    fn wavelengths(&self, base: f32) -> impl Iterator<Item = f32> {
        let dim = self.rotary_dim;
        (0..dim / 2).map(move |i| power(base, (2 * i) as f32 / dim as f32))
    }

    /// The base of NTK-aware scaling at a length: unchanged up to the trained length.
    fn dynamic_base(&self, factor: f64, trained: usize, total_len: usize) -> f32 {
        if total_len <= trained {
            return self.theta as f32;
        }
        let growth = factor as f32 * total_len as f32 / trained as f32 - (factor - 1.0) as f32;
        let dim = self.rotary_dim as f64;
        self.theta as f32 * power(growth, (dim / (dim - 2.0)) as f32)
    }

    /// The frequency indices between which YaRN's ramp runs: those at which a component makes
    /// `beta_fast` and `beta_slow` rotations over the trained length.
    fn yarn_range(
        &self,
        beta_fast: f64,
        beta_slow: f64,
        original: f64,
        truncate: bool,
    ) -> (f64, f64) {
        let dim = self.rotary_dim as f64;
        let index = |rotations: f64| {
            dim * (original / (rotations * 2.0 * PI)).ln() / (2.0 * self.theta.ln())
        };
        let (mut low, mut high) = (index(beta_fast), index(beta_slow));
        if truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        // As in HuggingFace, the limit is d - 1, not the last index of the d/2 frequencies.
        (low, high) = (low.max(0.0), high.min(dim - 1.0));
        // An empty ramp becomes a step, which avoids a division by zero.
        if low == high { (low, high + 0.001) } else { (low, high) }
    }
}

impl RopeFrequencies {
    /// Cosines and sines of `positions`, each `[positions, rotary_dim / 2]` row-major, multiplied
    /// by the attention scaling.
    pub fn cos_sin(&self, positions: impl IntoIterator<Item = usize>) -> (Vec<f32>, Vec<f32>) {
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        for position in positions {
            for &frequency in &self.inv_freq {
                let angle = f64::from(position as f32 * frequency);
                cos.push(angle.cos() as f32 * self.attention_scaling);
                sin.push(angle.sin() as f32 * self.attention_scaling);
            }
        }
        (cos, sin)
    }
}

/// YaRN's factor on cosines and sines if the config has none: `0.1 ln(factor) + 1`, or the ratio of
/// two such terms if both `mscale` and `mscale_all_dim` are given and not zero.
pub(crate) fn yarn_attention_factor(
    factor: f64,
    mscale: Option<f64>,
    mscale_all_dim: Option<f64>,
) -> f64 {
    let term = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
    match (mscale, mscale_all_dim) {
        (Some(above), Some(below)) if above != 0.0 && below != 0.0 => term(above) / term(below),
        _ => term(1.0),
    }
}

/// LongRoPE's factor on cosines and sines if the config has none:
/// `sqrt(1 + ln(factor) / ln(original))`.
pub(crate) fn longrope_attention_factor(factor: f64, original: usize) -> f64 {
    if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / (original as f64).ln()).sqrt() }
}

/// Llama 3.1's scaling of one frequency.
struct Llama3Blend {
    factor: f32,
    low: f64,
    high: f64,
    original: f64,
}

impl Llama3Blend {
    fn apply(&self, frequency: f32) -> f32 {
        let wavelength = (2.0 * PI) as f32 / frequency;
        if wavelength < (self.original / self.high) as f32 {
            frequency
        } else if wavelength > (self.original / self.low) as f32 {
            frequency / self.factor
        } else {
            let kept = (self.original as f32 / wavelength - self.low as f32)
                / (self.high - self.low) as f32;
            (1.0 - kept) * frequency / self.factor + kept * frequency
        }
    }
}

/// `base^exponent`, rounded once.
fn power(base: f32, exponent: f32) -> f32 {
    f64::from(base).powf(f64::from(exponent)) as f32
}
