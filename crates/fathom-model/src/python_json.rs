//! Converts JSON as Python's `json` writes it to standard JSON.
//!
//! Python writes `NaN`, `Infinity` and lone surrogates, which the standard does not allow. Without
//! the conversion, one such line would make a whole data set unreadable.

use std::borrow::Cow;

/// Replaces each lone surrogate (`\ud83d` without its other half) by `\ufffd`, and returns how many
/// there were.
pub(crate) fn without_lone_surrogates(text: &str) -> (Cow<'_, str>, usize) {
    // Every escaped surrogate begins with one of these.
    if !text.contains("\\ud") && !text.contains("\\uD") {
        return (Cow::Borrowed(text), 0);
    }
    let mut out = String::with_capacity(text.len());
    let mut replaced = 0;
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        let (before, escape) = rest.split_at(at);
        out.push_str(before);
        let taken = match (surrogate(escape), escape.get(6..).and_then(surrogate)) {
            (Some(0xD800..0xDC00), Some(0xDC00..0xE000)) => 12,
            (Some(_), _) => {
                out.push_str("\\ufffd");
                replaced += 1;
                rest = &escape[6..];
                continue;
            }
            // Skip the escaped character too: the second backslash of `\\` starts no escape.
            (None, _) => 1 + escape[1..].chars().next().map_or(0, char::len_utf8),
        };
        out.push_str(&escape[..taken]);
        rest = &escape[taken..];
    }
    out.push_str(rest);
    match replaced {
        0 => (Cow::Borrowed(text), 0),
        _ => (Cow::Owned(out), replaced),
    }
}

/// The surrogate at the start of a text, if it begins with the escape of one, such as `\ud83d`.
fn surrogate(text: &str) -> Option<u32> {
    let digits = text.strip_prefix("\\u")?.get(..4)?;
    let hexadecimal = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    let unit = u32::from_str_radix(digits, 16).ok().filter(|_| hexadecimal)?;
    (0xD800..0xE000).contains(&unit).then_some(unit)
}

/// Replaces `NaN`, `Infinity` and `-Infinity` outside strings by `null`; `None` if there are none.
pub(crate) fn without_non_finite(text: &str) -> Option<String> {
    if !text.contains("NaN") && !text.contains("Infinity") {
        return None;
    }
    let mut out = String::with_capacity(text.len());
    let mut changed = false;
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let word = ["NaN", "Infinity", "-Infinity"].into_iter().find(|word| rest.starts_with(word));
        let taken = match (c, word) {
            ('"', _) => string_len(rest),
            (_, Some(word)) => {
                out.push_str("null");
                changed = true;
                rest = &rest[word.len()..];
                continue;
            }
            _ => c.len_utf8(),
        };
        out.push_str(&rest[..taken]);
        rest = &rest[taken..];
    }
    changed.then_some(out)
}

/// Length in bytes of the string at the start of `text`, including its quotes; the length of `text`
/// if the string does not end.
fn string_len(text: &str) -> usize {
    let mut escaped = true; // the opening quote does not end the string
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    #[test]
    fn lone_surrogates_only() {
        for (source, expected, count) in [
            (r#"ok \ud83d end"#, r#"ok \ufffd end"#, 1),
            (r#"\ud83d\ude00"#, r#"\ud83d\ude00"#, 0),
            (r#"\uD83D\uDE00"#, r#"\uD83D\uDE00"#, 0),
            (r#"\ude00\ud83d"#, r#"\ufffd\ufffd"#, 2),
            (r#"\ud83d\ud83d\ude00"#, r#"\ufffd\ud83d\ude00"#, 1),
            (r#"\\ud83d"#, r#"\\ud83d"#, 0),
            (r#"\\\ud83d"#, r#"\\\ufffd"#, 1),
            (r#"\ud83"#, r#"\ud83"#, 0),
            (r#"é\ud83déé"#, r#"é\ufffdéé"#, 1),
        ] {
            let (text, replaced) = without_lone_surrogates(source);
            assert_eq!((&*text, replaced), (expected, count), "{source}");
        }
    }

    #[test]
    fn non_finite_numbers_become_null() {
        let source = r#"{"a": NaN, "b NaN \" NaN": [Infinity, -Infinity, "NaN"], "c": 1}"#;
        let expected = r#"{"a": null, "b NaN \" NaN": [null, null, "NaN"], "c": 1}"#;
        assert_eq!(without_non_finite(source).as_deref(), Some(expected));
        assert_eq!(without_non_finite(r#"{"a": "NaN"}"#), None);
    }

    proptest! {
        /// Standard JSON is left unchanged.
        #[test]
        fn standard_json_stays(text in ".*", key in "(NaN|Infinity|\\\\|\"|a)*") {
            let source = serde_json::json!({ key: text }).to_string();
            prop_assert_eq!(without_lone_surrogates(&source).1, 0);
            prop_assert_eq!(without_non_finite(&source), None);
        }

        #[test]
        fn any_text_can_be_converted(source in "(\\\\u?|d8|d83d|dc00|\"|NaN|Infinity|-|é|0)*") {
            let (text, replaced) = without_lone_surrogates(&source);
            prop_assert_eq!(without_lone_surrogates(&text).1, 0, "{}", replaced);
            let _ = without_non_finite(&source);
        }

        /// Strings of arbitrary UTF-16 units become valid, and complete characters are kept.
        #[test]
        fn strings_of_any_units(units in prop::collection::vec(0xD7F0u16..0xE010, 0..12)) {
            let escapes: String = units.iter().map(|unit| format!("\\u{unit:04x}")).collect();
            let source = format!("\"{escapes}\"");
            let (text, _) = without_lone_surrogates(&source);
            let read: Value = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(read.as_str().unwrap(), String::from_utf16_lossy(&units));
        }
    }
}
