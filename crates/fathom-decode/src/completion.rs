//! A text while it is being generated, and where it ends.

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
    /// As many tokens as were asked for.
    Length,
}

/// Told every committed token; answers whether it completes a stop string.
pub type StopCheck = Box<dyn FnMut(u32) -> Result<bool> + Send>;

/// Where a text ends.
#[derive(Default)]
pub struct EndRules {
    /// Tokens that end the text; empty to ignore them.
    pub eos: Arc<[u32]>,
    /// Other tokens that end the text.
    pub stop_tokens: Arc<[u32]>,
    /// Most tokens after the prompt.
    pub max_tokens: usize,
    /// Stop strings.
    pub stop: Option<StopCheck>,
}

/// A prompt and the tokens the target has committed to after it. Drafts are never in here.
pub struct Completion {
    tokens: Vec<u32>,
    prompt_len: usize,
    end: EndRules,
    finish: Option<Finish>,
}

impl Completion {
    /// A prompt to be continued. `end.max_tokens` of 0 is an ended text.
    pub fn new(prompt: Vec<u32>, end: EndRules) -> Completion {
        let finish = (end.max_tokens == 0).then_some(Finish::Length);
        Completion { prompt_len: prompt.len(), tokens: prompt, end, finish }
    }

    /// Prompt and text.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The text alone.
    pub fn generated(&self) -> &[u32] {
        &self.tokens[self.prompt_len..]
    }

    /// How many more tokens the text may get.
    pub fn remaining(&self) -> usize {
        match self.finish {
            Some(_) => 0,
            None => self.end.max_tokens.saturating_sub(self.generated().len()),
        }
    }

    /// Takes the text back to its prompt. Not for one with a stop check, which remembers what it
    /// was told.
    pub fn rewind(&mut self) {
        self.tokens.truncate(self.prompt_len);
        self.finish = (self.end.max_tokens == 0).then_some(Finish::Length);
    }

    /// Why the text ended, if it has.
    pub fn finish(&self) -> Option<Finish> {
        self.finish
    }

    /// Whether the text has ended.
    pub fn is_finished(&self) -> bool {
        self.finish.is_some()
    }

    /// Appends a token the target has committed to. A finished text stays as it is.
    ///
    /// # Errors
    /// What the stop check fails on.
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
