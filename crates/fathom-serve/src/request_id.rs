//! `x-request-id`: the client's own, or a new one.

use std::hash::{BuildHasher, Hasher, RandomState};

use axum::http::{HeaderMap, HeaderName};

use crate::limits;

/// The header.
pub const HEADER: HeaderName = HeaderName::from_static("x-request-id");

/// The id of a request: the one it has, if that is printable ASCII, or a new one.
pub fn of(headers: &HeaderMap) -> String {
    let given = headers.get(HEADER).and_then(|value| value.to_str().ok());
    let usable = |id: &&str| (1..=limits::REQUEST_ID).contains(&id.len());
    match given.filter(usable) {
        Some(id) => id.to_owned(),
        None => new(),
    }
}

/// A new id: 128 random bits. The standard library keys its hashers with random numbers.
pub fn new() -> String {
    let random = || RandomState::new().build_hasher().finish();
    format!("{:016x}{:016x}", random(), random())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_echoed_or_new() {
        let with = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(HEADER, value.parse().unwrap());
            of(&headers)
        };
        assert_eq!(with("abc 123"), "abc 123");
        for bad in ["", &"x".repeat(129)] {
            assert_eq!(with(bad).len(), 32);
        }
        assert_ne!(of(&HeaderMap::new()), of(&HeaderMap::new()));
    }
}
