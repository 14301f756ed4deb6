//! The special tokens a checkpoint's tokenizer files declare by name.

use std::path::Path;

use serde_json::{Map, Value};

use crate::Result;
use crate::text_file::read_text;
use crate::tokenizer::declared::Declared;
use crate::tokenizer::files::{CONFIG, SPECIAL_TOKENS_MAP, SideFiles, json_object};

/// The texts of the special tokens that templates and tokenizers refer to by name; `None` for a
/// token that the files do not declare.
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
    /// Reads the tokens named by `tokenizer_config.json` and `special_tokens_map.json`. Neither
    /// file has to exist.
    ///
    /// The precedence is that of transformers 5: `special_tokens_map.json` overrides
    /// `tokenizer_config.json`, unless the latter has an `added_tokens_decoder`; then
    /// `special_tokens_map.json` is ignored. A token is a string or a serialized `AddedToken`, an
    /// object with `content`.
    ///
    /// # Errors
    /// A file cannot be read, is not a JSON object, or has a token of the wrong type.
    pub fn from_dir(dir: &Path) -> Result<SpecialTokens> {
        let side = SideFiles {
            dir: dir.to_owned(),
            config: read_json_object(&dir.join(CONFIG))?.unwrap_or_default(),
            special_tokens_map: read_json_object(&dir.join(SPECIAL_TOKENS_MAP))?,
            added_tokens: None,
        };
        Ok(SpecialTokens::from(&Declared::gather(&side)?))
    }
}

impl From<&Declared> for SpecialTokens {
    fn from(declared: &Declared) -> SpecialTokens {
        let token = |name| declared.get(name).map(str::to_owned);
        SpecialTokens {
            bos: token("bos_token"),
            eos: token("eos_token"),
            unk: token("unk_token"),
            pad: token("pad_token"),
        }
    }
}

/// Reads a file as a JSON object; `None` if it does not exist.
pub(crate) fn read_json_object(path: &Path) -> Result<Option<Map<String, Value>>> {
    match read_text(path)? {
        Some(text) => json_object(path, &text).map(Some),
        None => Ok(None),
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
        assert_eq!(tokens.eos.as_deref(), Some("<other>"), "special_tokens_map.json overrides");
        assert_eq!(tokens.pad.as_deref(), Some("<pad>"));
        assert_eq!(tokens.unk, None);
    }

    #[test]
    fn with_added_tokens_decoder_the_other_file_is_not_read() {
        let dir = dir(&[
            ("tokenizer_config.json", r#"{"eos_token": "</s>", "added_tokens_decoder": {}}"#),
            ("special_tokens_map.json", r#"{"pad_token": "<pad>", "eos_token": "<other>"}"#),
        ]);
        let tokens = SpecialTokens::from_dir(dir.path()).unwrap();
        assert_eq!((tokens.eos.as_deref(), tokens.pad), (Some("</s>"), None));
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
