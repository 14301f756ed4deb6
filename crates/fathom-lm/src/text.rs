//! Encoding and decoding with a checkpoint's tokenizer and chat template.

use std::path::Path;
use std::sync::Arc;

use fathom_model::{
    ChatTemplate, Conversation, Encoded, Error, Message, PromptContent, PromptOptions, Remark,
    Result, TextEncoder, Tokenizer,
};

/// The input of a model: a text, a conversation or token ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A text, which becomes one user message if there is a chat template, or a conversation.
    Prompt(PromptContent),
    /// A text that bypasses the chat template. The tokenizer adds its special tokens (BOS).
    Bare(String),
    /// Token ids, used unchanged.
    Ids(Vec<u32>),
}

impl From<&str> for Input {
    fn from(text: &str) -> Input {
        Input::from(text.to_owned())
    }
}

impl From<String> for Input {
    fn from(text: String) -> Input {
        Input::Prompt(PromptContent::Text(text))
    }
}

impl From<PromptContent> for Input {
    fn from(content: PromptContent) -> Input {
        Input::Prompt(content)
    }
}

impl From<Conversation> for Input {
    fn from(conversation: Conversation) -> Input {
        Input::Prompt(PromptContent::Messages(conversation))
    }
}

impl From<Vec<Message>> for Input {
    fn from(messages: Vec<Message>) -> Input {
        Input::from(Conversation::from(messages))
    }
}

impl From<Vec<u32>> for Input {
    fn from(ids: Vec<u32>) -> Input {
        Input::Ids(ids)
    }
}

impl From<&[u32]> for Input {
    fn from(ids: &[u32]) -> Input {
        Input::Ids(ids.to_vec())
    }
}

/// The tokenizer and chat template of a checkpoint. Both may be absent; token ids need neither.
#[derive(Default)]
pub struct TextFiles {
    /// The tokenizer: `tokenizer.json` and the files that go with it.
    pub tokenizer: Option<Arc<Tokenizer>>,
    /// The chat template. `None`: prompts are bare text.
    pub template: Option<ChatTemplate>,
    /// The user's prompt options.
    pub options: PromptOptions,
    /// Remarks about templates in the checkpoint that are not read.
    unread: Vec<Remark>,
}

impl TextFiles {
    /// Reads the tokenizer in `dir` and, unless `bare_text`, the chat template.
    ///
    /// # Errors
    /// Unusable files; options that would have no effect with these files.
    pub fn from_dir(dir: &Path, bare_text: bool, options: PromptOptions) -> Result<TextFiles> {
        let template = if bare_text { None } else { ChatTemplate::from_dir(dir)? };
        let unread = match (&template, bare_text) {
            (None, false) => ChatTemplate::unread(dir),
            _ => Vec::new(),
        };
        let mut tokenizer = Tokenizer::find(dir)?;
        options.check(tokenizer.as_ref(), template.as_ref())?;
        if let Some(tokenizer) = &mut tokenizer {
            tokenizer.set_bos(options.bos)?;
        }
        Ok(TextFiles { tokenizer: tokenizer.map(Arc::new), template, options, unread })
    }

    /// Remarks about the files.
    pub fn remarks(&self) -> impl Iterator<Item = Remark> {
        let tokenizer = self.tokenizer.iter().flat_map(|tokenizer| tokenizer.remarks());
        let template = self.template.iter().flat_map(ChatTemplate::remarks);
        tokenizer.chain(template).chain(&self.unread).cloned()
    }

    /// The encoder for a model with a vocabulary of `vocab_size` ids.
    pub fn encoder(&self, vocab_size: usize) -> TextEncoder<'_> {
        TextEncoder {
            tokenizer: self.tokenizer.as_deref(),
            template: self.template.as_ref(),
            render: self.options.render(),
            vocab_size,
        }
    }

    /// The token ids of an input up to where the answer begins, each below `vocab_size`. The system
    /// message of the options is included.
    ///
    /// # Errors
    /// No tokenizer for a text, or no chat template for messages; a template that fails; no ids, or
    /// one outside the vocabulary.
    pub fn encode(&self, input: impl Into<Input>, vocab_size: usize) -> Result<Encoded> {
        let encoder = self.encoder(vocab_size);
        let encoded = match input.into() {
            Input::Ids(ids) if ids.is_empty() => {
                return Err(Error::Request(
                    "there are no token ids; expected at least one".to_owned(),
                ));
            }
            Input::Ids(ids) => Encoded::from(ids),
            Input::Bare(text) => TextEncoder { template: None, ..self.encoder(vocab_size) }
                .prompt(&PromptContent::Text(text))?,
            Input::Prompt(content) => encoder.prompt(&self.with_system(content))?,
        };
        encoder.check_ids(&encoded.ids)?;
        Ok(encoded)
    }

    /// Adds the system message of the options to a prompt that has none.
    pub(crate) fn with_system(&self, content: PromptContent) -> PromptContent {
        match &self.options.system {
            Some(system) => content.with_system(system),
            None => content,
        }
    }

    /// The text of token ids, special tokens included.
    ///
    /// # Errors
    /// No tokenizer, or one that fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        match &self.tokenizer {
            Some(tokenizer) => tokenizer.decode(ids),
            None => Err(Error::Request(
                "token ids cannot be decoded: the model has no tokenizer.json".to_owned(),
            )),
        }
    }

    /// The text of one token id, if there is a tokenizer.
    pub fn token_text(&self, id: u32) -> Option<String> {
        self.tokenizer.as_ref().map(|tokenizer| tokenizer.token_text(id))
    }
}
