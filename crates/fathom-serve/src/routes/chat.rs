//! `POST /v1/chat/completions`

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};

use super::Log;
use super::answer::Answer;
use super::begin::{Begun, begin};
use super::envelope::{self, Envelope};
use super::logprobs;
use super::stream::{self, Chunks};
use crate::app::App;
use crate::error::{ApiError, ErrorBody};
use crate::generation::Piece;
use crate::request::chat::{self, ChatRequest};
use crate::tools::{Found, ToolUse};
use crate::types::chat::{
    AssistantMessage, ChatChoice, ChatChunk, ChatChunkChoice, ChatCompletion, ChatDelta,
};
use crate::types::usage::{ChoiceFathom, Usage};

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
    let begun = begin(app, log, (headers, body), "chatcmpl", chat::read).await?;
    let Begun { mut texts, choices, logprobs, envelope, own: tool_use } = begun;
    if choices.stream {
        let texts_of = |_| Answer::new(tool_use.as_ref());
        let answers = (0..texts.len()).map(texts_of).collect();
        let pieces = Pieces { envelope, logprobs, answers };
        return Ok(stream::respond(texts, pieces, choices.stream_options));
    }
    let mut answers = Vec::with_capacity(texts.len());
    while let Some(piece) = texts.next().await? {
        answers.push(choice(piece, logprobs.as_ref(), tool_use.as_ref()));
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
fn choice(
    mut piece: Piece,
    logprobs: Option<&logprobs::Writer>,
    tool_use: Option<&ToolUse>,
) -> ChatChoice {
    let mut answer = Answer::new(tool_use);
    let Found { content, calls } = answer.push(&piece.text, true);
    let tool_calls = (!calls.is_empty()).then(|| answer.numbered(calls, false));
    ChatChoice {
        index: piece.choice,
        logprobs: logprobs.map(|logprobs| logprobs.chat(&piece)),
        fathom: envelope::fathom(&mut piece),
        finish_reason: answer.finish_reason(&piece).unwrap_or("stop"),
        message: AssistantMessage {
            role: "assistant",
            content: (tool_calls.is_none() || !content.is_empty()).then_some(content),
            refusal: None,
            tool_calls,
        },
    }
}

/// The pieces of streamed answers.
struct Pieces {
    envelope: Envelope,
    logprobs: Option<logprobs::Writer>,
    answers: Vec<Answer>,
}

impl Pieces {
    fn with(&self, choices: Vec<ChatChunkChoice>, usage: Option<Usage>) -> ChatChunk {
        let Envelope { id, created, model, system_fingerprint } = self.envelope.clone();
        let object = "chat.completion.chunk";
        ChatChunk { id, object, created, model, system_fingerprint, choices, usage }
    }
}

impl Chunks for Pieces {
    type Chunk = ChatChunk;

    /// The end of an answer with calls has a chunk of its own, as with OpenAI: its client takes a
    /// call for complete only if the end comes later.
    fn chunks(&mut self, piece: Piece, usage: Option<Usage>) -> Vec<ChatChunk> {
        let answer = &mut self.answers[piece.choice];
        let mut piece = answer.held.merged(piece);
        let Found { content, calls } = answer.push(&piece.text, piece.finish.is_some());
        piece.text.clear();
        if content.is_empty() && calls.is_empty() && piece.finish.is_none() {
            answer.held = piece; // text that may become a call
            return Vec::new();
        }
        let role = (!std::mem::replace(&mut answer.has_begun, true)).then_some("assistant");
        let has_calls = !calls.is_empty();
        let mut choice = ChatChunkChoice {
            index: piece.choice,
            logprobs: self.logprobs.as_ref().map(|logprobs| logprobs.chat(&piece)),
            fathom: envelope::fathom(&mut piece),
            delta: ChatDelta {
                role,
                content: (!content.is_empty()).then_some(content),
                tool_calls: has_calls.then(|| answer.numbered(calls, true)),
            },
            finish_reason: answer.finish_reason(&piece),
        };
        let end = choice.finish_reason.take_if(|_| has_calls).map(|reason| ChatChunkChoice {
            index: piece.choice,
            delta: ChatDelta::default(),
            logprobs: None,
            finish_reason: Some(reason),
            fathom: ChoiceFathom::default(),
        });
        let choices = [Some(choice), end].into_iter().flatten();
        choices.map(|choice| self.with(vec![choice], usage.clone())).collect()
    }

    fn usage(&mut self, usage: Usage) -> ChatChunk {
        self.with(Vec::new(), Some(usage))
    }
}
