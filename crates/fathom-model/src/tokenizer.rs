//! Text to token ids and back, through a checkpoint's own `tokenizer.json`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use crate::brief::brief;
use crate::decode_stream::DecodeStream;
use crate::special_tokens::{SpecialTokens, read_json_object};
use crate::text_file::read_text;
use crate::token_text::token_bytes;
use crate::{Error, Result};

/// How to come by a `tokenizer.json`.
pub(crate) const NO_TOKENIZER: &str = "copy it from the model's repository, or convert a slow tokenizer \
     (tokenizer.model, tekken.json) with `AutoTokenizer.from_pretrained(...).save_pretrained(...)`";

/// A checkpoint's tokenizer: what HuggingFace's fast tokenizer does with `tokenizer.json`.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    path: PathBuf,
    special: SpecialTokens,
    /// `add_bos_token` of `tokenizer_config.json`, which overrides the post-processor of `tokenizer.json`.
    add_bos: Option<bool>,
    /// A token put before another to see how that one decodes in the middle of a text.
    anchor: Option<u32>,
}

impl Tokenizer {
    /// Loads `tokenizer.json` with the special tokens named in `tokenizer_config.json`.
    ///
    /// Truncation and padding stored in `tokenizer.json` are switched off, as HuggingFace does unless
    /// asked: the ids of a text are all its ids.
    ///
    /// # Errors
    /// No `tokenizer.json`, or one that cannot be used.
    pub fn from_dir(dir: &Path) -> Result<Tokenizer> {
        Tokenizer::find(dir)?.ok_or_else(|| {
            let problem = format!("does not exist; {NO_TOKENIZER}");
            Error::file(&dir.join("tokenizer.json"), problem)
        })
    }

