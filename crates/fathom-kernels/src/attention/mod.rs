//! Causal attention over paged KV caches, and its column sums.

mod attend;
mod column_sums;
mod hidden;
mod kv;
mod pass;
mod queries;
mod second_pass;
mod softmax;
mod state;
mod values;
mod weights;

pub(crate) use attend::attend;
pub use column_sums::ColumnSums;
pub(crate) use kv::BLOCK;
pub use kv::Kv;
pub use pass::Pass;
pub(crate) use pass::append;
pub(crate) use second_pass::add_column_sums;
pub(crate) use weights::weights;
