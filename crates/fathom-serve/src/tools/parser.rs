//! Finds calls of tools in a text while it is generated.

use serde_json::{Map, Value};

use super::format::ToolFormat;

/// A call of a tool.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// The function's name.
    pub name: String,
    /// Its arguments as JSON text.
    pub arguments: String,
}

/// What new text turned out to be.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Found {
    /// Text for the reader.
    pub content: String,
    /// Calls.
    pub calls: Vec<Call>,
}

/// Separates the calls in a text from the rest. Text that only looks like a call is returned as
/// text: nothing is lost.
#[derive(Debug)]
pub struct ToolParser {
    format: ToolFormat,
    /// Text that may belong to a call.
    held: String,
    /// Whether all text was white space so far.
    at_start: bool,
}

/// Begins a call in Hermes' format.
pub const OPEN: &str = "<tool_call>";
/// Ends a call in Hermes' format.
pub const CLOSE: &str = "</tool_call>";
const MISTRAL: &str = "[TOOL_CALLS]";
const PYTHON_TAG: &str = "<|python_tag|>";

impl ToolParser {
    /// A parser of one text.
    pub fn new(format: ToolFormat) -> ToolParser {
        ToolParser { format, held: String::new(), at_start: true }
    }

    /// Adds new text.
    pub fn push(&mut self, text: &str) -> Found {
        self.held += text;
        match self.format {
            ToolFormat::Hermes => self.between_tags(),
            ToolFormat::Mistral => self.before(MISTRAL),
            ToolFormat::Llama => self.unless_json(),
        }
    }

    /// Ends the text.
    pub fn finish(&mut self) -> Found {
        let held = std::mem::take(&mut self.held);
        let calls = match self.format {
            // A call without its closing tag is complete if its JSON is.
            ToolFormat::Hermes => held
                .trim_start()
                .strip_prefix(OPEN)
                .and_then(|text| Some(vec![call(&serde_json::from_str(text.trim()).ok()?)?])),
            ToolFormat::Mistral => held.trim_start().strip_prefix(MISTRAL).and_then(mistral_calls),
            ToolFormat::Llama => llama_calls(&held),
        };
        match calls {
            Some(calls) => Found { content: String::new(), calls },
            None => Found { content: held, calls: Vec::new() },
        }
    }

    fn between_tags(&mut self) -> Found {
        let mut found = Found::default();
        loop {
            let Some(open) = self.held.find(OPEN) else {
                let end = self.held.len() - partial_suffix(&self.held, OPEN);
                found.content.extend(self.held.drain(..end));
                break;
            };
            let after = open + OPEN.len();
            let Some(length) = self.held[after..].find(CLOSE) else {
                found.content.extend(self.held.drain(..open));
                break;
            };
            let inner = &self.held[after..after + length];
            let end = after + length + CLOSE.len();
            match serde_json::from_str(inner.trim()).ok().as_ref().and_then(call) {
                Some(call) => {
                    found.content.extend(self.held.drain(..open));
                    self.held.drain(..end - open);
                    found.calls.push(call);
                }
                None => found.content.extend(self.held.drain(..end)),
            }
        }
        self.without_blank_lines(&mut found);
        found
    }

    /// Drops the white space that separates calls from text and from each other.
    fn without_blank_lines(&mut self, found: &mut Found) {
        if !found.calls.is_empty() {
            found.content.truncate(found.content.trim_end().len());
            self.at_start = true;
        }
        if self.at_start && found.content.trim().is_empty() {
            found.content.clear();
        }
        self.at_start &= found.content.is_empty();
    }

    /// Everything from `marker` on is held until the end.
    fn before(&mut self, marker: &str) -> Found {
        let partial = self.held.len() - partial_suffix(&self.held, marker);
        let end = self.held.find(marker).unwrap_or(partial);
        Found { content: self.held.drain(..end).collect(), calls: Vec::new() }
    }

    /// A text that begins like JSON is held until the end.
    fn unless_json(&mut self) -> Found {
        let text = self.held.trim_start();
        let may_be_call = self.at_start
            && (text.is_empty()
                || text.starts_with('{')
                || text.starts_with(PYTHON_TAG)
                || PYTHON_TAG.starts_with(text));
        if may_be_call {
            return Found::default();
        }
        self.at_start = false;
        Found { content: std::mem::take(&mut self.held), calls: Vec::new() }
    }
}

/// Length of the longest end of `text` with which `marker` begins.
fn partial_suffix(text: &str, marker: &str) -> usize {
    let most = marker.len().min(text.len());
    (1..=most).rev().find(|&length| text.ends_with(&marker[..length])).unwrap_or(0)
}

