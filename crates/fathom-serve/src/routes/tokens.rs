//! `POST /tokenize` and `POST /detokenize`

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;

use crate::app::App;
use crate::body;
use crate::error::{ApiError, ErrorBody};
use crate::model::ServedModel;
use crate::request::fields::Fields;
use crate::request::tokens::{self, DetokenizeRequest, TokenizeRequest};
use crate::types::info::{Detokenized, Tokenized};

/// Encode a text or a conversation
#[utoipa::path(
    post,
    path = "/tokenize",
    request_body = TokenizeRequest,
    responses(
        (status = 200, description = "The tokens", body = Tokenized),
        (status = "4XX", description = "The request is wrong", body = ErrorBody),
        (status = "5XX", description = "The server failed", body = ErrorBody),
    ),
)]
pub async fn tokenize(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Tokenized>, ApiError> {
    answer(app, headers, body, tokens::tokenize).await
}

/// Decode token ids
#[utoipa::path(
    post,
    path = "/detokenize",
    request_body = DetokenizeRequest,
    responses(
        (status = 200, description = "The text", body = Detokenized),
        (status = "4XX", description = "The request is wrong", body = ErrorBody),
        (status = "5XX", description = "The server failed", body = ErrorBody),
    ),
)]
pub async fn detokenize(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Detokenized>, ApiError> {
    answer(app, headers, body, tokens::detokenize).await
}

async fn answer<T: Send + 'static>(
    app: Arc<App>,
    headers: HeaderMap,
    body: Body,
    work: fn(Fields, &ServedModel) -> Result<T, ApiError>,
) -> Result<Json<T>, ApiError> {
    let bytes = body::read(&headers, body, app.options.max_body).await?;
    app.prepare(move |app| work(Fields::parse(&bytes)?, &app.model)).await.map(Json)
}
