//! From a prompt to the ids a model is given.

use crate::chat_template::{ChatTemplate, Message, RenderOptions};
use crate::tokenizer::{NO_TOKENIZER, check_bos};
use crate::{Error, Result, Tokenizer};

/// Everything that decides which ids a text becomes.
pub struct TextEncoder<'a> {
    /// The checkpoint's tokenizer; `None` suffices for traces of explicit ids.
    pub tokenizer: Option<&'a Tokenizer>,
    /// The checkpoint's chat template; `None` takes prompts as bare text.
    pub template: Option<&'a ChatTemplate>,
    /// What the template is given beside the messages. The generation prompt is always added.
    pub render: RenderOptions,
    /// Rows of the model's embedding: ids from here on cannot be looked up.
    pub vocab_size: usize,
}

impl TextEncoder<'_> {
    /// The ids of a prompt up to where the answer begins: through the chat template as one user
    /// message, or without one as bare text with its special tokens.
    ///
    /// # Errors
    /// No tokenizer; a template that fails.
    pub fn prompt_ids(&self, prompt: &str) -> Result<Vec<u32>> {
        match self.template {
            Some(_) => self.chat_ids(&[Message::user(prompt)]),
            None => self.tokenizer()?.encode(prompt, true),
        }
    }

    /// The ids of a conversation up to where the next answer begins.
    ///
    /// # Errors
    /// No tokenizer; no chat template; a template that fails.
    pub fn chat_ids(&self, messages: &[Message]) -> Result<Vec<u32>> {
        let Some(template) = self.template else {
            return Err(Error::Request(
                "messages need a chat template, and the model directory has none".to_owned(),
            ));
        };
        let render = RenderOptions { add_generation_prompt: Some(true), ..self.render.clone() };
        // The template has written every special token there is to be.
        self.tokenizer()?.encode(&template.render(messages, &render)?, false)
    }

    /// The ids of an answer, to follow those of its prompt.
    ///
    /// # Errors
    /// No tokenizer.
    pub fn output_ids(&self, output: &str) -> Result<Vec<u32>> {
        self.tokenizer()?.encode(output, false)
    }

    /// Id of BOS, where a tokenizer names one.
    pub fn bos_id(&self) -> Option<u32> {
        self.tokenizer?.bos_id()
    }

    /// Refuses ids a model cannot be given: none at all, two leading BOS, or one outside its vocabulary.
    ///
    /// # Errors
    /// As said, each naming what was found.
    pub fn check_ids(&self, ids: &[u32]) -> Result<()> {
        if ids.is_empty() {
            return Err(Error::Request("holds no tokens".to_owned()));
        }
        if let Some(bos) = self.bos_id() {
            check_bos(ids, bos)?;
        }
        let outside = |id: &u32| usize::try_from(*id).map_or(true, |id| id >= self.vocab_size);
        match ids.iter().position(outside) {
            Some(position) => Err(Error::Request(format!(
                "token id {} at position {position} is outside the model's vocabulary of {}",
                ids[position], self.vocab_size
            ))),
            None => Ok(()),
        }
    }

    fn tokenizer(&self) -> Result<&Tokenizer> {
        self.tokenizer.ok_or_else(|| {
            Error::Request(format!(
                "holds text, but the model directory has no tokenizer.json to encode it with; \
                 {NO_TOKENIZER}"
            ))
        })
    }
}
