//! The responses. Their fields are OpenAI's, and Fathom's own below `fathom`.

pub mod chat;
pub mod completion;
pub mod info;
pub mod logprobs;
pub mod usage;
