//! Sampling of tokens from logits, and exact speculative sampling.

mod distribution;
mod history;
mod logprobs;
mod params;
mod processing;
mod rng;
mod sampler;

pub use distribution::Distribution;
pub use history::History;
pub use logprobs::TokenLogprobs;
pub use params::SamplingParams;
pub use rng::{Purpose, RequestRng, philox4x32};
pub use sampler::{GreedyJudge, LogitsJudge, Sampler};
