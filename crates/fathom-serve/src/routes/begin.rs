//! What all requests for texts begin with.

use std::sync::Arc;

use axum::body::Body;
use axum::http::HeaderMap;

use super::envelope::Envelope;
use super::logprobs::Writer;
use crate::app::App;
use crate::body;
use crate::error::ApiError;
use crate::generation::{Job, Texts};
use crate::log::RequestLog;
use crate::request::choices::Choices;
use crate::request::fields::Fields;

/// A request whose texts are in progress.
pub struct Begun<T> {
    /// The texts.
    pub texts: Texts,
    /// How they are wanted.
    pub choices: Choices,
    /// Writes their log-probabilities, if asked for.
    pub logprobs: Option<Writer>,
    /// What all parts of the response share.
    pub envelope: Envelope,
    /// What this kind of request needs besides.
    pub own: T,
}

/// Reads the fields of one kind of request.
type Read<T> = fn(Fields, &App) -> Result<(Job, T), ApiError>;

/// Reads a request and submits its texts. The id of the response begins with `prefix`.
///
/// # Errors
/// Whatever is wrong with the request; no place for its texts.
pub async fn begin<T: Send + 'static>(
    app: Arc<App>,
    log: Arc<RequestLog>,
    (headers, body): (HeaderMap, Body),
    prefix: &str,
    read: Read<T>,
) -> Result<Begun<T>, ApiError> {
    let bytes = body::read(&headers, body, app.options.max_body).await?;
    app.check_places()?;
    let prepare = move |app: &App| {
        let (job, own) = read(Fields::parse(&bytes)?, app)?;
        let logprobs = job.logprobs.map(|_| Writer::new(app));
        Ok((job, own, logprobs))
    };
    let (job, own, logprobs) = app.prepare(prepare).await?;
    let choices = job.choices;
    let texts = job.submit(&app, &log)?;
    Ok(Begun { texts, choices, logprobs, envelope: Envelope::new(&app, prefix), own })
}
