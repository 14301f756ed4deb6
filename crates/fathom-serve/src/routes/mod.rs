//! The endpoints.

mod answer;
mod begin;
pub mod chat;
pub mod completions;
mod envelope;
pub mod info;
mod logprobs;
pub mod metrics;
pub mod page;
mod stream;
pub mod tokens;

use std::any::Any;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use tower_http::catch_panic::CatchPanicLayer;

use crate::app::App;
use crate::error::ApiError;
use crate::log::RequestLog;
use crate::openapi;
use crate::request_id;

/// All endpoints.
pub fn router(app: Arc<App>) -> Router {
    let with_key = Router::new()
        .route("/v1/chat/completions", post(chat::answer))
        .route("/v1/completions", post(completions::complete))
        .route("/v1/models", get(info::models))
        .route("/v1/models/{*model}", get(info::model))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .layer(middleware::from_fn_with_state(Arc::clone(&app), check_key));
    Router::new()
        .merge(with_key)
        .route("/", get(page::page))
        .route("/health", get(info::health))
        .route("/ready", get(info::ready))
        .route("/metrics", get(metrics::metrics))
        .route("/openapi.json", get(openapi::document))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(CatchPanicLayer::custom(panicked))
        .layer(middleware::from_fn(log))
        .with_state(app)
}

async fn check_key(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    request: Request,
    next: Next,
) -> Response {
    match app.options.keys.as_ref().map_or(Ok(()), |keys| keys.check(&headers)) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

/// Gives each request its id and its line in the log.
async fn log(mut request: Request, next: Next) -> Response {
    let id = request_id::of(request.headers());
    let (method, path) = (request.method().to_string(), request.uri().path().to_owned());
    let log = Arc::new(RequestLog::new(id, method, path));
    request.extensions_mut().insert(Arc::clone(&log));
    let mut response = next.run(request).await;
    log.status(response.status().as_u16());
    if let Ok(id) = HeaderValue::from_str(&log.id) {
        response.headers_mut().insert(request_id::HEADER, id);
    }
    let nosniff = HeaderValue::from_static("nosniff");
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
    response
}

async fn unknown_path(request: Request) -> ApiError {
    ApiError::unknown_path(&shortened(request.uri().path()))
}

async fn wrong_method(request: Request) -> ApiError {
    ApiError::wrong_method(request.method().as_str(), &shortened(request.uri().path()))
}

fn shortened(path: &str) -> String {
    path.chars().take(60).collect()
}

fn panicked(panic: Box<dyn Any + Send + 'static>) -> Response {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
    tracing::error!(panic = text, "a request's handler stopped");
    let mut response = ApiError::internal("the request's handler stopped").into_response();
    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    response
}

/// The log of the request, which the outermost layer put there.
type Log = Extension<Arc<RequestLog>>;
