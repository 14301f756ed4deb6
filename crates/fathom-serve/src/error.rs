//! Errors as clients see them: a status, and one sentence that names the field.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

/// The body of every response that is an error.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ErrorBody {
    /// The error.
    pub error: ErrorInfo,
}

/// An error in OpenAI's format.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ErrorInfo {
    /// One sentence: what is wrong, and what was expected.
    pub message: String,
    /// The kind of error, such as `invalid_request_error`.
    pub r#type: &'static str,
    /// The field of the request that it is about.
    pub param: Option<String>,
    /// A code for programs, such as `model_not_found`.
    pub code: Option<&'static str>,
}

/// Why a request was not answered.
#[derive(Clone, Debug)]
pub struct ApiError {
    status: StatusCode,
    info: ErrorInfo,
}

/// Seconds after which a client may try again when the queue is full.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

impl ApiError {
    fn new(status: StatusCode, r#type: &'static str, message: impl Into<String>) -> ApiError {
        let message = message.into();
        ApiError { status, info: ErrorInfo { message, r#type, param: None, code: None } }
    }

    fn code(mut self, code: &'static str) -> ApiError {
        self.info.code = Some(code);
        self
    }

    /// 400: a request that is wrong as a whole.
    pub fn invalid(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    /// 400: a field is wrong. `problem` continues the field's name.
    pub fn field(param: &str, problem: impl AsRef<str>) -> ApiError {
        let mut error = ApiError::invalid(format!("`{param}` {}", problem.as_ref()));
        error.info.param = Some(param.to_owned());
        error
    }

    /// 400: `message` begins with the name of a field between backticks, or concerns the request as
    /// a whole.
    pub fn about(message: &str) -> ApiError {
        let mut error = ApiError::invalid(message);
        let name = message.strip_prefix('`').and_then(|rest| rest.split('`').next());
        error.info.param = name.map(str::to_owned);
        error
    }

    /// 401: no key, or an unknown one.
    pub fn unauthorized(message: &str) -> ApiError {
        let error = ApiError::new(StatusCode::UNAUTHORIZED, "authentication_error", message);
        error.code("invalid_api_key")
    }

    /// 404: a model that is not served.
    pub fn unknown_model(asked: &str, served: &str) -> ApiError {
        let message = format!("the model `{asked}` is not served here; expected `{served}`");
        let mut error = ApiError::new(StatusCode::NOT_FOUND, "invalid_request_error", message);
        error.info.param = Some("model".to_owned());
        error.code("model_not_found")
    }

    /// 404: a path that does not exist.
    pub fn unknown_path(path: &str) -> ApiError {
        let message = format!("there is nothing at `{path}`; see /openapi.json");
        ApiError::new(StatusCode::NOT_FOUND, "invalid_request_error", message)
    }

    /// 405: a method that a path does not have.
    pub fn wrong_method(method: &str, path: &str) -> ApiError {
        let message = format!("`{path}` has no method {method}; see /openapi.json");
        ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "invalid_request_error", message)
    }

    /// 408: the client sends its body too slowly.
    pub fn slow_body() -> ApiError {
        let message = "the body of the request did not arrive in time";
        ApiError::new(StatusCode::REQUEST_TIMEOUT, "invalid_request_error", message)
    }

    /// 413: a body above the limit.
    pub fn large_body(limit: usize) -> ApiError {
        let message = format!("the body of the request is longer than {limit} bytes");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "invalid_request_error", message)
    }

    /// 415: a body that does not claim to be JSON. Browsers send such bodies to other sites
    /// without asking.
    pub fn not_json() -> ApiError {
        let message = "the content type of the request is not JSON; expected `application/json`";
        ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "invalid_request_error", message)
    }

    /// 415: a body in another encoding than its own.
    pub fn compressed() -> ApiError {
        let message = "the body of the request has a content encoding; expected plain JSON";
        ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "invalid_request_error", message)
    }

    /// 429: the queue is full.
    pub fn busy(waiting: usize) -> ApiError {
        let message = format!(
            "{waiting} texts are in progress or waiting, as many as this server \
             accepts; try again later"
        );
        ApiError::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message).code("queue_full")
    }

    /// 500: a failure that is not the client's fault.
    pub fn internal(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
    }

    /// 503: the server is ending.
    pub fn stopping(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", message)
    }

    /// 504: the request took longer than the limit.
    pub fn timeout(seconds: u64) -> ApiError {
        let message = format!("the text was not finished within {seconds} seconds");
        ApiError::new(StatusCode::GATEWAY_TIMEOUT, "server_error", message).code("request_timeout")
    }

    /// 400: the engine refuses the request. Its messages begin with the name of a parameter, with
    /// the hyphens of the command line.
    pub fn refused(message: &str) -> ApiError {
        const NAMES: [&str; 12] = [
            "temperature",
            "top-p",
            "top-k",
            "min-p",
            "repetition-penalty",
            "presence-penalty",
            "frequency-penalty",
            "logit-bias",
            "stop-token-ids",
            "max-tokens",
            "min-tokens",
            "seed",
        ];
        match NAMES.iter().find(|name| message.starts_with(*name)) {
            Some(name) => {
                let problem = message.strip_prefix(*name).unwrap_or_default().trim_start();
                let problem = NAMES
                    .iter()
                    .filter(|name| name.contains('-'))
                    .fold(problem.to_owned(), |text, name| {
                        text.replace(name, &name.replace('-', "_"))
                    });
                ApiError::field(&name.replace('-', "_"), problem)
            }
            None => ApiError::about(message),
        }
    }

    /// The status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The body.
    pub fn body(&self) -> ErrorBody {
        ErrorBody { error: self.info.clone() }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        if self.status == StatusCode::TOO_MANY_REQUESTS {
            response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER);
        }
        if self.status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
        }
        response
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_the_engine_name_fields_as_clients_write_them() {
        let error = ApiError::refused("top-p is 1.5; expected a number above 0 and at most 1");
        let info = error.body().error;
        assert_eq!(info.message, "`top_p` is 1.5; expected a number above 0 and at most 1");
        assert_eq!(info.param.unwrap(), "top_p");
        let error = ApiError::refused("min-tokens is 6; expected at most 5, which is max-tokens");
        let expected = "`min_tokens` is 6; expected at most 5, which is max_tokens";
        assert_eq!(error.body().error.message, expected);
        assert!(ApiError::refused("a stop string is empty").body().error.param.is_none());
    }
}
