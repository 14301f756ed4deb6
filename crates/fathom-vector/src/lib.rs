#![doc = include_str!("../README.md")]

mod change;
mod dot;
mod finite;
mod isa;
mod low_rank;
mod massive;

pub use change::change_values;
pub use dot::{dot, norm, squared_norm};
pub use finite::first_non_finite;
pub use low_rank::{LowRank, add_low_rank};
pub use massive::massive;

use fathom_backend::DType;
use half::{bf16, f16};

/// Decodes one stored element.
fn element(bytes: &[u8], dtype: DType) -> f32 {
    match dtype {
        DType::Bf16 => bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
        DType::F16 => f16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
        DType::F32 => f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
    }
}
