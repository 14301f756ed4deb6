//! One token as a file beside `tokenizer.json` declares it.

use std::path::Path;

use serde_json::{Map, Value};
use tokenizers::AddedToken;

use crate::sanitize::sanitize;
use crate::{Error, Result};

/// A token by its text alone, or with the flags that say where it is found in a text.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Token {
    pub content: String,
    pub flags: Option<Flags>,
}

/// The fields of an `AddedToken` beside its text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct Flags {
    pub single_word: bool,
    pub lstrip: bool,
    pub rstrip: bool,
    /// Where it is not said, ordinary tokens are searched for in the normalized text, special ones
    /// in the text as it was written.
    pub normalized: Option<bool>,
    pub special: bool,
}

impl Token {
    /// A string, or an object with `content` and flags; `None` for any other kind.
    ///
    /// # Errors
    /// An object whose fields are of another kind.
    pub fn parse(path: &Path, field: &str, value: &Value) -> Result<Option<Token>> {
        match value {
            Value::String(content) => Ok(Some(Token { content: content.clone(), flags: None })),
            Value::Object(object) => Token::from_object(path, field, object).map(Some),
            _ => Ok(None),
        }
    }

    /// An `AddedToken` as HuggingFace serialises it, with or without its `__type`.
    ///
    /// # Errors
    /// Fields of another kind.
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

    /// What the library is given. A token declared by its text alone is a special one.
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
