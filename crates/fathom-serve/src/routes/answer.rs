//! One chat answer while it is written: its text, its calls of tools, its end.

use super::envelope;
use crate::generation::Piece;
use crate::request_id;
use crate::tools::{Call, Found, ToolParser, ToolUse, parse_constrained};
use crate::types::chat::{FunctionCall, ToolCall};

/// An answer in progress.
pub struct Answer {
    source: Source,
    /// Number of calls so far.
    calls: usize,
    /// Whether its first chunk was sent.
    pub has_begun: bool,
    /// Tokens of text that may become a call.
    pub held: Piece,
}

/// Where calls come from.
enum Source {
    /// There are none.
    None,
    /// The model's own format, among text.
    Free(ToolParser),
    /// The whole text is calls, or the arguments of the named function.
    Whole { text: String, named: Option<String> },
}

impl Answer {
    /// An answer without text.
    pub fn new(tool_use: Option<&ToolUse>) -> Answer {
        let source = match tool_use {
            None => Source::None,
            Some(ToolUse::Free(format)) => Source::Free(ToolParser::new(*format)),
            Some(ToolUse::Named(name)) => {
                Source::Whole { text: String::new(), named: Some(name.clone()) }
            }
            Some(ToolUse::Listed) => Source::Whole { text: String::new(), named: None },
        };
        Answer { source, calls: 0, has_begun: false, held: Piece::default() }
    }

    /// Adds new text. After the `last`, nothing is held back: what is no whole call is text.
    pub fn push(&mut self, new: &str, last: bool) -> Found {
        let found = match &mut self.source {
            Source::None => Found { content: new.to_owned(), calls: Vec::new() },
            Source::Free(parser) => {
                let mut found = parser.push(new);
                if last {
                    let rest = parser.finish();
                    found.content += &rest.content;
                    found.calls.extend(rest.calls);
                }
                found
            }
            Source::Whole { text, named } => {
                *text += new;
                match last {
                    false => Found::default(),
                    true => match parse_constrained(text, named.as_deref()) {
                        Some(calls) => Found { content: String::new(), calls },
                        None => Found { content: std::mem::take(text), calls: Vec::new() },
                    },
                }
            }
        };
        self.calls += found.calls.len();
        found
    }

    /// Calls as clients get them; in a stream with their numbers.
    pub fn numbered(&self, calls: Vec<Call>, streamed: bool) -> Vec<ToolCall> {
        let first = self.calls - calls.len();
        let call = |(number, Call { name, arguments })| ToolCall {
            index: streamed.then_some(number),
            id: format!("call_{}", request_id::new()),
            r#type: "function",
            function: FunctionCall { name, arguments },
        };
        (first..).zip(calls).map(call).collect()
    }

    /// Why the answer ended. `None` if it has not.
    pub fn finish_reason(&self, piece: &Piece) -> Option<&'static str> {
        match (envelope::finish_reason(piece.finish?), self.calls) {
            ("stop", 1..) => Some("tool_calls"),
            (reason, _) => Some(reason),
        }
    }
}
