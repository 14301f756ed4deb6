//! Fingerprints that identify a checkpoint.

use std::collections::BTreeSet;
use std::path::Path;

use fathom_model::{Error, Result, file_fingerprint, parse_index, read_text};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// SHA-256 of a checkpoint's files, as lowercase hex.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprints {
    /// `config.json`.
    pub config_sha256: String,
    /// The weights: the single file, or all shards in name order.
    pub weights_sha256: String,
    /// Those tokenizer and chat template files that exist.
    pub tokenizer_sha256: String,
}

impl Fingerprints {
    /// Hashes all files of the checkpoint in `dir`.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn of(dir: &Path) -> Result<Fingerprints> {
        const TOKENIZER: [&str; 8] = [
            "tokenizer.json",
            "tokenizer_config.json",
            "added_tokens.json",
            "special_tokens_map.json",
            "chat_template.jinja",
            "chat_template.json",
            "additional_chat_templates/default.jinja",
            "additional_chat_templates/tool_use.jinja",
        ];
        let single = dir.join("model.safetensors");
        let weights = match single.exists() {
            true => file_sha256(&single)?,
            false => files_sha256(dir, shards(dir)?.iter().map(String::as_str))?,
        };
        let there = TOKENIZER.into_iter().filter(|name| dir.join(name).exists());
        Ok(Fingerprints {
            config_sha256: file_sha256(&dir.join("config.json"))?,
            weights_sha256: weights,
            tokenizer_sha256: files_sha256(dir, there)?,
        })
    }
}

/// An adapter and SHA-256 of its files, as lowercase hex.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdapterNote {
    /// The adapter as the user named it: a directory or a hub id.
    pub path: String,
    /// `adapter_config.json`.
    pub config_sha256: String,
    /// `adapter_model.safetensors`.
    pub weights_sha256: String,
}

impl AdapterNote {
    /// Hashes the adapter in `dir`, which the user named `path`.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn new(path: &str, dir: &Path) -> Result<AdapterNote> {
        Ok(AdapterNote {
            path: path.to_owned(),
            config_sha256: file_sha256(&dir.join("adapter_config.json"))?,
            weights_sha256: file_sha256(&dir.join("adapter_model.safetensors"))?,
        })
    }
}

/// The shards that the index lists, sorted.
fn shards(dir: &Path) -> Result<BTreeSet<String>> {
    let path = dir.join("model.safetensors.index.json");
    let text = read_text(&path)?.ok_or_else(|| Error::file(&path, "does not exist"))?;
    Ok(parse_index(&path, &text)?.into_values().collect())
}

/// SHA-256 over the names and digests of several files.
fn files_sha256<'a>(dir: &Path, names: impl Iterator<Item = &'a str>) -> Result<String> {
    let mut hasher = Sha256::new();
    for name in names {
        hasher.update(format!("{name} {}\n", file_sha256(&dir.join(name))?));
    }
    Ok(format!("{:x}", hasher.finalize()))
}

/// SHA-256 of a file, as lowercase hex.
pub(super) fn file_sha256(path: &Path) -> Result<String> {
    let fingerprint = file_fingerprint(path)?;
    Ok(fingerprint.trim_start_matches("sha256:").to_owned())
}
