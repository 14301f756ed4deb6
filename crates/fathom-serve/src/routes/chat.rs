//! `POST /v1/chat/completions`

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};

use super::envelope::{self, Envelope, finish_reason};
use super::logprobs;
use super::stream::{self, Chunks};
use super::Log;
use crate::app::App;
use crate::body;
use crate::error::{ApiError, ErrorBody};
use crate::generation::Piece;
use crate::request::chat::{self, ChatJob, ChatRequest};
use crate::request::fields::Fields;
use crate::types::chat::{
    AssistantMessage, ChatChoice, ChatChunk, ChatChunkChoice, ChatCompletion, ChatDelta,
};
use crate::types::usage::Usage;

/// Answer a conversation
#[utoipa::path(
    post,
    path = "/v1/chat/completions",
    request_body = ChatRequest,
    responses(
        (status = 200, description = "The answers, or a stream of pieces", content(
            (ChatCompletion = "application/json"), (ChatChunk = "text/event-stream"))),
        (status = "4XX", description = "The request is wrong", body = ErrorBody),
        (status = "5XX", description = "The server failed", body = ErrorBody),
    ),
)]
pub async fn answer(
    State(app): State<Arc<App>>,
    Extension(log): Log,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let bytes = body::read(&headers, body, app.options.max_body).await?;
    app.check_places()?;
    let read = move |app: &App| {
        let job = chat::read(Fields::parse(&bytes)?, &app.model)?;
        let logprobs = job.job.logprobs.map(|_| logprobs::Writer::new(app));
        Ok((job, logprobs))
    };
    let (ChatJob { job, choices }, logprobs) = app.prepare(read).await?;
    let mut texts = job.submit(&app, &log)?;
    drop(log);
    let envelope = Envelope::new(&app, "chatcmpl");
    if choices.stream {
        let pieces = Pieces { envelope, logprobs, begun: vec![false; texts.len()] };
        return Ok(stream::respond(texts, pieces, choices.stream_options));
    }
    let mut answers = Vec::with_capacity(texts.len());
    while let Some(piece) = texts.next().await? {
        answers.push(choice(piece, logprobs.as_ref()));
    }
    answers.sort_by_key(|choice: &ChatChoice| choice.index);
    texts.complete();
    let Envelope { id, created, model, system_fingerprint } = envelope;
    let response = ChatCompletion {
        id,
        object: "chat.completion",
        created,
        model,
        system_fingerprint,
        choices: answers,
        usage: texts.usage.usage(),
    };
    Ok(Json(response).into_response())
}

/// A whole answer.
fn choice(mut piece: Piece, logprobs: Option<&logprobs::Writer>) -> ChatChoice {
    ChatChoice {
        logprobs: logprobs.map(|logprobs| logprobs.chat(&piece)),
        index: piece.choice,
        fathom: envelope::fathom(&mut piece),
        message: AssistantMessage {
            role: "assistant",
            content: Some(piece.text),
            refusal: None,
            tool_calls: None,
        },
        finish_reason: piece.finish.map_or("stop", finish_reason),
    }
}

/// The pieces of streamed answers.
struct Pieces {
    envelope: Envelope,
    logprobs: Option<logprobs::Writer>,
    /// Whether an answer has begun; its first piece names the role.
    begun: Vec<bool>,
}

impl Pieces {
    fn chunk(&self, choices: Vec<ChatChunkChoice>, usage: Option<Usage>) -> ChatChunk {
        let Envelope { id, created, model, system_fingerprint } = self.envelope.clone();
        let object = "chat.completion.chunk";
        ChatChunk { id, object, created, model, system_fingerprint, choices, usage }
    }
}

impl Chunks for Pieces {
    type Chunk = ChatChunk;

    fn chunks(
        &mut self,
        mut piece: Piece,
        usage: Option<Usage>,
    ) -> Result<Vec<ChatChunk>, ApiError> {
        let has_begun = std::mem::replace(&mut self.begun[piece.choice], true);
        let choice = ChatChunkChoice {
            index: piece.choice,
            logprobs: self.logprobs.as_ref().map(|logprobs| logprobs.chat(&piece)),
            fathom: envelope::fathom(&mut piece),
            delta: ChatDelta {
                role: (!has_begun).then_some("assistant"),
                content: (!piece.text.is_empty()).then_some(piece.text),
                tool_calls: None,
            },
            finish_reason: piece.finish.map(finish_reason),
        };
        Ok(vec![self.chunk(vec![choice], usage)])
    }

    fn usage(&mut self, usage: Usage) -> ChatChunk {
        self.chunk(Vec::new(), Some(usage))
    }
}
