//! The OpenAI-compatible HTTP server.

pub mod grammar;
