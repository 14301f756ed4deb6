//! API keys.

use std::fs;
use std::path::Path;

use axum::http::{HeaderMap, header};
use fathom_model::{Error, Remark, Result, read_text};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use crate::error::ApiError;

/// The keys that clients may use. Only their hashes are kept: hashes have one length, so that a
/// comparison takes the same time for every wrong key.
#[derive(Clone, Debug)]
pub struct Keys(Vec<[u8; 32]>);

impl Keys {
    /// Reads a file with one key per line. Blank lines and lines that begin with `#` are left out.
    ///
    /// # Errors
    /// A file that cannot be read or has no keys, or a key with a character that an HTTP header
    /// cannot hold.
    pub fn from_file(path: &Path) -> Result<(Keys, Option<Remark>)> {
        let text = read_text(path)?.ok_or_else(|| Error::file(path, "does not exist"))?;
        let lines = text.lines().map(str::trim);
        let keys = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
        let mut hashes = Vec::new();
        for key in keys {
            if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
                let problem = "has a key with a space or a character outside ASCII; expected one \
                               key per line";
                return Err(Error::file(path, problem));
            }
            hashes.push(hash(key));
        }
        match hashes.is_empty() {
            true => Err(Error::file(path, "has no keys; expected one per line")),
            false => Ok((Keys(hashes), permissions_remark(path))),
        }
    }

    /// Checks the `authorization` header of a request.
    ///
    /// # Errors
    /// No key, or an unknown one.
    pub fn check(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let header = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let key = header.and_then(|value| {
            let (scheme, key) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
        });
        let Some(key) = key else {
            let problem = "the request has no key; expected the header `authorization: Bearer KEY`";
            return Err(ApiError::unauthorized(problem));
        };
        let given = hash(key);
        // All keys are compared, so that the time does not tell which one is similar.
        let none = Choice::from(0);
        let known = self.0.iter().fold(none, |known, key| known | key.as_slice().ct_eq(&given));
        match bool::from(known) {
            true => Ok(()),
            false => Err(ApiError::unauthorized("the key of the request is not known here")),
        }
    }
}

fn hash(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

/// A remark if other users of the machine can read the keys.
#[cfg(unix)]
fn permissions_remark(path: &Path) -> Option<Remark> {
    use std::os::unix::fs::PermissionsExt;
    let mode = fs::metadata(path).ok()?.permissions().mode() & 0o777;
    let text = format!("other users can read the keys (mode {mode:o}); expected 600");
    (mode & 0o077 != 0)
        .then(|| Remark { file: Some(path.to_owned()), ..Remark::advice(KIND, text) })
}

#[cfg(unix)]
const KIND: &str = "readable-keys";

#[cfg(not(unix))]
fn permissions_remark(_: &Path) -> Option<Remark> {
    None
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn check(keys: &Keys, header: Option<&str>) -> bool {
        let mut headers = HeaderMap::new();
        if let Some(header) = header {
            headers.insert(header::AUTHORIZATION, header.parse().unwrap());
        }
        keys.check(&headers).is_ok()
    }

    #[test]
    fn any_key_of_the_file_is_accepted_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        fs::write(&path, "# two people\nsecret-1\n\n  secret-2 \r\n").unwrap();
        let (keys, _) = Keys::from_file(&path).unwrap();
        assert!(check(&keys, Some("Bearer secret-1")) && check(&keys, Some("bearer secret-2")));
        for wrong in [
            None,
            Some("secret-1"),
            Some("Bearer secret-"),
            Some("Bearer # two people"),
            Some("Basic secret-1"),
            Some("Bearer "),
            Some("Bearer secret-1x"),
        ] {
            assert!(!check(&keys, wrong), "{wrong:?}");
        }
        for bad in ["", "# none\n", "two words\n", "schlüssel\n"] {
            fs::write(&path, bad).unwrap();
            assert!(Keys::from_file(&path).is_err(), "{bad}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_readable_file_is_remarked() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        fs::write(&path, "secret\n").unwrap();
        for (mode, remarked) in [(0o644, true), (0o600, false), (0o640, true)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(Keys::from_file(&path).unwrap().1.is_some(), remarked, "{mode:o}");
        }
    }
}
