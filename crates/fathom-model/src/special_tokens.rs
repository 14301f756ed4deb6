//! The special tokens a checkpoint's tokenizer files declare by name.

use std::path::Path;

use serde_json::{Map, Value};

use crate::text_file::read_text;
use crate::{Error, Result};

/// The special tokens templates and tokenizers refer to by name, as text; `None` where the files say nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Beginning of sequence.
    pub bos: Option<String>,
    /// End of sequence.
    pub eos: Option<String>,
    /// Unknown token.
    pub unk: Option<String>,
    /// Padding.
    pub pad: Option<String>,
}

impl SpecialTokens {
    /// Reads `tokenizer_config.json`, and `special_tokens_map.json` for what is not there.
    ///
    /// A token is a string or, as HuggingFace serialises `AddedToken`, an object with `content`.
    /// Neither file has to exist.
    ///
    /// # Errors
    /// A file that cannot be read, is not a JSON object, or holds a token of another kind.
    pub fn from_dir(dir: &Path) -> Result<SpecialTokens> {
        let mut tokens = SpecialTokens::default();
        for name in ["tokenizer_config.json", "special_tokens_map.json"] {
            let path = dir.join(name);
            let Some(object) = read_json_object(&path)? else { continue };
            for (slot, key) in [
                (&mut tokens.bos, "bos_token"),
                (&mut tokens.eos, "eos_token"),
                (&mut tokens.unk, "unk_token"),
                (&mut tokens.pad, "pad_token"),
            ] {
                if slot.is_none() {
                    *slot = token_string(&path, &object, key)?;
                }
            }
        }
        Ok(tokens)
    }
}

/// `object[key]` as a token: a string, or an `AddedToken` object; `None` when absent or null.
fn token_string(path: &Path, object: &Map<String, Value>, key: &str) -> Result<Option<String>> {
    let content = match object.get(key) {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Object(added_token)) => added_token.get("content"),
        other => other,
    };
    match content {
        Some(Value::String(token)) => Ok(Some(token.clone())),
        _ => Err(Error::field(path, key, "must be a string or an object with a string `content`")),
    }
}

/// The JSON object in `path`; `None` when the file does not exist.
pub(crate) fn read_json_object(path: &Path) -> Result<Option<Map<String, Value>>> {
    let Some(text) = read_text(path)? else { return Ok(None) };
    match serde_json::from_str(&text) {
        Ok(Value::Object(object)) => Ok(Some(object)),
        Ok(_) => Err(Error::file(path, "must hold a JSON object")),
        Err(error) => Err(Error::file(path, format!("is not valid JSON: {error}"))),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::fs;

    fn dir(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    #[test]
    fn strings_added_tokens_and_the_fallback_file() {
        let dir = dir(&[
            (
                "tokenizer_config.json",
                r#"{"bos_token": {"__type": "AddedToken", "content": "<s>", "lstrip": false},
                    "eos_token": "</s>", "pad_token": null,
                    "model_max_length": 1000000000000000019884624838656}"#,
            ),
            ("special_tokens_map.json", r#"{"pad_token": "<pad>", "eos_token": "<other>"}"#),
        ]);
        let tokens = SpecialTokens::from_dir(dir.path()).unwrap();
        assert_eq!(tokens.bos.as_deref(), Some("<s>"));
        assert_eq!(tokens.eos.as_deref(), Some("</s>"), "tokenizer_config.json comes first");
        assert_eq!(tokens.pad.as_deref(), Some("<pad>"));
        assert_eq!(tokens.unk, None);
    }

    #[test]
    fn no_files_no_tokens() {
        assert_eq!(SpecialTokens::from_dir(dir(&[]).path()).unwrap(), SpecialTokens::default());
    }

    #[test]
    fn other_kinds_are_refused_by_name() {
        for text in [r#"{"bos_token": 1}"#, r#"{"bos_token": {"content": 1}}"#] {
            let dir = dir(&[("tokenizer_config.json", text)]);
            let message = SpecialTokens::from_dir(dir.path()).unwrap_err().to_string();
            assert!(message.contains("tokenizer_config.json: `bos_token` must be"), "{message}");
        }
        let dir = dir(&[("tokenizer_config.json", "[]")]);
        let message = SpecialTokens::from_dir(dir.path()).unwrap_err().to_string();
        assert!(message.contains("must hold a JSON object"), "{message}");
    }
}
