//! Operations on rows of activations: norms, rotary embedding, activations, what probes need.

pub(crate) mod activation;
pub(crate) mod norm;
pub(crate) mod rope;
pub(crate) mod rows;
