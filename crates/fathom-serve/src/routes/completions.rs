//! `POST /v1/completions`

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};

use super::Log;
use super::begin::{Begun, begin};
use super::envelope::{self, Envelope, finish_reason};
use super::logprobs;
use super::stream::{self, Chunks};
use crate::app::App;
use crate::error::{ApiError, ErrorBody};
use crate::generation::{Piece, Texts};
use crate::request::completion::{self, CompletionRequest, Echoed};
use crate::types::completion::{Completion, CompletionChoice};
use crate::types::logprobs::CompletionLogprobs;
use crate::types::usage::Usage;

/// Complete texts
#[utoipa::path(
    post,
    path = "/v1/completions",
    request_body = CompletionRequest,
    responses(
        (status = 200, description = "The texts, or a stream of pieces", content(
            (Completion = "application/json"), (Completion = "text/event-stream"))),
        (status = "4XX", description = "The request is wrong", body = ErrorBody),
        (status = "5XX", description = "The server failed", body = ErrorBody),
    ),
)]
pub async fn complete(
    State(app): State<Arc<App>>,
    Extension(log): Log,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let begun = begin(app, log, (headers, body), "cmpl", completion::read).await?;
    let Begun { mut texts, choices, logprobs, envelope, own: prompts } = begun;
    let echo = Echo { prompts, n: choices.n };
    if choices.stream {
        let (begun, offsets) = (vec![false; texts.len()], vec![0; texts.len()]);
        let pieces = Pieces { envelope, echo, logprobs, begun, offsets };
        return Ok(stream::respond(texts, pieces, choices.stream_options));
    }
    let choices = whole(&mut texts, &echo, logprobs.as_ref()).await?;
    texts.complete();
    let usage = Some(texts.usage.usage());
    Ok(Json(response(envelope, choices, usage)).into_response())
}

/// All texts, by index.
async fn whole(
    texts: &mut Texts,
    echo: &Echo,
    logprobs: Option<&logprobs::Writer>,
) -> Result<Vec<CompletionChoice>, ApiError> {
    let mut choices = Vec::with_capacity(texts.len());
    while let Some(piece) = texts.next().await? {
        let prompt = echo.of(piece.choice);
        let logprobs = logprobs.map(|logprobs| logprobs.completion(&piece, prompt, &mut 0));
        choices.push(choice(piece, prompt, logprobs));
    }
    choices.sort_by_key(|choice: &CompletionChoice| choice.index);
    Ok(choices)
}

/// The prompts that texts begin with.
struct Echo {
    prompts: Option<Vec<Echoed>>,
    /// Texts for each prompt.
    n: usize,
}

impl Echo {
    fn of(&self, choice: usize) -> Option<&Echoed> {
        self.prompts.as_ref().and_then(|prompts| prompts.get(choice / self.n))
    }
}

fn choice(
    mut piece: Piece,
    prompt: Option<&Echoed>,
    logprobs: Option<CompletionLogprobs>,
) -> CompletionChoice {
    let before = prompt.map_or("", |prompt| prompt.text.as_str());
    CompletionChoice {
        index: piece.choice,
        fathom: envelope::fathom(&mut piece),
        text: format!("{before}{}", piece.text),
        logprobs,
        finish_reason: piece.finish.map(finish_reason),
    }
}

fn response(
    envelope: Envelope,
    choices: Vec<CompletionChoice>,
    usage: Option<Usage>,
) -> Completion {
    let Envelope { id, created, model, system_fingerprint } = envelope;
    let object = "text_completion";
    Completion { id, object, created, model, system_fingerprint, choices, usage }
}

/// The pieces of streamed texts.
struct Pieces {
    envelope: Envelope,
    echo: Echo,
    logprobs: Option<logprobs::Writer>,
    /// Whether a text has begun; its first piece begins with the prompt, if that is echoed.
    begun: Vec<bool>,
    /// Characters of the tokens of each text so far.
    offsets: Vec<usize>,
}

impl Chunks for Pieces {
    type Chunk = Completion;

    fn chunks(&mut self, piece: Piece, usage: Option<Usage>) -> Vec<Completion> {
        let has_begun = std::mem::replace(&mut self.begun[piece.choice], true);
        let prompt = self.echo.of(piece.choice).filter(|_| !has_begun);
        let offset = &mut self.offsets[piece.choice];
        let logprobs = self.logprobs.as_ref();
        let logprobs = logprobs.map(|logprobs| logprobs.completion(&piece, prompt, offset));
        let choices = vec![choice(piece, prompt, logprobs)];
        vec![response(self.envelope.clone(), choices, usage)]
    }

    fn usage(&mut self, usage: Usage) -> Completion {
        response(self.envelope.clone(), Vec::new(), Some(usage))
    }
}
