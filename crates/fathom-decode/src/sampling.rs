//! From a row of logits to a token, and the exact speculative acceptance test.

mod distribution;
mod params;
mod rng;
mod sampler;

pub use distribution::Distribution;
pub use params::SamplingParams;
pub use rng::{Purpose, RequestRng, philox4x32};
pub use sampler::{GreedyJudge, LogitsJudge, Sampler};
