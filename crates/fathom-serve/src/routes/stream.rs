//! Server-sent events.

use std::collections::VecDeque;
use std::convert::Infallible;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, Stream};
use serde::Serialize;

use crate::error::ApiError;
use crate::generation::{Piece, Texts};
use crate::limits;
use crate::request::choices::StreamOptions;
use crate::types::usage::Usage;

/// Makes the chunks of a response.
pub trait Chunks: Send + 'static {
    /// A chunk.
    type Chunk: Serialize;

    /// The chunks of a piece of text. `usage` is the usage so far, if every chunk has it. None if
    /// the piece is held back until more is known.
    fn chunks(&mut self, piece: Piece, usage: Option<Usage>) -> Vec<Self::Chunk>;

    /// The chunk with the usage.
    fn usage(&mut self, usage: Usage) -> Self::Chunk;
}

/// The response that streams `texts`. If the client closes the connection, the texts are dropped
/// and thereby cancelled.
pub fn respond<C: Chunks>(texts: Texts, chunks: C, options: StreamOptions) -> Response {
    let alive = KeepAlive::new().interval(limits::KEEP_ALIVE);
    Sse::new(events(texts, chunks, options)).keep_alive(alive).into_response()
}

/// A stream in progress.
struct State<C> {
    texts: Texts,
    chunks: C,
    options: StreamOptions,
    ready: VecDeque<Event>,
    has_ended: bool,
}

fn events<C: Chunks>(
    texts: Texts,
    chunks: C,
    options: StreamOptions,
) -> impl Stream<Item = Result<Event, Infallible>> + Send {
    let state = State { texts, chunks, options, ready: VecDeque::new(), has_ended: false };
    stream::unfold(state, |mut state| async move {
        while state.ready.is_empty() && !state.has_ended {
            let piece = state.texts.next().await;
            state.add(piece);
        }
        let event = state.ready.pop_front()?;
        Some((Ok(event), state))
    })
}

impl<C: Chunks> State<C> {
    fn add(&mut self, piece: Result<Option<Piece>, ApiError>) {
        let usage =
            (self.options.continuous_usage_stats == Some(true)).then(|| self.texts.usage.usage());
        match piece {
            Ok(Some(piece)) => {
                let chunks = self.chunks.chunks(piece, usage);
                self.ready.extend(chunks.iter().map(event));
            }
            Ok(None) => {
                self.texts.complete();
                if self.options.include_usage == Some(true) {
                    let chunk = self.chunks.usage(self.texts.usage.usage());
                    self.ready.push_back(event(&chunk));
                }
                self.ready.push_back(Event::default().data("[DONE]"));
                self.has_ended = true;
            }
            // The status was sent long ago: the error is the last event.
            Err(error) => {
                self.texts.log().status(error.status().as_u16());
                self.ready.push_back(event(&error.body()));
                self.has_ended = true;
            }
        }
    }
}

fn event<T: Serialize>(data: &T) -> Event {
    // Chunks have names for keys and finite numbers, so this cannot fail.
    Event::default().data(serde_json::to_string(data).unwrap_or_default())
}
