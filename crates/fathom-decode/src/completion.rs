//! A text during generation, and its end conditions.

use std::fmt;
use std::sync::Arc;

use fathom_model::Result;

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// An end-of-text token, which is the last of the tokens.
    Eos,
    /// A stop token, which is the last of the tokens.
    StopToken,
    /// A stop string was completed by the last token.
    Stop,
    /// The maximum number of tokens.
    Length,
}

/// Called with every committed token. Returns whether it completes a stop string.
pub type StopCheck = Box<dyn FnMut(u32) -> Result<bool> + Send>;

/// End conditions of a text.
#[derive(Default)]
pub struct EndRules {
    /// Tokens that end the text; empty to ignore them.
    pub eos: Arc<[u32]>,
    /// Other tokens that end the text.
    pub stop_tokens: Arc<[u32]>,
    /// Maximum number of tokens after the prompt.
    pub max_tokens: usize,
    /// Check for stop strings.
    pub stop: Option<StopCheck>,
}

/// A prompt and the committed tokens after it. It never holds drafts.
pub struct Completion {
    tokens: Vec<u32>,
    prompt_len: usize,
    end: EndRules,
    finish: Option<Finish>,
}

impl Completion {
    /// A prompt to continue. With `end.max_tokens` = 0 the text has ended.
    pub fn new(prompt: Vec<u32>, end: EndRules) -> Completion {
        let finish = (end.max_tokens == 0).then_some(Finish::Length);
        Completion { prompt_len: prompt.len(), tokens: prompt, end, finish }
    }

    /// Prompt and generated tokens.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Generated tokens.
    pub fn generated(&self) -> &[u32] {
        &self.tokens[self.prompt_len..]
    }

    /// Maximum number of tokens that can still be committed.
    pub fn remaining(&self) -> usize {
        match self.finish {
            Some(_) => 0,
            None => self.end.max_tokens.saturating_sub(self.generated().len()),
        }
    }

    /// Resets the text to its prompt. Not for texts with a stop check, which has state.
    pub fn rewind(&mut self) {
        self.tokens.truncate(self.prompt_len);
        self.finish = (self.end.max_tokens == 0).then_some(Finish::Length);
    }

    /// Why the text ended. `None` if it has not.
    pub fn finish(&self) -> Option<Finish> {
        self.finish
    }

    /// Whether the text has ended.
    pub fn is_finished(&self) -> bool {
        self.finish.is_some()
    }

    /// Commits a token. No effect if the text has ended.
    ///
    /// # Errors
    /// Errors of the stop check.
    pub fn commit(&mut self, token: u32) -> Result<()> {
        if self.is_finished() {
            return Ok(());
        }
        self.tokens.push(token);
        let stopped = match &mut self.end.stop {
            Some(completes_stop) => completes_stop(token)?,
            None => false,
        };
        self.finish = if self.end.eos.contains(&token) {
            Some(Finish::Eos)
        } else if self.end.stop_tokens.contains(&token) {
            Some(Finish::StopToken)
        } else if stopped {
            Some(Finish::Stop)
        } else if self.generated().len() >= self.end.max_tokens {
            Some(Finish::Length)
        } else {
            None
        };
        Ok(())
    }
}

impl fmt::Debug for Completion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Completion")
            .field("tokens", &self.tokens)
            .field("prompt_len", &self.prompt_len)
            .field("finish", &self.finish)
            .finish_non_exhaustive()
    }
}
