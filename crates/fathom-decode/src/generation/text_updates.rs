//! A request's text as it comes.

use std::time::Duration;

use fathom_model::{Result, Tokenizer};

use crate::engine::{Canceller, Done, EngineHandle, Generating, Request, Update};
use crate::{Finish, SamplingParams, TextStream};

/// What a step added to a text.
#[derive(Clone, Debug, PartialEq)]
pub struct TextUpdate {
    /// Text that is certain by now: never half a character, never part of a stop string, and
    /// without the token that ended it.
    pub text: String,
    /// The tokens it got, with the token that ended it.
    pub tokens: Vec<u32>,
    /// Set with the last of the text.
    pub done: Option<Done>,
}

/// Makes text of one request's updates, wherever they are received.
pub struct UpdateDecoder {
    /// `None` after the last update.
    stream: Option<TextStream>,
}

impl UpdateDecoder {
    /// For a request with `params` to the model that `tokenizer` belongs to.
    pub fn new(tokenizer: &Tokenizer, params: &SamplingParams) -> UpdateDecoder {
        UpdateDecoder { stream: Some(TextStream::of_request(tokenizer, params)) }
    }

    /// The text of the next update. What comes after the last has none.
    ///
    /// # Errors
    /// What the tokenizer fails on.
    pub fn take(&mut self, update: Update) -> Result<TextUpdate> {
        let Update { tokens, done, .. } = update;
        let mut text = String::new();
        let finish = done.as_ref().map(|done| done.finish);
        // The token that ends a text is no part of it.
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
        Ok(TextUpdate { text, tokens, done })
    }
}

/// A request to an engine on a thread of its own, as text: an iterator that waits for each update.
///
/// The last update has [`TextUpdate::done`]. A request that fails ends with its error. Dropping it
/// cancels the request, unless that has ended.
///
/// ```
/// use fathom_decode::SamplingParams;
/// use fathom_decode::engine::Request;
/// use fathom_decode::generation::TextUpdates;
/// use fathom_model::Tokenizer;
/// # use fathom_decode::engine::{Engine, EngineOptions, Gamma, ModeChoice};
/// # use fathom_decode::Mode;
/// # use fathom_kernels::{Cpu, CpuOptions};
/// # use fathom_model::Model;
/// # use std::path::Path;
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models/draft");
/// # let cpu = Cpu::new(CpuOptions { threads: Some(1), ..CpuOptions::default() })?;
/// # let target = Model::load(&dir, cpu)?;
/// let tokenizer = Tokenizer::from_dir(&dir)?;
/// # let options = EngineOptions {
/// #     mode: ModeChoice::Always(Mode::Ar),
/// #     gamma: Gamma::Fixed(1),
/// #     batch_size: 4,
/// #     kv_pages: 100,
/// #     vocab: tokenizer.vocab_size(),
/// # };
/// let engine = Engine::new(target, None, options)?.spawn()?;
/// let stop = vec![".".to_owned()];
/// let params = SamplingParams { max_tokens: 40, stop, ..SamplingParams::default() };
/// let prompt = tokenizer.encode("Mia has 3 boxes with 12 pencils each.", false)?;
/// let request = Request { id: 0, prompt, params, eos: vec![2].into(), stop: None, watcher: None };
///
/// let mut text = String::new();
/// for update in TextUpdates::submit(&engine, &tokenizer, request)? {
///     text += &update?.text; // to show at once
/// }
/// assert!(!text.is_empty() && !text.contains('.'), "{text}");
/// # Ok(())
/// # }
/// ```
pub struct TextUpdates {
    updates: Generating,
    decoder: UpdateDecoder,
}

impl TextUpdates {
    /// Submits `request` to `engine`, whose target `tokenizer` belongs to. Its stop strings are
    /// watched for; [`Request::stop`] need not be set.
    ///
    /// # Errors
    /// As [`EngineHandle::submit`].
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

    /// The next update if it is there already: `None` if not, and after the last.
    ///
    /// # Errors
    /// What the request failed on, once.
    pub fn try_next(&mut self) -> Result<Option<TextUpdate>> {
        let update = self.updates.try_next()?;
        update.map(|update| self.decode(update)).transpose()
    }

    /// The next update if it comes within `timeout`: `None` if not, and after the last.
    ///
    /// # Errors
    /// What the request failed on, once.
    pub fn next_timeout(&mut self, timeout: Duration) -> Result<Option<TextUpdate>> {
        let update = self.updates.next_timeout(timeout)?;
        update.map(|update| self.decode(update)).transpose()
    }

    /// Whether no update will come any more.
    pub fn has_ended(&self) -> bool {
        self.updates.has_ended()
    }

    /// Ends the request where it is. No update comes any more.
    pub fn cancel(&mut self) {
        self.updates.cancel();
    }

    /// Cancels this request from elsewhere.
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
