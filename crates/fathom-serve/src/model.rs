//! What is served: an engine, and what turns requests into its prompts.

use std::sync::Arc;

use fathom_decode::SamplingParams;
use fathom_decode::engine::EngineHandle;
use fathom_model::{
    ChatTemplate, Conversation, Encoded, Error, PromptContent, PromptOptions, Result, TextEncoder,
    Tokenizer,
};

use crate::sinks::SinkSource;

/// A model to serve.
#[derive(Clone)]
pub struct ServedModel {
    /// The name by which clients ask for it.
    pub name: String,
    /// Fingerprint of its weights, part of `system_fingerprint`.
    pub fingerprint: String,
    /// The engine that runs it.
    pub engine: EngineHandle,
    /// The target's tokenizer.
    pub tokenizer: Tokenizer,
    /// The target's chat template. Without one, only text can be completed.
    pub template: Option<ChatTemplate>,
    /// How prompts are formatted.
    pub prompts: PromptOptions,
    /// The number of token ids.
    pub vocab: usize,
    /// The largest number of tokens of prompt and text together.
    pub context: usize,
    /// Tokens that end a text.
    pub eos: Arc<[u32]>,
    /// Parameters of requests that do not set them.
    pub defaults: SamplingParams,
    /// Finds attention sinks during generation; `None` if that is not possible.
    pub sinks: Option<Arc<dyn SinkSource>>,
}

impl ServedModel {
    /// The token ids of a conversation, up to where the answer begins.
    ///
    /// # Errors
    /// There is no chat template, or it fails or has no use for a field.
    pub fn encode_chat(&self, conversation: Conversation) -> Result<Encoded> {
        let content = PromptContent::Messages(conversation);
        let content = match &self.prompts.system {
            Some(system) => content.with_system(system),
            None => content,
        };
        let encoder = TextEncoder {
            tokenizer: Some(&self.tokenizer),
            template: self.template.as_ref(),
            render: self.prompts.render(),
            vocab_size: self.vocab,
        };
        let encoded = encoder.prompt(&content)?;
        encoder.check_ids(&encoded.ids)?;
        Ok(encoded)
    }

    /// The token ids of a bare text.
    ///
    /// # Errors
    /// The text cannot be encoded, or has no tokens.
    pub fn encode_text(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        let ids = self.tokenizer.encode(text, add_special_tokens)?;
        self.check_ids(&ids)?;
        Ok(ids)
    }

    /// Checks that there are token ids, all in the vocabulary.
    ///
    /// # Errors
    /// No ids, or one outside.
    pub fn check_ids(&self, ids: &[u32]) -> Result<()> {
        if ids.is_empty() {
            return Err(Error::Request("has no tokens; expected at least one".to_owned()));
        }
        match ids.iter().find(|&&id| id as usize >= self.vocab) {
            None => Ok(()),
            Some(id) => {
                let vocab = self.vocab;
                Err(Error::Request(format!("has the token {id}; expected ids below {vocab}")))
            }
        }
    }
}
