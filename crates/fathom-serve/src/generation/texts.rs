//! The texts of a request in progress.

use std::sync::Arc;
use std::time::Instant;

use fathom_decode::engine::{Canceller, Done, TokenLogprobs, Update};
use fathom_decode::generation::UpdateDecoder;
use fathom_decode::{Finish, Outcome};
use tokio::sync::Notify;

use super::inbox::{Inbox, Pending};
use super::scoring::Scoring;
use super::{Submitted, deadline};
use crate::app::App;
use crate::error::ApiError;
use crate::log::RequestLog;
use crate::request::choices::Choices;
use crate::sinks::{SinkChanges, SinkView, TextSink};
use crate::types::usage::{TextToken, UsageSum};

/// Tokens that are decoded at once, so that a long backlog does not hold up other connections.
const DECODED_AT_ONCE: usize = 256;

/// The texts of one request. Dropping it cancels those that have not ended.
pub struct Texts {
    app: Arc<App>,
    log: Arc<RequestLog>,
    texts: Vec<TextInProgress>,
    ready: Arc<Notify>,
    /// Where to look first, so that no text starves another.
    next: usize,
    choices: Choices,
    /// A text that has ended and whose sinks are being scored.
    scoring: Option<Scoring>,
    /// Tokens and drafts so far.
    pub usage: UsageSum,
}

/// New text of one choice.
#[derive(Debug, Default)]
pub struct Piece {
    /// The number of the choice.
    pub choice: usize,
    /// New text that is final.
    pub text: String,
    /// The new tokens, without the one that ended the text.
    pub tokens: Vec<TextToken>,
    /// One per token, if asked for.
    pub logprobs: Vec<TokenLogprobs>,
    /// Those of the prompt's tokens but the first, in the first piece, if asked for.
    pub prompt_logprobs: Vec<TokenLogprobs>,
    /// New and changed sinks, if asked for.
    pub sinks: Option<Vec<TextSink>>,
    /// Why the text ended, in the last piece.
    pub finish: Option<Finish>,
}

impl Piece {
    /// This piece and the next one of the same text as one.
    pub fn merged(&mut self, next: Piece) -> Piece {
        let mut merged = std::mem::take(self);
        merged.choice = next.choice;
        merged.text += &next.text;
        merged.tokens.extend(next.tokens);
        merged.logprobs.extend(next.logprobs);
        merged.prompt_logprobs.extend(next.prompt_logprobs);
        merged.sinks = match (merged.sinks, next.sinks) {
            (Some(mut sinks), Some(new)) => {
                sinks.extend(new);
                Some(sinks)
            }
            (before, new) => new.or(before),
        };
        merged.finish = next.finish;
        merged
    }
}

struct TextInProgress {
    prompt_len: usize,
    /// Tokens of prompt and text, if sinks are looked for.
    ids: Vec<u32>,
    /// Number of tokens of the text.
    len: usize,
    inbox: Arc<Inbox>,
    canceller: Canceller,
    decoder: UpdateDecoder,
    sinks: Option<(Box<dyn SinkView>, SinkChanges)>,
    /// Text and tokens that wait for a whole character.
    held: Piece,
    has_ended: bool,
}

impl Texts {
    pub(super) fn new(app: Arc<App>, log: Arc<RequestLog>, choices: Choices) -> Texts {
        let (texts, ready, usage) = (Vec::new(), Arc::default(), UsageSum::default());
        Texts { app, log, texts, ready, next: 0, choices, scoring: None, usage }
    }

    pub(super) fn ready(&self) -> &Arc<Notify> {
        &self.ready
    }

    pub(super) fn push(&mut self, submitted: Submitted) {
        let Submitted { prompt, inbox, canceller, decoder, sinks } = submitted;
        self.texts.push(TextInProgress {
            prompt_len: prompt.len(),
            ids: if sinks.is_some() { prompt.to_vec() } else { Vec::new() },
            len: 0,
            inbox,
            canceller,
            decoder,
            sinks: sinks.map(|view| (view, SinkChanges::default())),
            held: Piece::default(),
            has_ended: false,
        });
    }

    /// Records that all texts have ended.
    pub fn complete(&self) {
        self.app.metrics.whole(self.log.arrived().elapsed());
    }

    /// Number of texts.
    pub fn len(&self) -> usize {
        self.texts.len()
    }

    /// The request's record in the log.
    pub fn log(&self) -> &Arc<RequestLog> {
        &self.log
    }

    /// The next piece with text, or the last one of a text. `None` when all texts have ended. If
    /// the texts are not streamed, each comes whole.
    ///
    /// Dropping the future loses nothing.
    ///
    /// # Errors
    /// A text failed, or the request took too long. The others are then cancelled when this is
    /// dropped.
    pub async fn next(&mut self) -> Result<Option<Piece>, ApiError> {
        let deadline = deadline(&self.app, self.log.arrived());
        loop {
            if let Some(scoring) = &mut self.scoring {
                let piece = tokio::time::timeout_at(deadline, scoring.finish()).await;
                self.scoring = None;
                let seconds = self.app.options.request_timeout.as_secs();
                return piece.map_err(|_| ApiError::timeout(seconds))?.map(Some);
            }
            if self.texts.iter().all(|text| text.has_ended) {
                return Ok(None);
            }
            if Instant::now() >= deadline.into_std() {
                return Err(ApiError::timeout(self.app.options.request_timeout.as_secs()));
            }
            match self.take()? {
                Taken::Piece(piece) => return Ok(Some(piece)),
                Taken::Scoring(scoring) => self.scoring = Some(scoring),
                Taken::More => tokio::task::yield_now().await,
                // A wake-up between `take` and here is stored and ends the wait at once. After the
                // time limit, the next round returns the error.
                Taken::Nothing => {
                    drop(tokio::time::timeout_at(deadline, self.ready.notified()).await);
                }
            }
        }
    }

