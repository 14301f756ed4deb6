//! A checkpoint and its forward pass, with sites to look into it.

mod error;
mod probe;
mod site;

pub use error::{Error, Result};
pub use probe::{Access, At, Probe};
pub use site::Site;
