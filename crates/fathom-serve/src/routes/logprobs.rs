//! Log-probabilities of a piece of text, in OpenAI's two formats.

use std::sync::Arc;

use fathom_decode::TokenLogprobs;
use fathom_model::Tokenizer;

use crate::app::App;
use crate::generation::Piece;
use crate::request::completion::Echoed;
use crate::types::logprobs::{
    ChatLogprobs, ChatTokenLogprob, CompletionLogprobs, LogprobsByText, TopLogprob,
};

/// Writes log-probabilities.
#[derive(Clone)]
pub struct Writer {
    tokenizer: Tokenizer,
    /// The bytes of each token.
    bytes: Arc<[Vec<u8>]>,
}

/// JSON has no -∞. OpenAI writes this number instead.
const NEVER: f32 = -9999.0;

fn finite(logprob: f32) -> f32 {
    logprob.max(NEVER)
}

impl Writer {
    /// A writer for the tokens of the served model. The first one visits the whole vocabulary.
    pub fn new(app: &App) -> Writer {
        Writer { tokenizer: app.model.tokenizer.clone(), bytes: app.token_bytes() }
    }

    /// Those of a chat answer.
    pub fn chat(&self, piece: &Piece) -> ChatLogprobs {
        let rows = piece.tokens.iter().zip(&piece.logprobs);
        let content = rows.map(|(token, logprobs)| {
            let TopLogprob { token, logprob, bytes } = self.top((token.id, logprobs.logprob));
            let top_logprobs = logprobs.top.iter().map(|&top| self.top(top)).collect();
            ChatTokenLogprob { token, logprob, bytes, top_logprobs }
        });
        ChatLogprobs { content: content.collect(), refusal: None }
    }

    fn top(&self, (id, logprob): (u32, f32)) -> TopLogprob {
        let token = self.tokenizer.token_text(id);
        // Special tokens have no bytes in a text; those of their names stand for them.
        let bytes = self.bytes.get(id as usize).filter(|bytes| !bytes.is_empty());
        let bytes = bytes.map_or_else(|| token.clone().into_bytes(), Clone::clone);
        TopLogprob { token, logprob: finite(logprob), bytes }
    }

    /// Those of a completion, and of the `prompt` that it begins with: nothing comes before the
    /// first token of that, so it has none. `offset` is the number of characters of the tokens
    /// before; the number with these is left there.
    pub fn completion(
        &self,
        piece: &Piece,
        prompt: Option<&Echoed>,
        offset: &mut usize,
    ) -> CompletionLogprobs {
        let prompt = prompt.map_or(&[][..], |prompt| &*prompt.ids);
        let known = piece.prompt_logprobs.iter().map(Some);
        let prompt = prompt.iter().copied().zip([None].into_iter().chain(known));
        let written = piece.tokens.iter().map(|token| token.id);
        let written = written.zip(piece.logprobs.iter().map(Some));
        let mut all = CompletionLogprobs::default();
        for (id, logprobs) in prompt.chain(written) {
            let text = self.tokenizer.token_text(id);
            all.top_logprobs.push(logprobs.map(|logprobs| self.by_text(id, logprobs)));
            all.token_logprobs.push(logprobs.map(|logprobs| finite(logprobs.logprob)));
            all.text_offset.push(*offset);
            *offset += text.chars().count();
            all.tokens.push(text);
        }
        all
    }

    /// The most likely tokens and the chosen one, by text. Of different tokens with one text the
    /// most likely counts.
    fn by_text(&self, chosen: u32, logprobs: &TokenLogprobs) -> LogprobsByText {
        let mut by_text: Vec<(String, f32)> = Vec::new();
        for &(id, logprob) in logprobs.top.iter().chain([&(chosen, logprobs.logprob)]) {
            let text = self.tokenizer.token_text(id);
            if by_text.iter().all(|(known, _)| *known != text) {
                by_text.push((text, finite(logprob)));
            }
        }
        LogprobsByText(by_text)
    }
}
