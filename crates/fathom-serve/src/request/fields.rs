//! Reads the fields of a JSON object: lenient about how a value is written, strict about what it
//! is.
//!
//! Null means absent. A whole number may be written `3.0`. A field that nobody reads is an error,
//! so nothing that a client asks for is ignored.

use serde_json::{Map, Value};

use crate::error::ApiError;

type Result<T> = std::result::Result<T, ApiError>;

/// The fields of an object that have not been read yet.
#[derive(Debug)]
pub struct Fields {
    /// Where the object is in the request: empty, or such as `messages[2]`.
    path: String,
    rest: Map<String, Value>,
}

impl Fields {
    /// The fields of the JSON object in `body`.
    ///
    /// # Errors
    /// The body is not a JSON object.
    pub fn parse(body: &[u8]) -> Result<Fields> {
        let value = serde_json::from_slice(body).map_err(|error| unreadable(body, &error))?;
        match value {
            Value::Object(rest) => Ok(Fields { path: String::new(), rest }),
            other => Err(ApiError::invalid(format!(
                "the body of the request is {}; expected a JSON object",
                shown(&other)
            ))),
        }
    }

    /// The fields of `value`, which is at `path`.
    ///
    /// # Errors
    /// It is not an object.
    pub fn of(path: &str, value: Value) -> Result<Fields> {
        match value {
            Value::Object(rest) => Ok(Fields { path: path.to_owned(), rest }),
            other => Err(wrong(path, &other, "an object")),
        }
    }

    /// The place of a field in the request.
    pub fn path(&self, name: &str) -> String {
        match self.path.as_str() {
            "" => name.to_owned(),
            path => format!("{path}.{name}"),
        }
    }

    /// An error about a field.
    pub fn error(&self, name: &str, problem: impl AsRef<str>) -> ApiError {
        ApiError::field(&self.path(name), problem)
    }

    /// A value of any type.
    pub fn value(&mut self, name: &str) -> Option<Value> {
        self.rest.shift_remove(name).filter(|value| !value.is_null())
    }

    /// A value converted by `convert`; `expected` describes the values that it accepts.
    fn converted<T>(
        &mut self,
        name: &str,
        expected: &str,
        convert: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.value(name) else { return Ok(None) };
        let converted = convert(&value).ok_or_else(|| wrong(&self.path(name), &value, expected));
        converted.map(Some)
    }

    /// True or false.
    ///
    /// # Errors
    /// Another value.
    pub fn boolean(&mut self, name: &str) -> Result<Option<bool>> {
        self.converted(name, "true or false", Value::as_bool)
    }

    /// A number.
    ///
    /// # Errors
    /// Another value.
    pub fn number(&mut self, name: &str) -> Result<Option<f32>> {
        self.converted(name, "a number", |value| value.as_f64().map(|number| number as f32))
    }

    /// A whole number.
    ///
    /// # Errors
    /// Another value.
    pub fn integer(&mut self, name: &str) -> Result<Option<i64>> {
        self.converted(name, "a whole number", integer)
    }

    /// A whole number from `least` to `most`.
    ///
    /// # Errors
    /// Another value.
    pub fn count(&mut self, name: &str, least: usize, most: usize) -> Result<Option<usize>> {
        let expected = match most {
            usize::MAX => format!("a whole number of at least {least}"),
            _ => format!("a whole number from {least} to {most}"),
        };
        self.converted(name, &expected, |value| {
            let number = usize::try_from(integer(value)?).ok()?;
            (least..=most).contains(&number).then_some(number)
        })
    }

    /// A text.
    ///
    /// # Errors
    /// Another value.
    pub fn string(&mut self, name: &str) -> Result<Option<String>> {
        self.converted(name, "a text", |value| value.as_str().map(str::to_owned))
    }

