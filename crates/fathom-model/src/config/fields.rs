//! Typed access to the fields of a JSON object, with errors that name file and field.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::path::Path;

use serde_json::{Map, Value};

use crate::{Error, Remark, Result};

/// Maximum number of token ids in one field.
const MAX_IDS: usize = 1000;

/// A JSON object of a file, possibly nested. `null` counts as absent unless a method states
/// otherwise.
pub(crate) struct Fields<'a> {
    path: &'a Path,
    prefix: String,
    map: &'a Map<String, Value>,
    /// Names that were read. The others have no effect.
    read: RefCell<BTreeSet<String>>,
}

impl<'a> Fields<'a> {
    /// The top-level object of a file.
    pub(crate) fn root(path: &'a Path, value: &'a Value) -> Result<Fields<'a>> {
        match value {
            Value::Object(map) => Ok(Fields::new(path, String::new(), map)),
            _ => Err(Error::file(path, format!("is {}, expected a JSON object", shown(value)))),
        }
    }

    fn new(path: &'a Path, prefix: String, map: &'a Map<String, Value>) -> Fields<'a> {
        Fields { path, prefix, map, read: RefCell::default() }
    }

    /// A field's name in messages: dotted if nested.
    pub(crate) fn full_name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// A remark about this file.
    pub(crate) fn remark(&self, kind: &'static str, text: impl Into<String>) -> Remark {
        Remark::file(kind, self.path, text)
    }

    /// An error about a field.
    pub(crate) fn error(&self, name: &str, problem: impl Into<String>) -> Error {
        Error::field(self.path, self.full_name(name), problem)
    }

    /// Whether the field is present, even as `null`.
    pub(crate) fn names(&self, name: &str) -> bool {
        self.map.contains_key(name)
    }

    /// Fields that are not null and were not read, in the order of their names.
    pub(crate) fn unread(&self) -> Vec<&'a str> {
        let read = self.read.borrow();
        let given = self.map.iter().filter(|(_, value)| !value.is_null());
        given.map(|(name, _)| name.as_str()).filter(|name| !read.contains(*name)).collect()
    }

    /// Marks a field as unread although it was read: its value had no effect.
    pub(crate) fn had_no_effect(&self, name: &str) {
        self.read.borrow_mut().remove(name);
    }

    /// Whether the object has no fields at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// The value of a field.
    pub(crate) fn get(&self, name: &str) -> Option<&'a Value> {
        let (name, value) = self.map.get_key_value(name)?;
        self.read.borrow_mut().insert(name.clone());
        Some(value).filter(|value| !value.is_null())
    }

    /// A nested object.
    pub(crate) fn object(&self, name: &str) -> Result<Option<Fields<'a>>> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Object(map)) => {
                Ok(Some(Fields::new(self.path, format!("{}.", self.full_name(name)), map)))
            }
            Some(other) => Err(self.wrong(name, other, "an object")),
        }
    }

    /// A whole number in `range`.
    pub(crate) fn size(&self, name: &str, range: RangeInclusive<usize>) -> Result<Option<usize>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let number = value.as_u64().and_then(|number| usize::try_from(number).ok());
        match number.filter(|number| range.contains(number)) {
            Some(number) => Ok(Some(number)),
            None => {
                let expected = format!("a whole number from {} to {}", range.start(), range.end());
                Err(self.wrong(name, value, &expected))
            }
        }
    }

    /// A number above `above`.
    pub(crate) fn number_above(&self, name: &str, above: f64) -> Result<Option<f64>> {
        self.number(name, &format!("a number above {above}"), |number| number > above)
    }

    /// A number for which `accept` returns true; `expected` describes those numbers in messages.
    pub(crate) fn number(
        &self,
        name: &str,
        expected: &str,
        accept: impl Fn(f64) -> bool,
    ) -> Result<Option<f64>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.as_f64().filter(|&number| is_tame(number) && accept(number)) {
            Some(number) => Ok(Some(number)),
            None => Err(self.wrong(name, value, expected)),
        }
    }

    /// `true` or `false`.
    pub(crate) fn flag(&self, name: &str) -> Result<Option<bool>> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => Err(self.wrong(name, other, "true or false")),
        }
    }

    /// A string.
    pub(crate) fn text(&self, name: &str) -> Result<Option<&'a str>> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(name, other, "a string")),
        }
    }

    /// A list of strings.
    pub(crate) fn texts(&self, name: &str) -> Result<Option<Vec<&'a str>>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let texts = value.as_array().and_then(|items| items.iter().map(Value::as_str).collect());
        texts.map(Some).ok_or_else(|| self.wrong(name, value, "a list of strings"))
    }

    /// Exactly `len` numbers above 0.
    pub(crate) fn positive_numbers(&self, name: &str, len: usize) -> Result<Option<Vec<f32>>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let items = value
            .as_array()
            .ok_or_else(|| self.wrong(name, value, &format!("a list of {len} numbers")))?;
        if items.len() != len {
            let problem =
                format!("has {} numbers, expected {len}, half the rotary width", items.len());
            return Err(self.error(name, problem));
        }
        let number = |item: &Value| {
            let number = item.as_f64().filter(|&number| is_tame(number) && number > 0.0);
            let problem = || format!("holds {}, expected numbers above 0", shown(item));
            number.map(|number| number as f32).ok_or_else(|| self.error(name, problem()))
        };
        items.iter().map(number).collect::<Result<_>>().map(Some)
    }

    /// A field that should hold one token id, but may hold a list.
    pub(crate) fn single_token_id(&self, name: &str) -> Result<Vec<u32>> {
        self.ids(name, "a token id")
    }

    /// A field that may hold a token id or a list of them.
    pub(crate) fn token_ids(&self, name: &str) -> Result<Vec<u32>> {
        self.ids(name, "a token id or a list of token ids")
    }

    /// Token ids, alone or in a list. Older configs write `-1` for none.
    fn ids(&self, name: &str, expected: &str) -> Result<Vec<u32>> {
        let Some(value) = self.get(name) else { return Ok(Vec::new()) };
        let items = match value {
            Value::Array(items) if items.len() > MAX_IDS => {
                let problem =
                    format!("lists {} token ids, expected at most {MAX_IDS}", items.len());
                return Err(self.error(name, problem));
            }
            Value::Array(items) => items.as_slice(),
            single => std::slice::from_ref(single),
        };
        let given = items.iter().filter(|item| item.as_i64() != Some(-1));
        given.map(token_id).collect::<Option<_>>().ok_or_else(|| self.wrong(name, value, expected))
    }

    fn wrong(&self, name: &str, value: &Value, expected: &str) -> Error {
        self.error(name, format!("is {}, expected {expected}", shown(value)))
    }
}

/// A value in a message: itself if it is short, otherwise its type.
pub(crate) fn shown(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "an object".into(),
        Value::String(text) if text.chars().count() > 60 => "a long string".into(),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => value.to_string(),
    }
}

/// Whether a number is 0 or moderate enough that products of a few such numbers stay finite and
/// nonzero, in f32 as well.
fn is_tame(number: f64) -> bool {
    number == 0.0 || (1e-30..=1e12).contains(&number.abs())
}

fn token_id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}
