//! Calls of tools: which ones a request allows, and finding them in the text.

mod format;
mod parser;
mod schema;

pub use format::ToolFormat;
pub use parser::{CLOSE, Call, Found, OPEN, ToolParser};
pub use schema::{arguments, calls, one_call, parse_constrained};

use serde_json::Value;

/// A function that the model may call.
#[derive(Clone, Debug)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// The JSON schema of its arguments.
    pub parameters: Value,
    /// Whether the arguments follow the schema even if the model decides whether to call.
    pub strict: bool,
}

/// How the calls of a text are found.
#[derive(Clone, Debug)]
pub enum ToolUse {
    /// The model decides whether to call, and writes calls in its own format.
    Free(ToolFormat),
    /// The text is constrained to the arguments of this function.
    Named(String),
    /// The text is constrained to a list of calls.
    Listed,
}
