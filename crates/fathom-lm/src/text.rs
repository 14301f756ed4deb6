//! Text to token ids and back, by a checkpoint's own files.

use std::path::Path;
use std::sync::Arc;

use fathom_model::{
    ChatTemplate, Conversation, Encoded, Error, Message, PromptContent, PromptOptions, Remark,
    Result, TextEncoder, Tokenizer,
};

/// What a model is given: a text, a conversation, or the token ids themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// One text, which a chat template takes as a user message, or a conversation.
    Prompt(PromptContent),
    /// One text as it is, whatever the chat template: only the special tokens of bare text are
    /// added.
    Bare(String),
    /// Token ids, as they are.
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

/// The part of a checkpoint that turns text into ids. All of it may be absent: who gives ids needs
/// none.
#[derive(Default)]
pub struct TextFiles {
    /// `tokenizer.json` with the files beside it.
    pub tokenizer: Option<Arc<Tokenizer>>,
    /// The chat template; `None` takes prompts as bare text.
    pub template: Option<ChatTemplate>,
    /// What the user says about prompts.
    pub options: PromptOptions,
    /// Templates that are there and not read.
    unread: Vec<Remark>,
}

impl TextFiles {
    /// Reads the tokenizer of `dir` and, unless `bare_text`, its chat template.
    ///
    /// # Errors
    /// Files that cannot be used; options that would have no effect on these.
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

    /// What is remarkable about them.
    pub fn remarks(&self) -> impl Iterator<Item = Remark> {
        let tokenizer = self.tokenizer.iter().flat_map(|tokenizer| tokenizer.remarks());
        let template = self.template.iter().flat_map(ChatTemplate::remarks);
        tokenizer.chain(template).chain(&self.unread).cloned()
    }

    /// The encoder for a model with `vocab_size` embeddings.
    pub fn encoder(&self, vocab_size: usize) -> TextEncoder<'_> {
        TextEncoder {
            tokenizer: self.tokenizer.as_deref(),
            template: self.template.as_ref(),
            render: self.options.render(),
            vocab_size,
        }
    }

    /// The ids of an input up to where the answer begins, each below `vocab_size`, with the system
    /// message that was asked for.
    ///
    /// # Errors
    /// No tokenizer for a text, or no chat template for messages; a template that fails; ids a
    /// model of `vocab_size` embeddings cannot be given.
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

    /// A prompt with the system message that was asked for, unless it has one.
    pub(crate) fn with_system(&self, content: PromptContent) -> PromptContent {
        match &self.options.system {
            Some(system) => content.with_system(system),
            None => content,
        }
    }

    /// The text of token ids, special tokens included.
    ///
    /// # Errors
    /// No tokenizer, or one that cannot.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        match &self.tokenizer {
            Some(tokenizer) => tokenizer.decode(ids),
            None => Err(Error::Request(
                "token ids cannot be made text: the model has no tokenizer.json".to_owned(),
            )),
        }
    }

    /// What one token id stands for, where there is a tokenizer.
    pub fn token_text(&self, id: u32) -> Option<String> {
        self.tokenizer.as_ref().map(|tokenizer| tokenizer.token_text(id))
    }
}
