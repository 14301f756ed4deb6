//! Text to token ids and back, through a checkpoint's own `tokenizer.json` and what transformers 5
//! lays over it from the files beside it (`docs/parity.md`).

mod continuation;
pub(crate) mod declared;
pub(crate) mod files;
mod framing;
mod overlay;
mod token;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use self::declared::Declared;
pub use self::files::TokenizerFiles;
use self::files::{CONFIG, TOKENIZER};
use self::framing::Framing;
use self::overlay::Listed;
use crate::decode_stream::DecodeStream;
use crate::sanitize::sanitize;
use crate::special_tokens::SpecialTokens;
use crate::token_text::token_bytes;
use crate::{Error, Remark, Result};

/// How to come by a `tokenizer.json`.
pub(crate) const NO_TOKENIZER: &str = "copy it from the model's repository, or convert a slow tokenizer \
     (tokenizer.model, tekken.json) with `AutoTokenizer.from_pretrained(...).save_pretrained(...)`";

/// A checkpoint's tokenizer: the ids transformers 5 gives. A clone is cheap: it shares the
/// vocabulary.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<tokenizers::Tokenizer>,
    path: PathBuf,
    special: SpecialTokens,
    /// What the post-processor puts around a text, where it is of that form.
    framing: Option<Framing>,
    /// Whether the user wants BOS in front of a bare text, whatever the post-processor does.
    bos: Option<bool>,
    /// A token put before another to see how that one decodes in the middle of a text.
    anchor: Option<u32>,
    remarks: Vec<Remark>,
}

/// The parts of `tokenizer.json` that are read beside the library.
#[derive(Deserialize)]
struct Outline {
    #[serde(default)]
    added_tokens: Vec<Listed>,
}

impl Tokenizer {
    /// Loads `tokenizer.json` and lays over it the tokens that `tokenizer_config.json`,
    /// `added_tokens.json` and `special_tokens_map.json` declare, as transformers 5 does.
    ///
    /// Truncation and padding stored in `tokenizer.json` are switched off, as HuggingFace does
    /// unless asked: the ids of a text are all its ids.
    ///
    /// # Errors
    /// No `tokenizer.json`, or files that cannot be used.
    pub fn from_dir(dir: &Path) -> Result<Tokenizer> {
        Tokenizer::find(dir)?.ok_or_else(|| {
            let problem = format!("does not exist; {NO_TOKENIZER}");
            Error::file(&dir.join(TOKENIZER), problem)
        })
    }

    /// [`Tokenizer::from_dir`], with `None` where the directory has no `tokenizer.json`:
    /// a checkpoint can be scanned on explicit token ids without one.
    ///
    /// # Errors
    /// Files that cannot be used.
    pub fn find(dir: &Path) -> Result<Option<Tokenizer>> {
        match TokenizerFiles::read(dir)? {
            Some(files) => Tokenizer::from_files(&files).map(Some),
            None => Ok(None),
        }
    }

    /// [`Tokenizer::from_dir`], from the files' texts.
    ///
    /// # Errors
    /// Files that cannot be used.
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