    /// [`Tokenizer::from_dir`], with `None` where the directory has no `tokenizer.json`:
    /// a checkpoint can be scanned on explicit token ids without one.
    ///
    /// # Errors
    /// A `tokenizer.json` that cannot be used.
    pub fn find(dir: &Path) -> Result<Option<Tokenizer>> {
        let path = dir.join("tokenizer.json");
        let Some(text) = read_text(&path)? else { return Ok(None) };
        let unusable =
            |problem: &str| Error::file(&path, format!("is not a usable tokenizer: {problem}"));
        if let Err(error) = serde_json::from_str::<serde::de::IgnoredAny>(&text) {
            return Err(Error::file(&path, format!("is not valid JSON: {error}")));
        }
        let mut inner: tokenizers::Tokenizer =
            guarded(|| text.parse()).map_err(|problem| unusable(&problem))?;
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| unusable(&brief(&error.to_string())))?;
        let config_path = dir.join("tokenizer_config.json");
        let config = read_json_object(&config_path)?.unwrap_or_default();
        let add_bos = config.get("add_bos_token").and_then(serde_json::Value::as_bool);
        let special = SpecialTokens::from_dir(dir)?;
        let mut tokenizer = Tokenizer { inner, path, special, add_bos, anchor: None };
        tokenizer.anchor = tokenizer.encode("a", false)?.last().copied();
        // A post-processor that cannot work says so now and not in the middle of a run.
        tokenizer.encode("a", true)?;
        Ok(Some(tokenizer))
    }

    /// The ids of `text`. Special tokens written in the text are recognised either way;
    /// `add_special_tokens` says whether to add the ones a bare text gets (usually BOS in front).
    /// After a chat template it must be false: the template has written them already.
    ///
    /// # Errors
    /// A text this tokenizer has no ids for.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        let encode = |special| {
            guarded(|| self.inner.encode_fast(text, special))
                .map(|encoding| encoding.get_ids().to_vec())
                .map_err(|problem| {
                    Error::file(&self.path, format!("cannot encode a text: {problem}"))
                })
        };
        let mut ids = encode(add_special_tokens)?;
        if let (true, Some(add_bos), Some(bos)) = (add_special_tokens, self.add_bos, self.bos_id())
        {
            // `add_bos_token` decides about exactly one BOS in front, whatever the post-processor did;
            // a BOS written in the text itself stays.
            let written = encode(false)?;
            let added = ids.len() > written.len() && ids.first() == Some(&bos);
            match (add_bos, added) {
                (true, false) => ids.insert(0, bos),
                (false, true) => drop(ids.remove(0)),
                _ => {}
            }
        }
        Ok(ids)
    }

    /// The text of `ids`, special tokens kept. Ids outside the vocabulary are left out, as
    /// HuggingFace does.
    ///
    /// # Errors
    /// A decoder of `tokenizer.json` that cannot decode these tokens.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        guarded(|| self.inner.decode(ids, false)).map_err(|problem| {
            Error::file(&self.path, format!("cannot decode token ids: {problem}"))
        })
    }

    /// Text that grows token by token, for showing a generation while it runs.
    pub fn decode_stream(&self) -> DecodeStream<'_> {
        DecodeStream::new(self)
    }

    /// What one token looks like in the middle of a text, leading space included. Bytes that are
    /// not whole characters are written `<0xE4>`; an id outside the vocabulary `<unknown 123>`.
    pub fn token_text(&self, id: u32) -> String {
        let Some(token) = self.inner.id_to_token(id) else { return format!("<unknown {id}>") };
        let text = self.text_after_anchor(id).unwrap_or_else(|| token.clone());
        if !text.contains(char::REPLACEMENT_CHARACTER)
            || token.contains(char::REPLACEMENT_CHARACTER)
        {
            return text;
        }
        match token_bytes(&token) {
            Some(bytes) => bytes
                .utf8_chunks()
                .flat_map(|chunk| {
                    let broken = chunk.invalid().iter().map(|byte| format!("<0x{byte:02X}>"));
                    std::iter::once(chunk.valid().to_owned()).chain(broken)
                })
                .collect(),
            None => token,
        }
    }

    /// Decoders treat the first token of a text differently (Llama 2 drops its space), so the token
    /// is decoded behind another one, whose own text is then taken off.
    fn text_after_anchor(&self, id: u32) -> Option<String> {
        let anchor = self.anchor?;
        let before = self.decode(&[anchor]).ok()?;
        let both = self.decode(&[anchor, id]).ok()?;
        Some(both.strip_prefix(&before)?.to_owned())
    }

    /// The vocabulary entry of an id as `tokenizer.json` writes it (`Ġthe`, `▁the`, `<0x0A>`);
    /// two tokenizers are the same where these agree.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The id of a vocabulary entry, added tokens included.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Number of vocabulary entries, added tokens included (HuggingFace's `len(tokenizer)`).
    /// The model's `vocab_size` may be larger: embeddings are often padded.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The special tokens named by the tokenizer's files.
    pub fn special_tokens(&self) -> &SpecialTokens {
        &self.special
    }

    /// Id of the BOS token, where one is named.
    pub fn bos_id(&self) -> Option<u32> {
        self.special.bos.as_deref().and_then(|token| self.token_to_id(token))
    }

    /// Id of the EOS token, where one is named. What ends a generation is said by
    /// `generation_config.json` and `config.json`; this is the tokenizer's own.
    pub fn eos_id(&self) -> Option<u32> {
        self.special.eos.as_deref().and_then(|token| self.token_to_id(token))
    }

    /// The `tokenizer.json` this was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Refuses ids that begin with BOS twice.
///
/// It happens when a text in which a chat template has already written BOS is tokenised with
/// special tokens added. The second BOS is then an ordinary position and the primary sink moves.
///
/// # Errors
/// Two leading `bos_id`.
pub fn check_bos(ids: &[u32], bos_id: u32) -> Result<()> {
    match ids {
        [first, second, ..] if *first == bos_id && *second == bos_id => {
            Err(Error::Request(format!(
                "the token ids begin with BOS ({bos_id}) twice: the text already holds one (a chat \
             template writes it) and the tokenizer added another, which would move the primary \
             sink; remove one of them"
            )))
        }
        _ => Ok(()),
    }
}

/// One call of the library, its error as one line. It panics on some faults of a file instead of
/// reporting them, such as a post-processor that names a token it does not define.
fn guarded<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|error| brief(&error.to_string())),
        Err(_) => Err("one of its parts is malformed".to_owned()),
    }
}
