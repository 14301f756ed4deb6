//! Streaming text of a request.

use std::time::Duration;

use fathom_model::{Result, Tokenizer};

use crate::engine::{
    Canceller, Done, EngineHandle, Request, RequestUpdates, TokenLogprobs, Update,
};
use crate::{Finish, SamplingParams, TextStream};

/// Result of one step for one text.
#[derive(Clone, Debug, PartialEq)]
pub struct TextUpdate {
    /// New text that is final: complete characters, no part of a stop string, and without the token
    /// that ended the text.
    pub text: String,
    /// The new tokens, with the one that ended the text.
    pub tokens: Vec<u32>,
    /// The first `accepted` of `tokens` were drafts.
    pub accepted: usize,
    /// One per token, if requested.
    pub logprobs: Vec<TokenLogprobs>,
    /// Set in the last update.
    pub done: Option<Done>,
}

/// Decodes the updates of one request to text.
pub struct UpdateDecoder {
    /// `None` after the last update.
    stream: Option<TextStream>,
}

impl UpdateDecoder {
    /// A decoder for a request with `params` to the model of `tokenizer`.
    pub fn new(tokenizer: &Tokenizer, params: &SamplingParams) -> UpdateDecoder {
        UpdateDecoder { stream: Some(TextStream::of_request(tokenizer, params)) }
    }

    /// Decodes the next update. Updates after the last one have no text.
    ///
    /// # Errors
    /// Errors of the tokenizer.
    pub fn take(&mut self, update: Update) -> Result<TextUpdate> {
        let Update { tokens, outcome, logprobs, done, .. } = update;
        let accepted = outcome.accepted;
        let mut text = String::new();
        let finish = done.as_ref().map(|done| done.finish);
        // The token that ends a text is not part of it.
        let ends = matches!(finish, Some(Finish::Eos | Finish::StopToken));
        if let Some(stream) = &mut self.stream {
            for &token in &tokens[..tokens.len() - usize::from(ends && !tokens.is_empty())] {
                text += &stream.push(token)?;
            }
        }
        if finish.is_some()
            && let Some(stream) = self.stream.take()
        {
            text += &stream.finish()?;
        }
        Ok(TextUpdate { text, tokens, accepted, logprobs, done })
    }
}

/// The text of a request to an engine on its own thread: an iterator that blocks until the next
/// update.
///
/// The last update has [`TextUpdate::done`]. A failed request ends with its error. Dropping it
/// cancels the request, if it has not ended.
///
/// ```
/// use fathom_decode::SamplingParams;
/// use fathom_decode::engine::Request;
/// use fathom_decode::generation::TextUpdates;
/// use fathom_model::Tokenizer;
/// # use fathom_decode::engine::{Engine, EngineOptions, Gamma, ModeChoice};
/// # use fathom_decode::Mode;
/// # use fathom_kernels::{Cpu, CpuOptions};
/// # use fathom_model::Transformer;
/// # use std::path::Path;
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models/draft");
/// # let cpu = Cpu::new(CpuOptions { threads: Some(1), ..CpuOptions::default() })?;
/// # let target = Transformer::load(&dir, cpu)?;
/// let tokenizer = Tokenizer::from_dir(&dir)?;
/// # let options = EngineOptions {
/// #     mode: ModeChoice::Always(Mode::Ar),
/// #     gamma: Gamma::Fixed(1),
/// #     batch_size: 4,
/// #     kv_pages: 100,
/// #     vocab: tokenizer.vocab_size(),
/// #     prefix_cache: true,
/// # };
/// let engine = Engine::new(target, None, options)?.spawn()?;
/// let stop = vec![".".to_owned()];
/// let params = SamplingParams { max_tokens: 40, stop, ..SamplingParams::default() };
/// let prompt = tokenizer.encode("Mia has 3 boxes with 12 pencils each.", false)?;
/// let request = Request::new(0, prompt, params, vec![2].into());
///
/// let mut text = String::new();
/// for update in TextUpdates::submit(&engine, &tokenizer, request)? {
///     text += &update?.text; // show it at once
/// }
/// assert!(!text.is_empty() && !text.contains('.'), "{text}");
/// # Ok(())
/// # }
/// ```
pub struct TextUpdates {
    updates: RequestUpdates,
    decoder: UpdateDecoder,
}

impl TextUpdates {
    /// Submits `request` to `engine`. `tokenizer` is the one of the engine's target. If
    /// [`Request::stop`] is `None`, a check for the request's stop strings is added.
    ///
    /// # Errors
    /// See [`EngineHandle::submit`].
    pub fn submit(
        engine: &EngineHandle,
        tokenizer: &Tokenizer,
        mut request: Request,
    ) -> Result<TextUpdates> {
        let decoder = UpdateDecoder::new(tokenizer, &request.params);
        if request.stop.is_none() {
            request.stop = TextStream::of_request(tokenizer, &request.params).into_stop_check();
        }
        Ok(TextUpdates { updates: engine.submit(request)?, decoder })
    }

    /// The next update, without waiting. `None` if there is none yet, and after the last.
    ///
    /// # Errors
    /// The error of a failed request, once.
    pub fn try_next(&mut self) -> Result<Option<TextUpdate>> {
        let update = self.updates.try_next()?;
        update.map(|update| self.decode(update)).transpose()
    }

    /// The next update, waiting for at most `timeout`. `None` if none came, and after the last.
    ///
    /// # Errors
    /// The error of a failed request, once.
    pub fn next_timeout(&mut self, timeout: Duration) -> Result<Option<TextUpdate>> {
        let update = self.updates.next_timeout(timeout)?;
        update.map(|update| self.decode(update)).transpose()
    }

    /// Whether there are no more updates.
    pub fn has_ended(&self) -> bool {
        self.updates.has_ended()
    }

    /// Cancels the request. There are no more updates.
    pub fn cancel(&mut self) {
        self.updates.cancel();
    }

    /// A handle to cancel this request from another thread.
    pub fn canceller(&self) -> Canceller {
        self.updates.canceller()
    }

    fn decode(&mut self, update: Update) -> Result<TextUpdate> {
        let text = self.decoder.take(update);
        if text.is_err() {
            self.updates.cancel();
        }
        text
    }
}

impl Iterator for TextUpdates {
    type Item = Result<TextUpdate>;

    fn next(&mut self) -> Option<Result<TextUpdate>> {
        let update = self.updates.next()?;
        Some(update.and_then(|update| self.decode(update)))
    }
}
