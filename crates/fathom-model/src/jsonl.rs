//! Parses the rows of data sets, which are JSON objects from untrusted input.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use crate::python_json::{without_lone_surrogates, without_non_finite};
use crate::{Error, Remark, Result};

/// Converts a line of Python's JSON to standard JSON, with a remark if lone surrogates were
/// replaced.
pub(crate) fn standard_json<'a>(
    path: &Path,
    line: usize,
    text: &'a str,
) -> (Cow<'a, str>, Option<Remark>) {
    let (text, surrogates) = without_lone_surrogates(text);
    // Standard JSON has no `NaN` or `Infinity` outside strings, so it is never changed.
    let text = without_non_finite(&text).map_or(text, Cow::Owned);
    let remark = (surrogates > 0).then(|| {
        let plural = if surrogates == 1 { "" } else { "s" };
        let text = format!(
            "holds {surrogates} lone surrogate{plural} (half a character), read as U+FFFD, \
             \u{FFFD}"
        );
        Remark::line("lone-surrogates", path, line, text)
    });
    (text, remark)
}

/// The JSON object of a line. Fields are parsed on demand.
pub(crate) struct Record<'a> {
    path: &'a Path,
    line: usize,
    fields: HashMap<String, &'a RawValue>,
}

impl<'a> Record<'a> {
    /// Parses a line that [`standard_json`] returned.
    ///
    /// # Errors
    /// The line is not a JSON object.
    pub(crate) fn parse(path: &'a Path, line: usize, text: &'a str) -> Result<Record<'a>> {
        match serde_json::from_str(text) {
            Ok(fields) => Ok(Record { path, line, fields }),
            // Valid JSON of another type.
            Err(error) if error.is_data() => {
                Err(Error::line(path, line, "must be a JSON object, `{...}`"))
            }
            Err(error) => {
                let mut problem = format!("is not valid JSON (column {})", error.column());
                if matches!(text.trim(), "{" | "[" | "[{") {
                    problem += "; expected one JSON object per line, not one over several lines";
                }
                Err(Error::line(path, line, problem))
            }
        }
    }

    pub(crate) fn path(&self) -> &'a Path {
        self.path
    }

    pub(crate) fn line(&self) -> usize {
        self.line
    }

    /// Whether the field is present and not null.
    pub(crate) fn has(&self, field: &str) -> bool {
        self.fields.get(field).is_some_and(|raw| raw.get() != "null")
    }

    /// A field as `T`; `None` if it is absent or null. `expected` completes the error message
    /// "`field` must be …".
    pub(crate) fn get<T: DeserializeOwned>(
        &self,
        field: &str,
        expected: &str,
    ) -> Result<Option<T>> {
        if !self.has(field) {
            return Ok(None);
        }
        let parsed = self.fields.get(field).map(|raw| serde_json::from_str(raw.get())).transpose();
        parsed.map_err(|error| {
            let mut problem = format!("`{field}` must be {expected}");
            // Details are shown only if one of our own types wrote them; those of serde are
            // obscure.
            if let Some(detail) = own_detail(&error) {
                problem = format!("{problem}; {detail}");
            }
            self.error(problem)
        })
    }

    /// The first of `fields` that is a whole number ≥ 0.
    pub(crate) fn first_integer(&self, fields: &[&str]) -> Option<u64> {
        fields.iter().find_map(|field| serde_json::from_str(self.fields.get(*field)?.get()).ok())
    }

    /// The field as a JSON value; `None` if it is absent or null.
    pub(crate) fn value(&self, field: &str) -> Option<serde_json::Value> {
        let value: serde_json::Value = serde_json::from_str(self.fields.get(field)?.get()).ok()?;
        (!value.is_null()).then_some(value)
    }

    /// The field as a string, if it is one.
    pub(crate) fn text(&self, field: &str) -> Option<String> {
        serde_json::from_str(self.fields.get(field)?.get()).ok()
    }

    pub(crate) fn error(&self, problem: impl Into<String>) -> Error {
        Error::line(self.path, self.line, problem)
    }
}

/// The beginning of all error messages of our own `Deserialize` implementations. It distinguishes
/// them from serde's.
pub(crate) const OWN: &str = "found ";

fn own_detail(error: &serde_json::Error) -> Option<String> {
    let message = error.to_string();
    let (detail, _position) = message.rsplit_once(" at line ")?;
    detail.starts_with(OWN).then(|| detail.to_owned())
}

/// A token id: a JSON integer from 0 to 2³² − 1.
pub(crate) struct TokenId(pub(crate) u32);

impl<'de> Deserialize<'de> for TokenId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<TokenId, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = TokenId;
            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("a token id")
            }
            fn visit_u64<E: serde::de::Error>(self, id: u64) -> Result<TokenId, E> {
                u32::try_from(id).map(TokenId).map_err(|_| {
                    E::custom(format!("{OWN}{id}, which is too large for any vocabulary"))
                })
            }
            fn visit_i64<E: serde::de::Error>(self, id: i64) -> Result<TokenId, E> {
                Err(E::custom(format!("{OWN}{id}, which is negative")))
            }
            fn visit_f64<E: serde::de::Error>(self, id: f64) -> Result<TokenId, E> {
                Err(E::custom(format!("{OWN}{id}, which is not a token id")))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}
