//! A checkpoint's tokenizer: text to token ids and back.
//!
//! It is read from `tokenizer.json`, with the overrides that transformers 5 takes from the other
//! tokenizer files of the directory (`docs/parity.md`).

mod continuation;
pub(crate) mod declared;
pub(crate) mod files;
mod framing;
mod overlay;
mod token;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use self::declared::Declared;
pub use self::files::TokenizerFiles;
use self::files::{CONFIG, TOKENIZER};
use self::framing::Framing;
use self::overlay::AddedTokenEntry;
use crate::decode_stream::DecodeStream;
use crate::guarded::guarded;
use crate::sanitize::sanitize;
use crate::special_tokens::SpecialTokens;
use crate::token_text::token_bytes;
use crate::{Error, Remark, Result};

/// How to get a missing `tokenizer.json`; ends error messages.
pub(crate) const NO_TOKENIZER: &str = "copy it from the model's repository, or convert a slow \
     tokenizer (tokenizer.model, tekken.json) with \
     `AutoTokenizer.from_pretrained(...).save_pretrained(...)`";

/// A checkpoint's tokenizer. It returns the same ids as transformers 5.
///
/// Clones share the vocabulary, so cloning is cheap.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<tokenizers::Tokenizer>,
    path: PathBuf,
    special: SpecialTokens,
    /// The special tokens that the post-processor adds before and after a text; `None` if it does
    /// anything else.
    framing: Option<Framing>,
    /// The user's choice about BOS before a bare text; overrides the post-processor.
    bos: Option<bool>,
    /// An ordinary token. Decoding another token after it returns that token's mid-sentence text.
    anchor: Option<u32>,
    remarks: Vec<Remark>,
}

/// The part of `tokenizer.json` that is parsed here as well as by the `tokenizers` crate.
#[derive(Deserialize)]
struct Outline {
    #[serde(default)]
    added_tokens: Vec<AddedTokenEntry>,
}

impl Tokenizer {
    /// Loads `tokenizer.json` and adds the tokens that `tokenizer_config.json`,
    /// `added_tokens.json` and `special_tokens_map.json` declare, as transformers 5 does.
    ///
    /// Truncation and padding stored in `tokenizer.json` are switched off, as they are by default
    /// in HuggingFace.
    ///
    /// # Errors
    /// There is no `tokenizer.json`, or a file is invalid.
    pub fn from_dir(dir: &Path) -> Result<Tokenizer> {
        Tokenizer::find(dir)?.ok_or_else(|| {
            let problem = format!("does not exist; {NO_TOKENIZER}");
            Error::file(&dir.join(TOKENIZER), problem)
        })
    }

    /// Like [`Tokenizer::from_dir`], but returns `None` if the directory has no `tokenizer.json`.
    /// Scans of explicit token ids need no tokenizer.
    ///
    /// # Errors
    /// A file is invalid.
    pub fn find(dir: &Path) -> Result<Option<Tokenizer>> {
        match TokenizerFiles::read(dir)? {
            Some(files) => Tokenizer::from_files(&files).map(Some),
            None => Ok(None),
        }
    }

    /// Like [`Tokenizer::from_dir`], from the contents of the files.
    ///
    /// # Errors
    /// A file is invalid.
    pub fn from_files(files: &TokenizerFiles) -> Result<Tokenizer> {
        let path = files.dir.join(TOKENIZER);
        let unusable =
            |problem: &str| Error::file(&path, format!("is not a usable tokenizer: {problem}"));
        let outline = serde_json::from_str::<Outline>(&files.tokenizer);
        if let Err(error) = &outline
            && !error.is_data()
        {
            return Err(Error::file(&path, format!("is not valid JSON: {error}")));
        }
        let mut inner: tokenizers::Tokenizer =
            guarded(|| files.tokenizer.parse()).map_err(|problem| unusable(&problem))?;
        let listed = outline.map_err(|error| unusable(&sanitize(&error.to_string())))?.added_tokens;
        let padding = inner.get_padding().map(|padding| padding.pad_token.clone());
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| unusable(&sanitize(&error.to_string())))?;

