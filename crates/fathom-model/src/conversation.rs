//! Conversations of prompt and trace files: the messages and the further variables of the chat
//! template.

use std::ops::Deref;

use serde_json::{Map, Value};

use crate::jsonl::Record;
use crate::message::{Content, Message};
use crate::{Error, Remark, Result};

/// Template variables that neither a line nor `--template-kwargs` can set.
const RESERVED: [&str; 3] = ["messages", "add_generation_prompt", "continue_final_message"];

/// Messages, with the template variables of their line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Conversation {
    /// The turns.
    pub messages: Vec<Message>,
    /// `tools`, `documents` and the entries of `chat_template_kwargs`, by variable name.
    pub variables: Map<String, Value>,
}

impl Deref for Conversation {
    type Target = [Message];

    fn deref(&self) -> &[Message] {
        &self.messages
    }
}

impl From<Vec<Message>> for Conversation {
    fn from(messages: Vec<Message>) -> Conversation {
        Conversation { messages, variables: Map::new() }
    }
}

impl Conversation {
    /// Adds a system message at the start unless the conversation has one.
    pub fn add_system(&mut self, text: &str) {
        if self.messages.first().is_none_or(|first| !matches!(&*first.role, "system" | "developer"))
        {
            self.messages.insert(0, Message::new("system", text));
        }
    }

    /// Splits off a final assistant turn: the conversation before it, and the turn if there is one.
    pub fn split_answer(mut self) -> (Conversation, Option<Message>) {
        let answer = self.messages.pop_if(|last| last.role == "assistant");
        (self, answer)
    }

    /// The JSON fields of a line that is read back as this conversation.
    pub fn to_fields(&self) -> Vec<(&'static str, Value)> {
        let mut kwargs = self.variables.clone();
        let mut fields = vec![("messages", self.messages.iter().map(Message::to_json).collect())];
        for name in ["tools", "documents"] {
            fields.extend(kwargs.shift_remove(name).map(|value| (name, value)));
        }
        if !kwargs.is_empty() {
            fields.push(("chat_template_kwargs", Value::Object(kwargs)));
        }
        fields
    }

    /// Reads `messages` of a line with `tools`, `documents` and `chat_template_kwargs`; `None` if
    /// it has no `messages`.
    pub(crate) fn read(record: &Record) -> Result<Option<Conversation>> {
        let messages: Option<Vec<Message>> =
            record.get("messages", "a list of objects with the strings `role` and `content`")?;
        match messages {
            None => Ok(None),
            Some(messages) if messages.is_empty() => Err(record.error("`messages` is empty")),
            Some(messages) => Ok(Some(Conversation { messages, variables: variables(record)? })),
        }
    }

    /// Whether it is a single user message that consists of a text only, without variables.
    pub(crate) fn is_plain(&self) -> bool {
        match &self.messages[..] {
            [Message { role, content: Content::Text(_), fields }] => {
                role == "user" && fields.is_empty() && self.variables.is_empty()
            }
            _ => false,
        }
    }
}

/// The template variables of a line. An empty `tools` or `documents` list counts as absent.
pub(crate) fn variables(record: &Record) -> Result<Map<String, Value>> {
    let mut variables = Map::new();
    for name in ["tools", "documents"] {
        let list: Option<Vec<Value>> = record.get(name, "a list")?;
        let list = list.filter(|list| !list.is_empty());
        variables.extend(list.map(|list| (name.to_owned(), Value::Array(list))));
    }
    let kwargs: Option<Map<String, Value>> = record.get("chat_template_kwargs", "an object")?;
    for (name, value) in kwargs.unwrap_or_default() {
        check_variable(&name)
            .map_err(|problem| record.error(format!("`chat_template_kwargs.{name}` {problem}")))?;
        variables.insert(name, value);
    }
    Ok(variables)
}

/// Rejects the names of [`RESERVED`] template variables.
fn check_variable(name: &str) -> Result<(), &'static str> {
    match RESERVED.contains(&name) {
        true => Err("cannot be set: Fathom determines it"),
        false => Ok(()),
    }
}

/// Parses the value of `--template-kwargs`: a JSON object of variables for the chat template.
///
/// # Errors
/// The text is not a JSON object, or it sets a variable that Fathom determines itself.
pub fn parse_template_kwargs(text: &str) -> Result<Map<String, Value>> {
    let expected = r#"expected a JSON object such as {"enable_thinking": false}"#;
    let kwargs = match serde_json::from_str(text) {
        Ok(Value::Object(kwargs)) => kwargs,
        Ok(_) => return Err(Error::Request(format!("is not a JSON object, {expected}"))),
        Err(error) => {
            return Err(Error::Request(format!("is not valid JSON ({error}), {expected}")));
        }
    };
    for name in kwargs.keys() {
        check_variable(name).map_err(|problem| Error::Request(format!("`{name}` {problem}")))?;
    }
    Ok(kwargs)
}

/// The remark that the last assistant turn of a prompt was left out.
pub(crate) fn answer_left_out(record: &Record, field: &str) -> Remark {
    let text = format!(
        "`{field}` ends with an answer of the assistant, which is left out: a new one is generated \
         in its place"
    );
    Remark::line("answer-left-out", record.path(), record.line(), text)
}
