//! The files a tokenizer is read from.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::text_file::read_text;
use crate::{Error, Result};

pub(crate) const TOKENIZER: &str = "tokenizer.json";
pub(crate) const CONFIG: &str = "tokenizer_config.json";
pub(crate) const ADDED_TOKENS: &str = "added_tokens.json";
pub(crate) const SPECIAL_TOKENS_MAP: &str = "special_tokens_map.json";

/// The texts of a checkpoint's tokenizer files; `None` for a file that does not exist.
#[derive(Debug, Clone, Default)]
pub struct TokenizerFiles {
    /// The directory they were read from, for messages.
    pub dir: PathBuf,
    /// Contents of `tokenizer.json`.
    pub tokenizer: String,
    /// Contents of `tokenizer_config.json`.
    pub config: Option<String>,
    /// Contents of `added_tokens.json`.
    pub added_tokens: Option<String>,
    /// Contents of `special_tokens_map.json`.
    pub special_tokens_map: Option<String>,
}

impl TokenizerFiles {
    /// Reads the files of a directory; `None` if it has no `tokenizer.json`.
    ///
    /// # Errors
    /// A file cannot be read as text.
    pub fn read(dir: &Path) -> Result<Option<TokenizerFiles>> {
        let Some(tokenizer) = read_text(&dir.join(TOKENIZER))? else { return Ok(None) };
        Ok(Some(TokenizerFiles {
            dir: dir.to_owned(),
            tokenizer,
            config: read_text(&dir.join(CONFIG))?,
            added_tokens: read_text(&dir.join(ADDED_TOKENS))?,
            special_tokens_map: read_text(&dir.join(SPECIAL_TOKENS_MAP))?,
        }))
    }

    /// The files besides `tokenizer.json`, parsed as JSON.
    pub(super) fn side_files(&self) -> Result<SideFiles> {
        let object = |name: &str, text: &Option<String>| match text {
            Some(text) => json_object(&self.dir.join(name), text).map(Some),
            None => Ok(None),
        };
        Ok(SideFiles {
            config: object(CONFIG, &self.config)?.unwrap_or_default(),
            special_tokens_map: object(SPECIAL_TOKENS_MAP, &self.special_tokens_map)?,
            added_tokens: object(ADDED_TOKENS, &self.added_tokens)?,
            dir: self.dir.clone(),
        })
    }
}

/// The tokenizer files besides `tokenizer.json`. `config` is empty if there is no
/// `tokenizer_config.json`.
pub(crate) struct SideFiles {
    pub dir: PathBuf,
    pub config: Map<String, Value>,
    pub special_tokens_map: Option<Map<String, Value>>,
    pub added_tokens: Option<Map<String, Value>>,
}

/// Parses the text of a file as a JSON object. `path` is only for messages.
pub(crate) fn json_object(path: &Path, text: &str) -> Result<Map<String, Value>> {
    match serde_json::from_str(text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(Error::file(path, "must hold a JSON object")),
        Err(error) => Err(Error::file(path, format!("is not valid JSON: {error}"))),
    }
}
