//! The messages of a conversation.

use fathom_model::{Content, Message};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::fields::{Fields, wrong};
use crate::error::ApiError;

/// A message. Fields that the chat template knows are passed to it; others are refused.
#[derive(ToSchema)]
#[allow(dead_code, reason = "describes `messages` in /openapi.json")]
pub struct ChatMessage {
    /// `system`, `user`, `assistant`, `tool` or another role that the template knows.
    pub role: String,
    /// A text, or a list of parts of type `text`.
    pub content: Option<MessageContent>,
    /// The calls of an earlier answer.
    pub tool_calls: Option<Vec<serde_json::Map<String, Value>>>,
    /// The call that a message of role `tool` answers.
    pub tool_call_id: Option<String>,
    /// The name of the author.
    pub name: Option<String>,
}

/// The content of a message.
#[derive(ToSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "describes `messages` in /openapi.json")]
pub enum MessageContent {
    /// A text.
    Text(String),
    /// Parts.
    Parts(Vec<TextPart>),
}

/// A part of a message.
#[derive(ToSchema)]
#[allow(dead_code, reason = "describes `messages` in /openapi.json")]
pub struct TextPart {
    /// `text`
    pub r#type: TextType,
    /// The text.
    pub text: String,
}

/// The type of a part.
#[derive(ToSchema)]
#[serde(rename_all = "lowercase")]
#[allow(dead_code, reason = "describes `messages` in /openapi.json")]
pub enum TextType {
    /// Text.
    Text,
}

/// Reads the message at `path`.
///
/// # Errors
/// Wrong types, or content other than text.
pub fn message(path: &str, value: Value) -> Result<Message, ApiError> {
    let mut fields = Fields::of(path, value)?;
    let role = fields.string("role")?.ok_or_else(|| fields.error("role", "is missing"))?;
    let place = fields.path("content");
    let content = match fields.value("content") {
        None => Content::Absent,
        Some(Value::String(text)) => Content::Text(text),
        Some(Value::Array(parts)) => {
            let part = |(number, value)| text_part(&format!("{place}[{number}]"), value);
            let texts: Vec<String> =
                parts.into_iter().enumerate().map(part).collect::<Result<_, _>>()?;
            match <[String; 1]>::try_from(texts) {
                Ok([text]) => Content::Text(text),
                Err(texts) => Content::Parts(texts),
            }
        }
        Some(other) => return Err(wrong(&place, &other, "a text or a list of parts")),
    };
    let mut rest = fields.into_rest();
    // What answers of OpenAI's clients hold when there is nothing to hold.
    rest.retain(|_, value| !matches!(value, Value::Array(list) if list.is_empty()));
    if matches!(content, Content::Absent) && rest.is_empty() {
        return Err(ApiError::field(&place, "is missing; expected a text or a list of parts"));
    }
    if let Some(Value::Array(calls)) = rest.get_mut("tool_calls") {
        for call in calls {
            parse_arguments(call);
        }
    }
    Ok(Message { role, content, fields: rest })
}

fn text_part(path: &str, value: Value) -> Result<String, ApiError> {
    let mut part = Fields::of(path, value)?;
    match part.string("type")?.as_deref() {
        Some("text") => {}
        Some(other) => {
            let problem = format!("is `{}`; expected `text`", other.escape_debug());
            return Err(part.error("type", problem));
        }
        None => return Err(part.error("type", "is missing; expected `text`")),
    }
    let text = part.string("text")?.ok_or_else(|| part.error("text", "is missing"))?;
    part.finish()?;
    Ok(text)
}

/// Parses the arguments of a call, which clients send as JSON text and templates write as an
/// object. vLLM does the same.
fn parse_arguments(call: &mut Value) {
    let arguments = call.get_mut("function").and_then(|function| function.get_mut("arguments"));
    if let Some(arguments) = arguments
        && let Some(text) = arguments.as_str()
        && let Ok(object) = serde_json::from_str::<Map<String, Value>>(text)
    {
        *arguments = Value::Object(object);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(value: Value) -> Result<Message, String> {
        message("messages[1]", value).map_err(|error| error.body().error.message)
    }

    #[test]
    fn content_is_a_text_or_parts() {
        let parts = json!({"role": "user", "content": [{"type": "text", "text": "a"}]});
        assert_eq!(read(parts).unwrap(), Message::user("a"));
        let empty = json!({"role": "user", "content": "", "refusal": null, "annotations": []});
        assert_eq!(read(empty).unwrap(), Message::user(""));
        let image = json!({"role": "user", "content": [{"type": "image_url", "image_url": {}}]});
        let expected = "`messages[1].content[0].type` is `image_url`; expected `text`";
        assert_eq!(read(image).unwrap_err(), expected);
        assert!(read(json!({"content": "a"})).unwrap_err().contains("`messages[1].role`"));
        assert!(read(json!({"role": "user"})).unwrap_err().contains("`messages[1].content`"));
        assert!(read(json!("a")).unwrap_err().contains("`messages[1]` is \"a\""));
    }

    #[test]
    fn arguments_of_calls_become_objects() {
        let call = |arguments| json!({"function": {"name": "f", "arguments": arguments}});
        let message = json!({"role": "assistant", "tool_calls": [call(json!("{\"x\": 1}"))]});
        let read = read(message).unwrap();
        assert_eq!(read.fields["tool_calls"][0], call(json!({"x": 1})));
    }
}