    /// Decodes some tokens that are ready.
    fn take(&mut self) -> Result<Taken, ApiError> {
        for step in 0..self.texts.len() {
            let number = (self.next + step) % self.texts.len();
            let text = &mut self.texts[number];
            if !text.has_ended
                && let Some(pending) = text.inbox.take(DECODED_AT_ONCE)
            {
                self.usage.tokens(pending.tokens.len());
                let done = text.add(pending)?;
                if let Some(done) = &done {
                    self.usage.done(done);
                    // The other texts of a prompt share the rows of its first one.
                    if number.is_multiple_of(self.choices.n) {
                        self.usage.cached(done.cached_prompt_tokens);
                    }
                    self.app.metrics.finished(done.finish);
                }
                let is_piece = self.choices.stream && !text.held.text.is_empty();
                return Ok(match done.is_some() || is_piece {
                    true => {
                        self.next = number + 1;
                        text.piece(number, done)?
                    }
                    false => Taken::More,
                });
            }
        }
        Ok(Taken::Nothing)
    }
}

/// What there was to decode.
enum Taken {
    /// A piece.
    Piece(Piece),
    /// The last piece of a text, without its sinks.
    Scoring(Scoring),
    /// Tokens without a piece; there may be more.
    More,
    Nothing,
}

impl Drop for Texts {
    fn drop(&mut self) {
        for text in self.texts.iter().filter(|text| !text.has_ended) {
            text.inbox.close();
            text.canceller.cancel();
        }
    }
}

impl TextInProgress {
    /// Decodes new tokens into `held`.
    fn add(&mut self, pending: Pending) -> Result<Option<Done>, ApiError> {
        let Pending { ticket, tokens, mut logprobs, prompt_logprobs, end } = pending;
        let done = match end {
            Some(Err(error)) => {
                self.has_ended = true;
                return Err(failure(&error));
            }
            Some(Ok(done)) => Some(done),
            None => None,
        };
        let ends = done.as_ref().map(|done| done.finish);
        let shown = match ends {
            Some(Finish::Eos | Finish::StopToken) => tokens.len().saturating_sub(1),
            _ => tokens.len(),
        };
        for (place, token) in tokens.iter().enumerate() {
            let position = self.prompt_len + self.len + place;
            if place < shown {
                let token = TextToken { id: token.id, position, drafted: token.drafted };
                self.held.tokens.push(token);
            }
        }
        self.len += tokens.len();
        if self.sinks.is_some() {
            self.ids.extend(tokens.iter().map(|token| token.id));
        }
        let Some(ticket) = ticket else { return Ok(done) };
        logprobs.truncate(shown);
        self.held.logprobs.extend(logprobs);
        self.held.prompt_logprobs.extend(prompt_logprobs);
        let update = Update {
            ticket,
            request: 0,
            tokens: tokens.iter().map(|token| token.id).collect(),
            outcome: Outcome::default(),
            logprobs: Vec::new(),
            prompt_logprobs: Vec::new(),
            done: done.clone(),
        };
        let decoded = self.decoder.take(update).map_err(|error| failure(&error))?;
        self.held.text += &decoded.text;
        self.has_ended = done.is_some();
        Ok(done)
    }

    /// What is held, as a piece.
    fn piece(&mut self, choice: usize, done: Option<Done>) -> Result<Taken, ApiError> {
        let mut piece = std::mem::take(&mut self.held);
        piece.choice = choice;
        piece.finish = done.map(|done| done.finish);
        let scorer = self.sinks.as_ref().filter(|_| self.has_ended);
        if let Some(scorer) = scorer.and_then(|(view, _)| view.scorer()) {
            let changes = self.sinks.take().map(|(_, changes)| changes).unwrap_or_default();
            let ids = std::mem::take(&mut self.ids);
            return Ok(Taken::Scoring(Scoring::start(
                piece,
                changes,
                scorer,
                ids,
                self.prompt_len,
            )));
        }
        if let Some((view, changes)) = &mut self.sinks {
            piece.sinks = Some(match view.sinks(&self.ids, self.prompt_len) {
                Ok(now) => changes.since_last(now),
                // After a preemption the model computes the text again. Until then nothing is new.
                Err(_) if piece.finish.is_none() => Vec::new(),
                Err(error) => return Err(failure(&error)),
            });
        }
        Ok(Taken::Piece(piece))
    }
}

fn failure(error: &fathom_model::Error) -> ApiError {
    match error {
        fathom_model::Error::Stopped(why) => ApiError::stopping(why.clone()),
        other => ApiError::internal(other.to_string()),
    }
}