        let side = files.side_files()?;
        let mut declared = Declared::gather(&side)?;
        padding.into_iter().for_each(|token| declared.default_pad(token));
        let (declared, remarks) = overlay::add_declared(&mut inner, &files.dir, declared, listed)?;
        let special = SpecialTokens::from(&declared);
        if let Some(Value::Bool(split)) = side.config.get("split_special_tokens") {
            inner.set_encode_special_tokens(*split);
        }
        let framing = guarded(|| Framing::of(&inner)).map_err(|problem| unusable(&problem))?;
        let inner = Arc::new(inner);
        let mut tokenizer =
            Tokenizer { inner, path, special, framing, bos: None, anchor: None, remarks };
        tokenizer.anchor = tokenizer.encode("a", false)?.last().copied();
        // A broken post-processor must fail here, not in the middle of a run.
        tokenizer.encode("a", true)?;
        tokenizer.remark_on_config(&files.dir.join(CONFIG), &side.config);
        Ok(tokenizer)
    }

    /// Adds a remark for each key of `tokenizer_config.json` that encoding does not follow.
    fn remark_on_config(&mut self, path: &Path, config: &serde_json::Map<String, Value>) {
        let flag = |key: &str| config.get(key).and_then(Value::as_bool);
        let mut remark = |kind, text| self.remarks.push(Remark::file(kind, path, text));
        if flag("fix_mistral_regex") == Some(true) {
            let text = "`fix_mistral_regex` is not applied: tokenizer.json is used as it is";
            remark("fix-mistral-regex", text.to_owned());
        }
        let Some(framing) = &self.framing else { return };
        let id = |token: &Option<String>| self.inner.token_to_id(token.as_deref()?);
        let bos = id(&self.special.bos).is_some_and(|id| framing.front.contains(&id));
        let eos = id(&self.special.eos).is_some_and(|id| framing.back.contains(&id));
        let rule = "transformers 5 follows the post-processor of tokenizer.json";
        if let Some(value) = flag("add_bos_token").filter(|value| *value != bos) {
            let (done, other) = match bos {
                true => ("BOS", "`--bos no` leaves it out"),
                false => ("no BOS", "`--bos yes` adds it"),
            };
            let text = format!("`add_bos_token` is {value}, but {done} is added: {rule}; {other}");
            remark(ADD_BOS, text);
        }
        if let Some(value) = flag("add_eos_token").filter(|value| *value != eos) {
            let done = if eos { "EOS" } else { "no EOS" };
            let text = format!("`add_eos_token` is {value}, but {done} is added: {rule}");
            remark("add-eos-token", text);
        }
    }

    /// Findings about the files that a user should know.
    pub fn remarks(&self) -> &[Remark] {
        &self.remarks
    }

    /// Overrides whether BOS is put before a bare text.
    ///
    /// `Some(true)`: exactly one BOS. `Some(false)`: no BOS unless the text itself contains it.
    /// `None`: the post-processor of `tokenizer.json` decides.
    ///
    /// # Errors
    /// The files name no BOS token, or the post-processor does more than add special tokens before
    /// and after the text.
    pub fn set_bos(&mut self, bos: Option<bool>) -> Result<()> {
        if bos.is_some() {
            if self.bos_id().is_none() {
                let problem = "names no BOS token that could be added or left out";
                return Err(Error::file(&self.path.with_file_name(CONFIG), problem));
            }
            if self.framing.is_none() {
                let problem = "has a post-processor that does more than add special tokens, so \
                               BOS cannot be overridden";
                return Err(Error::file(&self.path, problem));
            }
            // The user has decided, so the warning about the conflict is obsolete.
            self.remarks.retain(|remark| remark.kind != ADD_BOS);
        }
        self.bos = bos;
        Ok(())
    }

    /// The ids of `text`.
    ///
    /// `add_special_tokens` adds the special tokens of a bare text (usually BOS in front). It must
    /// be false for the output of a chat template, which already contains them. Special tokens
    /// written in the text are recognised in either case.
    ///
    /// # Errors
    /// The tokenizer cannot encode the text.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        if let (true, Some(bos), Some(id), Some(framing)) =
            (add_special_tokens, self.bos, self.bos_id(), &self.framing)
        {
            let mut ids: Vec<u32> = framing.front.iter().copied().filter(|i| *i != id).collect();
            ids.extend(self.encode(text, false)?);
            ids.extend(&framing.back);
            if bos && ids.first() != Some(&id) {
                ids.insert(0, id);
            }
            return Ok(ids);
        }
        self.ids(|| {
            let encoding = self.inner.encode_fast(text, add_special_tokens)?;
            Ok(encoding.get_ids().to_vec())
        })
    }

    /// The ids of a text that continues another, such as an answer after its prompt.
    ///
    /// No special tokens are added, and no `▁` or space before the first character where the
    /// tokenizer would put one at the start of a text.
    ///
    /// # Errors
    /// The tokenizer cannot encode the text.
    pub fn encode_continuation(&self, text: &str) -> Result<Vec<u32>> {
        self.ids(|| continuation::encode(&self.inner, text))
    }

    fn ids(&self, encode: impl FnOnce() -> tokenizers::Result<Vec<u32>>) -> Result<Vec<u32>> {
        guarded(encode)
            .map_err(|problem| Error::file(&self.path, format!("cannot encode a text: {problem}")))
    }

    /// The text of `ids`, including special tokens. Ids outside the vocabulary are skipped, as in
    /// HuggingFace.
    ///
    /// # Errors
    /// The decoder of `tokenizer.json` fails on these tokens.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        guarded(|| self.inner.decode(ids, false)).map_err(|problem| {
            Error::file(&self.path, format!("cannot decode token ids: {problem}"))
        })
    }

    /// A decoder for ids that arrive one by one, to show a generation while it runs. It holds a
    /// clone of the tokenizer.
    pub fn decode_stream(&self) -> DecodeStream {
        DecodeStream::new(self)
    }

    /// The text of one token in the middle of a text, including a leading space. Bytes that do not
    /// form whole characters are written as `<0xE4>`, an id outside the vocabulary as
    /// `<unknown 123>`.
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

    /// The bytes that each id < `vocab` adds in the middle of a text, which need not be whole
    /// characters. Empty for special tokens and ids without a token: they add nothing that a user
    /// reads.
    pub fn bytes_of_tokens(&self, vocab: usize) -> Vec<Vec<u8>> {
        let added = self.inner.get_added_tokens_decoder();
        let bytes = |id: u32| {
            let special = added.get(&id).is_some_and(|token| token.special);
            let token = self.inner.id_to_token(id).filter(|_| !special)?;
            let text = self.text_after_anchor(id);
            match text.filter(|text| !text.contains(char::REPLACEMENT_CHARACTER)) {
                Some(text) => Some(text.into_bytes()),
                None if token.contains(char::REPLACEMENT_CHARACTER) => Some(token.into_bytes()),
                None => token_bytes(&token),
            }
        };
        (0..).take(vocab).map(|id| bytes(id).unwrap_or_default()).collect()
    }

    /// The text of a token decoded after the anchor token. Decoders treat the first token of a text
    /// differently: Llama 2 drops its space.
    fn text_after_anchor(&self, id: u32) -> Option<String> {
        let anchor = self.anchor?;
        let before = self.decode(&[anchor]).ok()?;
        let both = self.decode(&[anchor, id]).ok()?;
        Some(both.strip_prefix(&before)?.to_owned())
    }

    /// The vocabulary entry of an id as written in `tokenizer.json` (`Ġthe`, `▁the`, `<0x0A>`).
    /// Two tokenizers assign an id the same token if these strings are equal.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The id of a vocabulary entry or added token.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Number of vocabulary entries and added tokens (HuggingFace's `len(tokenizer)`). The model's
    /// `vocab_size` may be larger because embeddings are often padded.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The special tokens named by the tokenizer's files.
    pub fn special_tokens(&self) -> &SpecialTokens {
        &self.special
    }

    /// Id of the BOS token, if the files name one.
    pub fn bos_id(&self) -> Option<u32> {
        self.special.bos.as_deref().and_then(|token| self.token_to_id(token))
    }

    /// Id of the tokenizer's EOS token, if the files name one. The tokens that end a generation
    /// are listed in `generation_config.json` and `config.json` and may differ.
    pub fn eos_id(&self) -> Option<u32> {
        self.special.eos.as_deref().and_then(|token| self.token_to_id(token))
    }

    /// The `tokenizer.json` this was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Kind of the remark about `add_bos_token`.
const ADD_BOS: &str = "add-bos-token";

/// Rejects ids that begin with two BOS tokens.
///
/// This happens when the output of a chat template, which already contains BOS, is tokenized with
/// special tokens added. The second BOS moves the primary sink.
///
/// # Errors
/// The first two ids are both `bos_id`.
pub fn check_bos(ids: &[u32], bos_id: u32) -> Result<()> {
    match ids {
        [first, second, ..] if *first == bos_id && *second == bos_id => {
            Err(Error::Request(format!(
                "the token ids begin with BOS ({bos_id}) twice: the text already has one (a chat \
             template writes it) and the tokenizer added another, which would move the primary \
             sink; remove one of them"
            )))
        }
        _ => Ok(()),
    }
}
