//! Reads the body of a request within its limits.

use axum::body::Body;
use axum::http::{HeaderMap, header};
use futures_util::StreamExt;
use tokio::time::{Instant, timeout, timeout_at};

use crate::error::ApiError;
use crate::limits;

/// The body of a request. `most` is its largest length in bytes.
///
/// # Errors
/// A body that is not declared as JSON, too long, too slow, or cut off.
pub async fn read(headers: &HeaderMap, body: Body, most: usize) -> Result<Vec<u8>, ApiError> {
    if !is_json(headers) {
        return Err(ApiError::not_json());
    }
    let declared = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    let declared: usize = declared.and_then(|length| length.parse().ok()).unwrap_or(0);
    let deadline = Instant::now() + limits::BODY_TIME;
    let mut chunks = body.into_data_stream();
    // A body that is known to be too long is never stored.
    let mut bytes = Vec::with_capacity(if declared > most { 0 } else { declared });
    let mut length = 0_usize;
    loop {
        let next = timeout(limits::BODY_PAUSE, chunks.next());
        let next = match timeout_at(deadline, next).await {
            Ok(Ok(next)) => next,
            _ if length > most => break,
            _ => return Err(ApiError::slow_body()),
        };
        match next {
            None => break,
            Some(Err(_)) => return Err(ApiError::invalid("the body of the request was cut off")),
            Some(Ok(chunk)) => {
                length = length.saturating_add(chunk.len());
                if length <= most && declared <= most {
                    bytes.extend_from_slice(&chunk);
                } else if length > most.saturating_mul(DISCARDED) {
                    break;
                }
            }
        }
    }
    match length > most || declared > most {
        true => Err(ApiError::large_body(most)),
        false => Ok(bytes),
    }
}

/// A body that is too long is read on, up to this many times the limit, before it is refused: a
/// client that still sends would not see the answer.
const DISCARDED: usize = 8;

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let media = value.and_then(|value| value.split(';').next()).unwrap_or_default().trim();
    media.eq_ignore_ascii_case("application/json")
}

