//! Python's `str`, `repr` and `json.dumps`.

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

use super::budget::{Budget, Text};

/// `str(value)`; undefined becomes an empty text as in Jinja.
pub(super) fn str_of(value: &Value, budget: &Budget) -> Result<String, Error> {
    // Also rejects values nested too deeply for the recursion below.
    budget.charge(value)?;
    match value.kind() {
        ValueKind::String => Ok(value.as_str().unwrap_or_default().to_owned()),
        ValueKind::Undefined => Ok(String::new()),
        _ => {
            let mut out = Text::new(budget);
            write_repr(value, &mut out)?;
            Ok(out.finish())
        }
    }
}

/// `repr(value)`.
fn write_repr(value: &Value, out: &mut Text) -> Result<(), Error> {
    match value.kind() {
        ValueKind::Undefined => out.push("Undefined"),
        ValueKind::None => out.push("None"),
        ValueKind::Bool => out.push(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number => out.push(&number(value)),
        ValueKind::String => write_quoted(value.as_str().unwrap_or_default(), out),
        ValueKind::Seq | ValueKind::Iterable => {
            out.push("[")?;
            for (index, item) in value.try_iter()?.enumerate() {
                out.push(if index > 0 { ", " } else { "" })?;
                write_repr(&item, out)?;
            }
            out.push("]")
        }
        ValueKind::Map => {
            out.push("{")?;
            for (index, key) in value.try_iter()?.enumerate() {
                out.push(if index > 0 { ", " } else { "" })?;
                write_repr(&key, out)?;
                out.push(": ")?;
                write_repr(&value.get_item(&key)?, out)?;
            }
            out.push("}")
        }
        kind => out.push(&format!("<{kind}>")),
    }
}

/// `repr` of a string: in single quotes, or in double quotes if it contains single quotes but no
/// double quotes. Unlike Python, it escapes no unprintable characters except control characters.
fn write_quoted(text: &str, out: &mut Text) -> Result<(), Error> {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push_char(quote)?;
    for c in text.chars() {
        match c {
            '\\' => out.push("\\\\")?,
            '\n' => out.push("\\n")?,
            '\r' => out.push("\\r")?,
            '\t' => out.push("\\t")?,
            c if c == quote => out.push(&format!("\\{c}"))?,
            c if c.is_control() => out.push(&format!("\\x{:02x}", u32::from(c)))?,
            c => out.push_char(c)?,
        }
    }
    out.push_char(quote)
}

/// `repr` of an int or float.
fn number(value: &Value) -> String {
    match f64::try_from(value.clone()) {
        Ok(float) if !value.is_integer() => float_repr(float),
        _ => value.to_string(),
    }
}

/// `repr` of a float: the shortest digits that parse to the same value, in scientific notation from
/// 1e16 and below 1e-4.
fn float_repr(x: f64) -> String {
    if x.is_nan() {
        return "nan".to_owned();
    }
    if x.is_infinite() {
        return if x > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let scientific = format!("{x:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    match exponent.parse::<i32>().unwrap_or(0) {
        -4..16 => format!("{x:?}"),
        exponent => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.unsigned_abs())
        }
    }
}

/// The arguments of `json.dumps`.
pub(super) struct JsonStyle {
    pub(super) ensure_ascii: bool,
    /// The indentation of one level; `None` writes everything on one line.
    pub(super) indent: Option<String>,
    pub(super) item_separator: String,
    pub(super) key_separator: String,
    pub(super) sort_keys: bool,
}

/// `json.dumps(value)`.
pub(super) fn json(value: &Value, style: &JsonStyle, budget: &Budget) -> Result<String, Error> {
    budget.charge(value)?;
    let mut out = Text::new(budget);
    write_json(value, style, 0, &mut out)?;
    Ok(out.finish())
}

fn write_json(value: &Value, style: &JsonStyle, level: usize, out: &mut Text) -> Result<(), Error> {
    match value.kind() {
        ValueKind::None => out.push("null"),
        ValueKind::Bool => out.push(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => out.push(match number(value).as_str() {
            "nan" => "NaN",
            "inf" => "Infinity",
            "-inf" => "-Infinity",
            finite => finite,
        }),
        ValueKind::String => write_json_string(value.as_str().unwrap_or_default(), style, out),
        ValueKind::Seq | ValueKind::Iterable => {
            let mut empty = true;
            out.push("[")?;
            for item in value.try_iter()? {
                begin_item(empty, style, level, out)?;
                empty = false;
                write_json(&item, style, level + 1, out)?;
            }
            end_items(empty, style, level, out)?;
            out.push("]")
        }
        ValueKind::Map => {
            let mut keys: Vec<Value> = value.try_iter()?.collect();
            if style.sort_keys {
                keys.sort();
            }
            let empty = keys.is_empty();
            out.push("{")?;
            for (index, key) in keys.iter().enumerate() {
                begin_item(index == 0, style, level, out)?;
                write_json_key(key, style, out)?;
                out.push(&style.key_separator)?;
                write_json(&value.get_item(key)?, style, level + 1, out)?;
            }
            end_items(empty, style, level, out)?;
            out.push("}")
        }
        kind => Err(Error::new(
            ErrorKind::InvalidOperation,
            format!("a value of type {kind} cannot be written as JSON"),
        )),
    }
}

fn begin_item(first: bool, style: &JsonStyle, level: usize, out: &mut Text) -> Result<(), Error> {
    if !first {
        out.push(&style.item_separator)?;
    }
    new_line(style, level + 1, out)
}

fn end_items(empty: bool, style: &JsonStyle, level: usize, out: &mut Text) -> Result<(), Error> {
    if empty { Ok(()) } else { new_line(style, level, out) }
}

fn new_line(style: &JsonStyle, level: usize, out: &mut Text) -> Result<(), Error> {
    let Some(indent) = &style.indent else { return Ok(()) };
    out.push("\n")?;
    (0..level).try_for_each(|_| out.push(indent))
}

/// Writes an object key. Like Python, it puts numbers, booleans and None in quotes.
fn write_json_key(key: &Value, style: &JsonStyle, out: &mut Text) -> Result<(), Error> {
    match key.kind() {
        ValueKind::String => write_json(key, style, 0, out),
        _ => {
            out.push("\"")?;
            write_json(key, style, 0, out)?;
            out.push("\"")
        }
    }
}

fn write_json_string(text: &str, style: &JsonStyle, out: &mut Text) -> Result<(), Error> {
    out.push("\"")?;
    for c in text.chars() {
        match c {
            '"' => out.push("\\\"")?,
            '\\' => out.push("\\\\")?,
            '\n' => out.push("\\n")?,
            '\r' => out.push("\\r")?,
            '\t' => out.push("\\t")?,
            '\u{8}' => out.push("\\b")?,
            '\u{c}' => out.push("\\f")?,
            c if c < ' ' || (style.ensure_ascii && !c.is_ascii()) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    out.push(&format!("\\u{unit:04x}"))?;
                }
            }
            c => out.push_char(c)?,
        }
    }
    out.push("\"")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn floats_as_python_writes_them() {
        // The strings are from `repr` of CPython 3.11.
        for (x, expected) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (123456789.125, "123456789.125"),
            (f64::NAN, "nan"),
            (f64::NEG_INFINITY, "-inf"),
        ] {
            assert_eq!(float_repr(x), expected);
        }
    }
}
