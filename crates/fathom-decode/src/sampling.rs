//! Sampling of tokens from logits, and exact speculative sampling.

mod block_verification;
mod distribution;
mod history;
mod logprobs;
mod params;
mod processing;
mod rng;
mod sampler;

pub use block_verification::{BlockDraft, BlockJudge, BlockVerification};
pub use distribution::Distribution;
pub use history::History;
pub use logprobs::TokenLogprobs;
pub use params::SamplingParams;
pub use rng::{Purpose, RequestRng, philox4x32};
pub use sampler::{GreedyJudge, LogitsJudge, Sampler};