        let beside = files.beside()?;
        let mut declared = Declared::gather(&beside)?;
        padding.into_iter().for_each(|token| declared.default_pad(token));
        let (declared, remarks) = overlay::lay_over(&mut inner, &files.dir, declared, listed)?;
        let special = SpecialTokens::from(&declared);
        if let Some(Value::Bool(split)) = beside.config.get("split_special_tokens") {
            inner.set_encode_special_tokens(*split);
        }
        let framing = guarded(|| Framing::of(&inner)).map_err(|problem| unusable(&problem))?;
        let inner = Arc::new(inner);
        let mut tokenizer =
            Tokenizer { inner, path, special, framing, bos: None, anchor: None, remarks };
        tokenizer.anchor = tokenizer.encode("a", false)?.last().copied();
        // A post-processor that cannot work says so now and not in the middle of a run.
        tokenizer.encode("a", true)?;
        tokenizer.remark_on_config(&files.dir.join(CONFIG), &beside.config);
        Ok(tokenizer)
    }

    /// Keys of `tokenizer_config.json` that say otherwise than what is done.
    fn remark_on_config(&mut self, path: &Path, config: &serde_json::Map<String, Value>) {
        let says = |key: &str| config.get(key).and_then(Value::as_bool);
        let mut remark = |kind, text| self.remarks.push(Remark::file(kind, path, text));
        if says("fix_mistral_regex") == Some(true) {
            let text = "`fix_mistral_regex` is not applied: tokenizer.json is used as it is";
            remark("fix-mistral-regex", text.to_owned());
        }
        let Some(framing) = &self.framing else { return };
        let id = |token: &Option<String>| self.inner.token_to_id(token.as_deref()?);
        let bos = id(&self.special.bos).is_some_and(|id| framing.front.contains(&id));
        let eos = id(&self.special.eos).is_some_and(|id| framing.back.contains(&id));
        let rule = "transformers 5 goes by the post-processor of tokenizer.json";
        if let Some(said) = says("add_bos_token").filter(|said| *said != bos) {
            let (done, other) = match bos {
                true => ("BOS", "`--bos no` leaves it out"),
                false => ("no BOS", "`--bos yes` adds it"),
            };
            let text = format!("`add_bos_token` is {said}, but {done} is added: {rule}; {other}");
            remark(ADD_BOS, text);
        }
        if let Some(said) = says("add_eos_token").filter(|said| *said != eos) {
            let done = if eos { "EOS" } else { "no EOS" };
            let text = format!("`add_eos_token` is {said}, but {done} is added: {rule}");
            remark("add-eos-token", text);
        }
    }

    /// What was found in the files that a user should know.
    pub fn remarks(&self) -> &[Remark] {
        &self.remarks
    }

    /// Decides about BOS in front of a bare text, whatever the post-processor of `tokenizer.json`
    /// does: `Some(true)` for exactly one, `Some(false)` for none but what the text itself holds,
    /// `None` for what the post-processor does.
    ///
    /// # Errors
    /// No BOS is named, or the post-processor does not put a text once between special tokens.
    pub fn set_bos(&mut self, bos: Option<bool>) -> Result<()> {
        if bos.is_some() {
            if self.bos_id().is_none() {
                let problem = "names no BOS token that could be added or left out";
                return Err(Error::file(&self.path.with_file_name(CONFIG), problem));
            }
            if self.framing.is_none() {
                let problem = "has a post-processor about whose BOS nothing can be decided";
                return Err(Error::file(&self.path, problem));
            }
            // What was doubtful is decided.
            self.remarks.retain(|remark| remark.kind != ADD_BOS);
        }
        self.bos = bos;
        Ok(())
    }

    /// The ids of `text`. Special tokens written in the text are recognised either way;
    /// `add_special_tokens` says whether to add the ones a bare text gets (usually BOS in front).
    /// After a chat template it must be false: the template has written them already.
    ///
    /// # Errors
    /// A text this tokenizer has no ids for.
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

    /// The ids of a text that goes on from another, such as an answer from its prompt: no special
    /// tokens around it and no mark or space before its first character, where the tokenizer puts
    /// one at the start of a text. Inside the text everything is as ever.
    ///
    /// # Errors
    /// A text this tokenizer has no ids for.
    pub fn encode_continuation(&self, text: &str) -> Result<Vec<u32>> {
        self.ids(|| continuation::encode(&self.inner, text))
    }

    fn ids(&self, encode: impl FnOnce() -> tokenizers::Result<Vec<u32>>) -> Result<Vec<u32>> {
        guarded(encode)
            .map_err(|problem| Error::file(&self.path, format!("cannot encode a text: {problem}")))
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

    /// Text that grows token by token, for showing a generation while it runs. The stream holds a
    /// clone of the tokenizer.
    pub fn decode_stream(&self) -> DecodeStream {
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

/// Kind of the remark about `add_bos_token`.
const ADD_BOS: &str = "add-bos-token";

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
        Ok(result) => result.map_err(|error| sanitize(&error.to_string())),
        Err(_) => Err("one of its parts is malformed".to_owned()),
    }
}
