//! Checks that every field of a conversation reaches the prompt.
//!
//! A chat template silently ignores fields it does not use. Here such a field causes an error or a
//! remark that names it.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::chat_template::ChatTemplate;
use crate::conversation::Conversation;
use crate::message::{Content, Message, REASONING};
use crate::sanitize::sanitize;
use crate::{Error, Remark, Result};

/// Fields that carry content. It is an error if a message has one that the template does not
/// mention.
const CONTENT_FIELDS: [&str; 6] =
    ["reasoning_content", "reasoning", "thinking", "tool_calls", "function_call", "name"];

/// Fields that only identify a message. A template may ignore them without a remark.
const ID_FIELDS: [&str; 3] = ["id", "index", "tool_call_id"];

/// Renders messages with the template's variables.
pub(crate) type Render<'a> = dyn Fn(&[Message], &Map<String, Value>) -> Result<String> + 'a;

/// Renders a conversation after checking that the template uses its fields and variables.
///
/// A field that has no effect on the rendered text gets a remark.
///
/// # Errors
/// The template fails, or it does not mention a variable or a field of [`CONTENT_FIELDS`].
pub(crate) fn render_checked(
    template: &ChatTemplate,
    conversation: &Conversation,
    render: &Render,
) -> Result<(String, Vec<Remark>)> {
    let Conversation { messages, variables } = conversation;
    for name in variables.keys() {
        if !template.mentions(name) {
            let field = match name.as_str() {
                "tools" | "documents" => name.clone(),
                other => format!("chat_template_kwargs.{other}"),
            };
            return Err(no_use(template, &sanitize(&field)));
        }
    }
    let messages = adapt_contents(template, messages, render)?;
    let text = render(&messages, variables)?;
    let mut remarks = Vec::new();
    for name in field_names(&messages) {
        let place = messages.iter().position(|message| has_content(message, name)).unwrap_or(0);
        let field = format!("messages[{place}].{}", sanitize(name));
        if !mentions(template, name) && CONTENT_FIELDS.contains(&name) {
            return Err(no_use(template, &field));
        }
        let without = messages.iter().cloned().map(|mut message| {
            message.fields.shift_remove(name);
            message
        });
        if is_same(&text, render(&without.collect::<Vec<_>>(), variables)) {
            remarks.push(no_effect(&field));
        }
    }
    for name in ["tools", "documents"].into_iter().filter(|name| variables.contains_key(*name)) {
        let mut without = variables.clone();
        without.shift_remove(name);
        if is_same(&text, render(&messages, &without)) {
            remarks.push(no_effect(name));
        }
    }
    Ok((text, remarks))
}

/// Whether a template mentions a field of a message; for reasoning, under any of its names.
fn mentions(template: &ChatTemplate, field: &str) -> bool {
    match REASONING.contains(&field) {
        true => REASONING.iter().any(|name| template.mentions(name)),
        false => template.mentions(field),
    }
}

/// Whether rendering `without` some input returned the same text. If it failed, the template needs
/// that input.
fn is_same(text: &str, without: Result<String>) -> bool {
    without.is_ok_and(|without| without == text)
}

fn no_use(template: &ChatTemplate, field: &str) -> Error {
    Error::Request(format!(
        "`{field}` cannot reach the prompt: the chat template has no use for it ({})",
        template.path().display()
    ))
}

fn no_effect(field: &str) -> Remark {
    let text = format!("`{field}` has no effect: the chat template leaves it out of the prompt");
    Remark::input("field-without-effect", text)
}

/// The names of all non-empty fields other than `role`, `content` and [`ID_FIELDS`].
fn field_names(messages: &[Message]) -> BTreeSet<&str> {
    let names = messages.iter().flat_map(|message| {
        message.fields.keys().map(String::as_str).filter(|name| has_content(message, name))
    });
    names.filter(|name| !ID_FIELDS.contains(name)).collect()
}

/// Whether a message has a field that is neither null nor empty.
fn has_content(message: &Message, name: &str) -> bool {
    match message.fields.get(name) {
        None | Some(Value::Null) => false,
        Some(Value::String(text)) => !text.is_empty(),
        Some(Value::Array(items)) => !items.is_empty(),
        Some(Value::Object(fields)) => !fields.is_empty(),
        Some(Value::Bool(_) | Value::Number(_)) => true,
    }
}

/// Converts contents given as a list of parts to what the template supports. They stay lists if the
/// template iterates over parts; otherwise a single part becomes a string.
///
/// # Errors
/// The template does not iterate over parts, and a message has several.
fn adapt_contents(
    template: &ChatTemplate,
    messages: &[Message],
    render: &Render,
) -> Result<Vec<Message>> {
    let in_parts = |message: &Message| matches!(message.content, Content::Parts(_));
    if !messages.iter().any(in_parts) || supports_parts(render) {
        return Ok(messages.to_vec());
    }
    let adapt = |(place, message): (usize, &Message)| {
        let mut message = message.clone();
        if let Content::Parts(parts) = &mut message.content {
            let [text] = &mut parts[..] else {
                return Err(Error::Request(format!(
                    "`messages[{place}].content` has {} parts, but the chat template accepts only \
                     one text ({})",
                    parts.len(),
                    template.path().display()
                )));
            };
            message.content = Content::Text(std::mem::take(text));
        }
        Ok(message)
    };
    messages.iter().enumerate().map(adapt).collect()
}

/// Whether a template iterates over a list of content parts instead of printing the list.
fn supports_parts(render: &Render) -> bool {
    const WORD: &str = "fathom-part";
    let content = Content::Parts(vec![WORD.to_owned()]);
    let message = Message { content, ..Message::user("") };
    let printed = |text: &String| text.contains("'type'") || text.contains("\"type\"");
    render(&[message], &Map::new()).is_ok_and(|text| text.contains(WORD) && !printed(&text))
}
