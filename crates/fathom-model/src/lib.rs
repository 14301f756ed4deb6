//! A checkpoint and its forward pass, with sites to look into it.

mod config;
mod error;
mod probe;
mod rope;
mod site;
mod weights;

pub use config::{Architecture, ModelConfig};
pub use error::{Error, Result};
pub use probe::{Access, At, Probe};
pub use rope::{RopeConfig, RopeFrequencies, RopeKind};
pub use site::Site;
pub use weights::{Checkpoint, TensorView};
