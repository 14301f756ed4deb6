//! One turn of a conversation, with all the fields that a chat template may read.

use serde::de::{self, Deserialize, Deserializer};
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

use crate::jsonl::OWN;
use crate::sanitize::sanitize;

/// The names under which data sets store a message's reasoning.
pub(crate) const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// One turn of a conversation, `messages[i]` in HuggingFace's templates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user`, `assistant`, `tool` or another role that the template knows.
    pub role: String,
    /// The text, if any.
    pub content: Content,
    /// The other fields, such as `reasoning_content`, `tool_calls` or `name`, in input order.
    pub fields: Map<String, Value>,
}

/// `content` of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// No `content` field, as in some messages with `tool_calls`.
    Absent,
    /// `null`, which `to_json` distinguishes from [`Content::Absent`].
    Null,
    /// A text.
    Text(String),
    /// The texts of a list of `{"type": "text", "text": …}` parts.
    Parts(Vec<String>),
}

impl Message {
    /// A message with a text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Message {
        let content = Content::Text(content.into());
        Message { role: role.into(), content, fields: Map::new() }
    }

    /// A message of the user.
    pub fn user(content: impl Into<String>) -> Message {
        Message::new("user", content)
    }

    /// The message as `apply_chat_template` of transformers 5.24 passes it to a template. Null
    /// fields are left out. Reasoning under any name of [`REASONING`] is passed both as
    /// `reasoning_content` and as `thinking`.
    pub(crate) fn for_template(&self) -> Value {
        let mut object = Map::new();
        let field = |name: &&str| self.fields.get(*name).filter(|value| !value.is_null());
        let reasoning = REASONING.iter().find_map(field).cloned();
        object.extend(reasoning.clone().map(|value| ("thinking".to_owned(), value)));
        if let Value::Object(message) = self.to_json() {
            object.extend(message.into_iter().filter(|(_, value)| !value.is_null()));
        }
        object.extend(reasoning.map(|value| ("reasoning_content".to_owned(), value)));
        Value::Object(object)
    }

    /// The message as a JSON object: `role`, `content`, then the other fields.
    pub fn to_json(&self) -> Value {
        let mut object = Map::new();
        object.insert("role".to_owned(), Value::from(self.role.as_str()));
        let content = match &self.content {
            Content::Absent => None,
            Content::Null => Some(Value::Null),
            Content::Text(text) => Some(Value::from(text.as_str())),
            Content::Parts(texts) => Some(
                texts
                    .iter()
                    .map(|text| serde_json::json!({ "type": "text", "text": text }))
                    .collect(),
            ),
        };
        object.extend(content.map(|content| ("content".to_owned(), content)));
        object.extend(self.fields.iter().map(|(name, value)| (name.clone(), value.clone())));
        Value::Object(object)
    }
}

impl Content {
    /// The text; empty if there is none or if it is a list of parts.
    pub fn as_str(&self) -> &str {
        match self {
            Content::Text(text) => text,
            Content::Absent | Content::Null | Content::Parts(_) => "",
        }
    }

    /// The text, or the last part of a list; empty if there is none.
    pub(crate) fn last_text(&self) -> &str {
        match self {
            Content::Parts(texts) => texts.last().map_or("", String::as_str),
            other => other.as_str(),
        }
    }
}

impl Serialize for Message {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.to_json().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Message {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Message, D::Error> {
        let mut fields = Map::deserialize(deserializer)?;
        let wrong = |problem: String| de::Error::custom(format!("{OWN}{problem}"));
        let role = match fields.shift_remove("role") {
            Some(Value::String(role)) => role,
            Some(_) => return Err(wrong("a `role` that is not a string".to_owned())),
            None => return Err(wrong("a message without `role`".to_owned())),
        };
        let content = match fields.shift_remove("content") {
            None if fields.values().all(Value::is_null) => {
                return Err(wrong(format!(
                    "a message of role `{}` without `content`",
                    sanitize(&role)
                )));
            }
            None => Content::Absent,
            Some(Value::Null) => Content::Null,
            Some(Value::String(text)) => Content::Text(text),
            Some(Value::Array(parts)) => {
                let texts = parts.iter().map(part_text).collect::<Result<_, String>>();
                Content::Parts(texts.map_err(wrong)?)
            }
            Some(_) => {
                return Err(wrong("`content` that is neither a text nor a list".to_owned()));
            }
        };
        Ok(Message { role, content, fields })
    }
}

/// The text of one part of a content list.
fn part_text(part: &Value) -> Result<String, String> {
    let kind = part.get("type").and_then(Value::as_str);
    match (kind, part.get("text").and_then(Value::as_str)) {
        (Some("text"), Some(text)) => Ok(text.to_owned()),
        (Some("text"), None) => Err("a content part of type `text` without `text`".to_owned()),
        (Some(other), _) => {
            let other = sanitize(other);
            Err(format!("a content part of type `{other}`, but only `text` is supported"))
        }
        (None, _) => Err("a content part without `type`".to_owned()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_message_comes_back_as_it_was() {
        for source in [
            r#"{"role":"user","content":"Hi"}"#,
            r#"{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}"#,
            r#"{"role":"assistant","content":null,"tool_calls":[{"id":1}],"name":"x"}"#,
            r#"{"role":"assistant","reasoning_content":"because"}"#,
        ] {
            let message: Message = serde_json::from_str(source).unwrap();
            assert_eq!(serde_json::to_string(&message).unwrap(), source);
        }
    }

    /// As `_normalize_chat_messages` and `_alias_reasoning_fields` of transformers 5.24.
    #[test]
    fn messages_for_a_template_match_transformers() {
        for (source, expected) in [
            (
                r#"{"role":"assistant","content":null,"name":null,"tool_calls":[1]}"#,
                r#"{"role":"assistant","tool_calls":[1]}"#,
            ),
            (
                r#"{"role":"assistant","content":"a","reasoning":"r"}"#,
                concat!(
                    r#"{"thinking":"r","role":"assistant","content":"a","reasoning":"r","#,
                    r#""reasoning_content":"r"}"#
                ),
            ),
            (
                r#"{"role":"assistant","content":"a","reasoning_content":"r","thinking":"t"}"#,
                r#"{"thinking":"t","role":"assistant","content":"a","reasoning_content":"r"}"#,
            ),
        ] {
            let message: Message = serde_json::from_str(source).unwrap();
            assert_eq!(message.for_template().to_string(), expected);
        }
    }

    #[test]
    fn invalid_messages_are_described() {
        for (source, expected) in [
            (r#"{"content": "Hi"}"#, "a message without `role`"),
            (r#"{"role": 1, "content": "Hi"}"#, "a `role` that is not a string"),
            (r#"{"role": "user"}"#, "a message of role `user` without `content`"),
            (r#"{"role": "user", "name": null}"#, "without `content`"),
            (r#"{"role": "user", "content": 3}"#, "neither a text nor a list"),
            (r#"{"role": "user", "content": ["a"]}"#, "a content part without `type`"),
            (r#"{"role": "user", "content": [{"type": "text"}]}"#, "without `text`"),
            (
                r#"{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}"#,
                "a content part of type `image_url`",
            ),
        ] {
            let message = serde_json::from_str::<Message>(source).unwrap_err().to_string();
            assert!(message.contains(expected), "{source}: {message}");
        }
    }
}
