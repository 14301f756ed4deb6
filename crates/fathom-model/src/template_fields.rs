//! What of a conversation reaches the prompt. A chat template takes what it asks for and says
//! nothing of the rest; here the rest is refused, or remarked on, by name.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::chat_template::ChatTemplate;
use crate::conversation::Conversation;
use crate::message::{Content, Message, REASONING};
use crate::sanitize::sanitize;
use crate::{Error, Remark, Result};

/// Fields of a message that are part of what was said: a template without a use for one is refused.
const SAID: [&str; 6] =
    ["reasoning_content", "reasoning", "thinking", "tool_calls", "function_call", "name"];

/// Fields of a message that only number it.
const NUMBERS: [&str; 3] = ["id", "index", "tool_call_id"];

/// Renders messages with the template's variables.
pub(crate) type Render<'a> = dyn Fn(&[Message], &Map<String, Value>) -> Result<String> + 'a;

/// Renders a conversation, every field of which the template has a use for.
///
/// # Errors
/// A template that fails; a field or a variable that it has no use for.
pub(crate) fn fit(
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
    let messages = fit_contents(template, messages, render)?;
    let text = render(&messages, variables)?;
    let mut remarks = Vec::new();
    for name in field_names(&messages) {
        let place = messages.iter().position(|message| says(message, name)).unwrap_or(0);
        let field = format!("messages[{place}].{}", sanitize(name));
        if !mentions(template, name) && SAID.contains(&name) {
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

/// Whether a template may look at a field of a message.
fn mentions(template: &ChatTemplate, field: &str) -> bool {
    match REASONING.contains(&field) {
        true => REASONING.iter().any(|name| template.mentions(name)),
        false => template.mentions(field),
    }
}

/// A rendering without something that fails shows that it was needed.
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

/// The names of further fields that say something, each once.
fn field_names(messages: &[Message]) -> BTreeSet<&str> {
    let names = messages.iter().flat_map(|message| {
        message.fields.keys().map(String::as_str).filter(|name| says(message, name))
    });
    names.filter(|name| !NUMBERS.contains(name)).collect()
}

/// Whether a message has more in a field than nothing.
fn says(message: &Message, name: &str) -> bool {
    match message.fields.get(name) {
        None | Some(Value::Null) => false,
        Some(Value::String(text)) => !text.is_empty(),
        Some(Value::Array(items)) => !items.is_empty(),
        Some(Value::Object(fields)) => !fields.is_empty(),
        Some(Value::Bool(_) | Value::Number(_)) => true,
    }
}

/// Contents in parts as the template can take them: as they are where it goes through lists, else
/// as a text where it is one part.
fn fit_contents(
    template: &ChatTemplate,
    messages: &[Message],
    render: &Render,
) -> Result<Vec<Message>> {
    let in_parts = |message: &Message| matches!(message.content, Content::Parts(_));
    if !messages.iter().any(in_parts) || takes_parts(render) {
        return Ok(messages.to_vec());
    }
    let fit = |(place, message): (usize, &Message)| {
        let mut message = message.clone();
        if let Content::Parts(parts) = &mut message.content {
            let [text] = &mut parts[..] else {
                return Err(Error::Request(format!(
                    "`messages[{place}].content` has {} parts, and the chat template takes one text only ({})",
                    parts.len(),
                    template.path().display()
                )));
            };
            message.content = Content::Text(std::mem::take(text));
        }
        Ok(message)
    };
    messages.iter().enumerate().map(fit).collect()
}

/// Whether a template goes through the parts of a content instead of printing the list.
fn takes_parts(render: &Render) -> bool {
    const WORD: &str = "fathom-part";
    let content = Content::Parts(vec![WORD.to_owned()]);
    let message = Message { content, ..Message::user("") };
    let printed = |text: &String| text.contains("'type'") || text.contains("\"type\"");
    render(&[message], &Map::new()).is_ok_and(|text| text.contains(WORD) && !printed(&text))
}
