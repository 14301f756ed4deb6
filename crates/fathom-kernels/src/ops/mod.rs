//! Operations on rows of activations: norms, rotary embedding, activations, and what probes use.

pub(crate) mod activation;
pub(crate) mod norm;
pub(crate) mod rope;
pub(crate) mod rows;
