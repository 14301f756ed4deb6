//! What is served, and whether it works.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;

use crate::app::{App, Phase};
use crate::error::{ApiError, ErrorBody};
use crate::types::info::{ModelInfo, ModelList, Status};

/// List the models
#[utoipa::path(
    get,
    path = "/v1/models",
    responses(
        (status = 200, description = "The models", body = ModelList),
        (status = "4XX", description = "The request is wrong", body = ErrorBody),
    ),
)]
pub async fn models(State(app): State<Arc<App>>) -> Json<ModelList> {
    Json(ModelList { object: "list", data: vec![served(&app)] })
}

/// Describe a model
#[utoipa::path(
    get,
    path = "/v1/models/{model}",
    params(("model" = String, Path, description = "The name of the model")),
    responses(
        (status = 200, description = "The model", body = ModelInfo),
        (status = "4XX", description = "The request is wrong", body = ErrorBody),
    ),
)]
pub async fn model(
    State(app): State<Arc<App>>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Json<ModelInfo>, ApiError> {
    // A path that is not UTF-8 is no name.
    let name = name.map_or_else(|_| String::new(), |Path(name)| name);
    match name == app.model.name {
        true => Ok(Json(served(&app))),
        false => Err(ApiError::unknown_model(&name, &app.model.name)),
    }
}

fn served(app: &App) -> ModelInfo {
    ModelInfo {
        id: app.model.name.clone(),
        object: "model",
        created: app.started,
        owned_by: "fathom",
        max_model_len: app.model.context,
    }
}

/// Whether the server is live
#[utoipa::path(
    get,
    path = "/health",
    responses(
        (status = 200, description = "It is live", body = Status),
        (status = 503, description = "Its engine has failed", body = Status),
    ),
)]
pub async fn health(State(app): State<Arc<App>>) -> (StatusCode, Json<Status>) {
    let status = status(&app);
    let code = match status {
        "failed" => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::OK,
    };
    (code, Json(Status { status }))
}

/// Whether the server takes requests
#[utoipa::path(
    get,
    path = "/ready",
    responses(
        (status = 200, description = "It takes requests", body = Status),
        (status = 503, description = "It is ending", body = Status),
    ),
)]
pub async fn ready(State(app): State<Arc<App>>) -> (StatusCode, Json<Status>) {
    let status = status(&app);
    let code = match status {
        "ok" => StatusCode::OK,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    (code, Json(Status { status }))
}

fn status(app: &App) -> &'static str {
    match &*app.phase.borrow() {
        Phase::Serving => "ok",
        Phase::Draining | Phase::Aborting => "draining",
        Phase::Failed(_) => "failed",
    }
}
