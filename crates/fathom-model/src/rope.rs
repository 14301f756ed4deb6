//! Rotary position embedding: the frequencies of every rope type HuggingFace knows.
//!
//! Su et al., "RoFormer" (arXiv 2104.09864): component pair `i` of a query or key at position `t` is
//! turned by the angle `t · inv_freq[i]`. The rope types differ only in `inv_freq` and in a factor on
//! the cosines and sines. Pairs are `(i, i + rotary_dim/2)`, HuggingFace's "rotate half" layout.

/// How a checkpoint encodes positions.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Base of the geometric series of wavelengths (`rope_theta`), above 1.
    pub theta: f64,
    /// How many leading components of a head rotate; even, at most `head_dim`. The rest pass unchanged.
    pub rotary_dim: usize,
    /// The rope type with its parameters.
    pub kind: RopeKind,
}

/// The rope types, with their parameters resolved (no field is optional any more).
#[derive(Clone, Debug, PartialEq)]
pub enum RopeKind {
    /// `theta^(-2i/d)`.
    Default,
    /// Position interpolation: every frequency divided by `factor`.
    Linear {
        /// How much further positions reach.
        factor: f64,
    },
    /// NTK-aware scaling: beyond the trained length the base grows with the sequence.
    Dynamic {
        /// Strength of the growth.
        factor: f64,
        /// Trained length; nothing changes up to it.
        max_position_embeddings: usize,
    },
    /// Llama 3.1: long wavelengths divided by `factor`, short ones kept, those between blended.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Trained length.
        original_max_position_embeddings: usize,
    },
    /// YaRN (Peng et al., arXiv 2309.00071): a ramp between kept and divided frequencies.
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
    /// LongRoPE (Ding et al., arXiv 2402.13753): one divisor per frequency, two sets of them.
    LongRope {
        /// Divisors up to the trained length; `rotary_dim / 2` of them.
        short_factor: Vec<f32>,
        /// Divisors beyond it, for every position of the sequence; `rotary_dim / 2` of them.
        long_factor: Vec<f32>,
        /// Trained length.
        original_max_position_embeddings: usize,
        /// Multiplies cosines and sines, with either set.
        attention_factor: f64,
    },
}

/// The frequencies in force for a sequence of some length.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeFrequencies {
    /// Radians per position, `rotary_dim / 2` of them.
    pub inv_freq: Vec<f32>,
    /// Multiplies cosines and sines (so attention logits by its square).
    pub attention_scaling: f32,
}

impl RopeConfig {
    /// The frequencies HuggingFace uses in a forward pass whose last position is `total_len - 1`.
    pub fn inv_freq(&self, _total_len: usize) -> RopeFrequencies {
        todo!()
    }

    /// Two lengths of equal regime have the same frequencies. When the regime of a sequence changes,
    /// the keys it has cached are stale.
    pub fn regime(&self, _total_len: usize) -> u64 {
        todo!()
    }
}

impl RopeFrequencies {
    /// Cosines and sines of `positions`, each `[positions, rotary_dim / 2]` row-major, attention
    /// scaling multiplied in.
    pub fn cos_sin(&self, _positions: std::ops::Range<usize>) -> (Vec<f32>, Vec<f32>) {
        todo!()
    }
}