/// The call in an object with `name` and `arguments`, which Llama calls `parameters`.
pub fn call(value: &Value) -> Option<Call> {
    let name = value.get("name")?.as_str()?.to_owned();
    let arguments = value.get("arguments").or_else(|| value.get("parameters"));
    let arguments = match arguments {
        None => Value::Object(Map::new()).to_string(),
        // Some models write the arguments as text that is JSON.
        Some(Value::String(text)) => {
            serde_json::from_str::<Map<String, Value>>(text).ok()?;
            text.clone()
        }
        Some(object @ Value::Object(_)) => object.to_string(),
        Some(_) => return None,
    };
    Some(Call { name, arguments })
}

/// A list of calls, or since 2025 `NAME[ARGS]{…}`.
fn mistral_calls(text: &str) -> Option<Vec<Call>> {
    if let Ok(list) = serde_json::from_str::<Vec<Value>>(text.trim()) {
        return list.iter().map(call).collect();
    }
    let one = |text: &str| {
        let (name, arguments) = text.split_once("[ARGS]")?;
        let arguments: Map<String, Value> = serde_json::from_str(arguments.trim()).ok()?;
        let arguments = Value::Object(arguments).to_string();
        Some(Call { name: name.trim().to_owned(), arguments })
    };
    text.split(MISTRAL).map(one).collect()
}

/// One object, or several separated by semicolons.
fn llama_calls(text: &str) -> Option<Vec<Call>> {
    let text = text.trim().strip_prefix(PYTHON_TAG).unwrap_or(text.trim());
    if !text.starts_with('{') {
        return None;
    }
    let mut calls = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
        calls.push(call(&values.next()?.ok()?)?);
        rest = rest[values.byte_offset()..].trim_start().trim_start_matches(';').trim_start();
    }
    Some(calls)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is found in a text that arrives in pieces of `size` characters.
    fn parse(format: ToolFormat, text: &str, size: usize) -> Found {
        let mut parser = ToolParser::new(format);
        let mut found = Found::default();
        let characters: Vec<char> = text.chars().collect();
        for piece in characters.chunks(size) {
            let new = parser.push(&piece.iter().collect::<String>());
            found.content += &new.content;
            found.calls.extend(new.calls);
        }
        let new = parser.finish();
        found.content += &new.content;
        found.calls.extend(new.calls);
        found
    }

    fn call(name: &str, arguments: &str) -> Call {
        Call { name: name.to_owned(), arguments: arguments.to_owned() }
    }

    #[test]
    fn calls_are_found_however_the_text_arrives() {
        let (f, g) = (call("f", r#"{"x":1}"#), call("g", "{}"));
        for (format, text, content, calls) in [
            (
                ToolFormat::Hermes,
                "Let me see.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": 1}}\n\
                 </tool_call>\n<tool_call>{\"name\": \"g\", \"arguments\": {}}</tool_call>",
                "Let me see.",
                vec![f.clone(), g.clone()],
            ),
            (ToolFormat::Hermes, "<tool_call>{\"name\": \"g\"}", "", vec![g.clone()]),
            (
                ToolFormat::Mistral,
                "[TOOL_CALLS][{\"name\": \"f\", \"arguments\": {\"x\": 1}}, {\"name\": \"g\"}]",
                "",
                vec![f.clone(), g.clone()],
            ),
            (ToolFormat::Mistral, "Yes.[TOOL_CALLS]f[ARGS]{\"x\": 1}", "Yes.", vec![f.clone()]),
            (
                ToolFormat::Llama,
                "<|python_tag|>{\"name\": \"f\", \"parameters\": {\"x\": 1}}; {\"name\": \"g\"}",
                "",
                vec![f, g],
            ),
        ] {
            for size in [1, 2, 3, 7, 1000] {
                let found = parse(format, text, size);
                let wanted = (content, &calls);
                assert_eq!((found.content.trim(), &found.calls), wanted, "{text} by {size}");
            }
        }
    }

    #[test]
    fn text_that_is_no_call_stays_text() {
        for (format, text) in [
            (ToolFormat::Hermes, "a <b> c <tool_cal"),
            (ToolFormat::Hermes, "x <tool_call>not json</tool_call> y"),
            (ToolFormat::Hermes, "<tool_call>{\"name\": 3}</tool_call>"),
            (ToolFormat::Hermes, "<tool_call>{\"name\": \"f\", \"argum"),
            (ToolFormat::Mistral, "see [TOOL_CAL and [TOOL_CALLS] none"),
            (ToolFormat::Llama, "{\"answer\": 42}"),
            (ToolFormat::Llama, "plain {\"name\": \"f\"}"),
            (ToolFormat::Llama, "<|python"),
            (ToolFormat::Llama, "{{{"),
        ] {
            for size in [1, 3, 1000] {
                let found = parse(format, text, size);
                assert_eq!((found.content.as_str(), found.calls.len()), (text, 0), "by {size}");
            }
        }
    }
}
