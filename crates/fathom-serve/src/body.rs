//! Reads the body of a request within its limits.

use axum::body::{Body, BodyDataStream};
use axum::http::{HeaderMap, header};
use futures_util::StreamExt;
use tokio::time::timeout;

use crate::error::ApiError;
use crate::limits;

/// The body of a request. `most` is its largest length in bytes.
///
/// # Errors
/// A body that is not declared as JSON, compressed, too long, too slow, or cut off.
pub async fn read(headers: &HeaderMap, body: Body, most: usize) -> Result<Vec<u8>, ApiError> {
    if !is_json(headers) {
        return Err(ApiError::not_json());
    }
    let encoding = headers.get(header::CONTENT_ENCODING);
    if encoding.is_some_and(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity")) {
        return Err(ApiError::compressed());
    }
    let declared = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    let declared: usize = declared.and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut chunks = body.into_data_stream();
    if declared > most {
        discard(&mut chunks).await;
        return Err(ApiError::large_body(most));
    }
    let mut bytes = Vec::with_capacity(declared.min(RESERVED));
    let all = async {
        loop {
            match timeout(limits::BODY_PAUSE, chunks.next()).await {
                Ok(None) => return Ok(()),
                Ok(Some(Ok(chunk))) if bytes.len() + chunk.len() <= most => {
                    bytes.extend_from_slice(&chunk);
                }
                Ok(Some(Ok(_))) => {
                    discard(&mut chunks).await;
                    return Err(ApiError::large_body(most));
                }
                Ok(Some(Err(_))) => {
                    return Err(ApiError::invalid("the body of the request was cut off"));
                }
                Err(_) => return Err(ApiError::slow_body()),
            }
        }
    };
    timeout(limits::BODY_TIME, all).await.unwrap_or_else(|_| Err(ApiError::slow_body()))?;
    Ok(bytes)
}

/// Reads on for a moment: a client that still sends would not see the answer.
async fn discard(chunks: &mut BodyDataStream) {
    let all = async {
        while let Ok(Some(Ok(_))) = timeout(limits::DISCARD_PAUSE, chunks.next()).await {}
    };
    // What did not come in time is not waited for.
    drop(timeout(limits::DISCARD_TIME, all).await);
}

/// Memory that is reserved before a body arrives, whatever length it declares.
const RESERVED: usize = 64 << 10;

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let media = value.and_then(|value| value.split(';').next()).unwrap_or_default().trim();
    media.eq_ignore_ascii_case("application/json")
}
