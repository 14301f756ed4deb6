//! An adapter found in a directory where a model was expected.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::CONFIG;
use crate::sanitize::sanitize;
use crate::text_file::read_text;
use crate::{Error, Remark, Result};

/// An adapter that a directory holds.
pub(crate) struct FoundAdapter {
    path: PathBuf,
    /// "a LoRA adapter (r 8) of `org/base`".
    what: String,
}

impl FoundAdapter {
    /// The adapter in `dir`, if there is one.
    ///
    /// # Errors
    /// Its config cannot be read as text.
    pub(crate) fn find(dir: &Path) -> Result<Option<FoundAdapter>> {
        let path = dir.join(CONFIG);
        let Some(text) = read_text(&path)? else { return Ok(None) };
        // This only describes the adapter, so fields of the wrong type are skipped.
        let config: Value = serde_json::from_str(&text).unwrap_or_default();
        let kind = match config["peft_type"].as_str() {
            Some("LORA") => "a LoRA adapter".to_owned(),
            Some(kind) => format!("a {} adapter", sanitize(kind)),
            None => "an adapter".to_owned(),
        };
        let rank = config["r"].as_u64().map(|r| format!(" (r {r})")).unwrap_or_default();
        let base = match config["base_model_name_or_path"].as_str() {
            Some(base) if !base.is_empty() => format!(" of `{}`", sanitize(base)),
            _ => String::new(),
        };
        Ok(Some(FoundAdapter { path, what: format!("{kind}{rank}{base}") }))
    }

    /// The error for a directory that holds the adapter and no model.
    pub(crate) fn refusal(&self) -> Error {
        let problem = format!(
            "is {}, not a model; merge it into that model at loading (`--adapter`) or beforehand \
             (`merge_and_unload`)",
            self.what
        );
        Error::file(&self.path, problem)
    }

    /// The remark for a directory that holds the adapter next to a model.
    pub(crate) fn remark(&self) -> Remark {
        let text = format!(
            "is {}, which is not applied; if it is not merged into the weights of this directory \
             yet, merge it (`--adapter` with this directory)",
            self.what
        );
        Remark::file("adapter", &self.path, text)
    }
}