    /// One of `names`.
    ///
    /// # Errors
    /// Another value.
    pub fn name(&mut self, name: &str, names: &[&'static str]) -> Result<Option<&'static str>> {
        let expected = names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>();
        self.converted(name, &expected.join(" or "), |value| {
            let text = value.as_str()?;
            names.iter().find(|name| **name == text).copied()
        })
    }

    /// The fields of an object.
    ///
    /// # Errors
    /// Another value.
    pub fn object(&mut self, name: &str) -> Result<Option<Fields>> {
        let path = self.path(name);
        self.value(name).map(|value| Fields::of(&path, value)).transpose()
    }

    /// An object whose names are the client's own.
    ///
    /// # Errors
    /// Another value.
    pub fn map(&mut self, name: &str) -> Result<Option<Map<String, Value>>> {
        Ok(self.object(name)?.map(|fields| fields.rest))
    }

    /// A list of at most `most` values.
    ///
    /// # Errors
    /// Another value, or too many.
    pub fn list(&mut self, name: &str, most: usize) -> Result<Option<Vec<Value>>> {
        let Some(value) = self.value(name) else { return Ok(None) };
        let path = self.path(name);
        let Value::Array(list) = value else { return Err(wrong(&path, &value, "a list")) };
        match list.len() {
            len if len > most => {
                let problem = format!("has {len} entries; expected at most {most}");
                Err(ApiError::field(&path, problem))
            }
            _ => Ok(Some(list)),
        }
    }

    /// A list of token ids.
    ///
    /// # Errors
    /// Another value.
    pub fn ids(&mut self, name: &str, most: usize) -> Result<Option<Vec<u32>>> {
        let path = self.path(name);
        self.list(name, most)?.map(|list| ids(&path, &list)).transpose()
    }

    /// A field that is accepted only with values that ask for nothing.
    ///
    /// # Errors
    /// A value that asks for something; `why` says why that is not possible.
    pub fn inert(
        &mut self,
        name: &str,
        why: &str,
        is_inert: impl FnOnce(&Value) -> bool,
    ) -> Result<()> {
        match self.value(name) {
            Some(value) if !is_inert(&value) => {
                Err(self.error(name, format!("is {}, but {why}", shown(&value))))
            }
            _ => Ok(()),
        }
    }

    /// The remaining fields that are not null, for objects that pass on unknown fields.
    pub fn into_rest(mut self) -> Map<String, Value> {
        self.rest.retain(|_, value| !value.is_null());
        self.rest
    }

    /// Ends reading.
    ///
    /// # Errors
    /// A field that was not read.
    pub fn finish(self) -> Result<()> {
        match self.rest.iter().find(|(_, value)| !value.is_null()) {
            None => Ok(()),
            Some((name, _)) => {
                let name = shortened(name);
                Err(self.error(&name, "is not a field that this server supports"))
            }
        }
    }
}

/// The error about a body that is no JSON, or too deep for its reader.
fn unreadable(body: &[u8], error: &serde_json::Error) -> ApiError {
    let problem = match error.to_string() {
        _ if body.is_empty() => "is empty; expected a JSON object".to_owned(),
        text if text.starts_with("recursion limit") => {
            "is nested too deeply; expected fewer than 128 levels".to_owned()
        }
        text => format!("is not valid JSON: {text}"),
    };
    ApiError::invalid(format!("the body of the request {problem}"))
}

/// A whole number, also if written as `3.0`.
pub fn integer(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| {
        let number = value.as_f64()?;
        // Beyond 2^53 not every whole number is an f64, so the number meant is unknown.
        let whole = number.fract() == 0.0 && number.abs() <= 9_007_199_254_740_992.0;
        whole.then_some(number as i64)
    })
}

/// A list of token ids.
///
/// # Errors
/// Another value in the list.
pub fn ids(path: &str, list: &[Value]) -> Result<Vec<u32>> {
    let id = |(place, value): (usize, &Value)| {
        let id = integer(value).and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| wrong(&format!("{path}[{place}]"), value, "a token id"))
    };
    list.iter().enumerate().map(id).collect()
}

/// The error about a value of the wrong type.
pub fn wrong(path: &str, value: &Value, expected: &str) -> ApiError {
    ApiError::field(path, format!("is {}; expected {expected}", shown(value)))
}

/// A value in an error message: short ones as they are, others by their type.
pub fn shown(value: &Value) -> String {
    match value {
        Value::String(text) if text.len() > 60 => "a long text".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        other => other.to_string(),
    }
}

/// The beginning of a name that a client made up.
pub fn shortened(name: &str) -> String {
    match name.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name.to_owned(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn fields(text: &str) -> Fields {
        Fields::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn numbers_are_read_however_they_are_written() {
        let mut fields = fields(r#"{"a": 3.0, "b": 2, "c": null, "d": -1, "e": 1e400000}"#
            .replace("1e400000", "1e19").as_str());
        assert_eq!(fields.count("a", 0, 9).unwrap(), Some(3));
        assert_eq!(fields.number("b").unwrap(), Some(2.0));
        assert_eq!(fields.count("c", 0, 9).unwrap(), None);
        assert!(fields.count("d", 0, 9).is_err());
        assert!(fields.integer("e").is_err());
        fields.finish().unwrap();
    }

    #[test]
    fn errors_name_the_field_and_what_was_expected() {
        let message = |error: ApiError| error.body().error.message;
        let mut outer = fields(r#"{"n": 1000000000, "o": {"x": [1]}, "extra": 1}"#);
        let error = outer.count("n", 1, 128).unwrap_err();
        assert_eq!(message(error), "`n` is 1000000000; expected a whole number from 1 to 128");
        let error = outer.object("o").unwrap().unwrap().string("x").unwrap_err();
        assert_eq!(message(error), "`o.x` is a list; expected a text");
        let error = outer.finish().unwrap_err();
        assert_eq!(message(error), "`extra` is not a field that this server supports");
    }

    #[test]
    fn bodies_that_are_not_json_objects_are_refused() {
        for body in [&b""[..], b"[1]", b"{", b"\xff", br#"{"a": "\ud800"}"#, b"{\"a\": NaN}"] {
            assert!(Fields::parse(body).is_err(), "{}", body.escape_ascii());
        }
        let deep = format!("{{\"a\": {}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(Fields::parse(deep.as_bytes()).is_err());
    }
}
