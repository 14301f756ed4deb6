//! A checkpoint and its forward pass, with sites to look into it.

mod capture;
mod config;
mod error;
mod forward;
mod model;
mod probe;
mod rope;
mod sequence;
mod site;
mod synthetic;
mod taps;
mod weights;

pub use capture::{CaptureRequest, capture};
pub use config::{Architecture, ModelConfig};
pub use error::{Error, Result};
pub use forward::{LogitRows, Logits, PREFILL_CHUNK, Step};
pub use model::Model;
pub use probe::{Access, At, Probe};
pub use rope::{RopeConfig, RopeFrequencies, RopeKind};
pub use sequence::{Sequence, SequenceOptions};
pub use site::{Layout, Site};
pub use synthetic::{SyntheticShape, write_synthetic};
pub use weights::{Checkpoint, TensorView};
