#![doc = include_str!("../README.md")]

pub mod limits;
mod machine;
mod overhead;
mod speed;
pub mod workload;

pub use machine::{Cache, Machine};
pub use overhead::{Overhead, overhead};
pub use speed::{DecodeSpeed, decode_speed, prefill_flops, synthetic_ids};

/// The median; of an even number of values the upper of the two middle ones. NaN if there are none.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
