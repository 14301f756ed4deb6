//! A token as `tokenizer_config.json`, `special_tokens_map.json` or `added_tokens.json` declares
//! it.

use std::path::Path;

use serde_json::{Map, Value};
use tokenizers::AddedToken;

use crate::sanitize::sanitize;
use crate::{Error, Result};

/// A token's text, and the flags that decide where it matches in a text, if they are declared.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Token {
    pub content: String,
    pub flags: Option<Flags>,
}

/// The fields of an `AddedToken` other than its text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct Flags {
    pub single_word: bool,
    pub lstrip: bool,
    pub rstrip: bool,
    /// Whether to match in the normalized text instead of the original. `None` means true for
    /// ordinary tokens and false for special ones.
    pub normalized: Option<bool>,
    pub special: bool,
}

impl Token {
    /// Parses a string, or an object with `content` and flags; `None` for any other JSON type.
    ///
    /// # Errors
    /// A field of the object has the wrong type.
    pub fn parse(path: &Path, field: &str, value: &Value) -> Result<Option<Token>> {
        match value {
            Value::String(content) => Ok(Some(Token { content: content.clone(), flags: None })),
            Value::Object(object) => Token::from_object(path, field, object).map(Some),
            _ => Ok(None),
        }
    }

    /// Parses an `AddedToken` as serialized by HuggingFace, with or without its `__type`.
    ///
    /// # Errors
    /// A field has the wrong type.
    pub fn from_object(path: &Path, field: &str, object: &Map<String, Value>) -> Result<Token> {
        let Some(Value::String(content)) = object.get("content") else {
            return Err(not_a_token(path, field));
        };
        let flag = |name: &str| match object.get(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(_) => {
                Err(Error::field(path, sanitize(field) + "." + name, "must be true or false"))
            }
        };
        let flags = Flags {
            single_word: flag("single_word")?.unwrap_or(false),
            lstrip: flag("lstrip")?.unwrap_or(false),
            rstrip: flag("rstrip")?.unwrap_or(false),
            normalized: flag("normalized")?,
            special: flag("special")?.unwrap_or(false),
        };
        Ok(Token { content: content.clone(), flags: Some(flags) })
    }

    /// Converts to the type of the `tokenizers` crate. A token without declared flags is special.
    pub fn to_added(&self) -> AddedToken {
        let flags = self.flags.unwrap_or(Flags { special: true, ..Flags::default() });
        AddedToken::from(self.content.clone(), flags.special)
            .single_word(flags.single_word)
            .lstrip(flags.lstrip)
            .rstrip(flags.rstrip)
            .normalized(flags.normalized.unwrap_or(!flags.special))
    }
}

impl From<&AddedToken> for Token {
    fn from(token: &AddedToken) -> Token {
        let &AddedToken { single_word, lstrip, rstrip, normalized, special, .. } = token;
        let flags = Flags { single_word, lstrip, rstrip, normalized: Some(normalized), special };
        Token { content: token.content.clone(), flags: Some(flags) }
    }
}

pub(super) fn not_a_token(path: &Path, field: &str) -> Error {
    Error::field(path, sanitize(field), "must be a string or an object with a string `content`")
}
