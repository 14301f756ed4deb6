//! Escaping of untrusted text for HTML, SVG and JSON.

use std::fmt::Write;

use serde_json::Value;

/// Escapes text for elements and quoted attributes of HTML and SVG. Characters that XML forbids
/// are replaced by U+FFFD, and bidirectional controls by their escape sequences.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(c),
            c if turns(c) => {
                let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
            }
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => {
                out.push(char::REPLACEMENT_CHARACTER);
            }
            c => out.push(c),
        }
    }
    out
}

/// JSON that is safe inside a `script` element.
pub(crate) fn script_json(value: &Value) -> String {
    let json = value.to_string();
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out
}

/// A token's text for people: in quotes, on one line, shortened.
pub(crate) fn token_label(text: Option<&str>, id: u32) -> String {
    const LONGEST: usize = 24;
    let Some(text) = text else { return format!("token {id}") };
    let mut short: String = text.chars().take(LONGEST).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    let quoted = Value::from(short).to_string();
    quoted.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// Whether a character is a bidirectional control.
fn turns(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_gets_out_of_its_place() {
        assert_eq!(escape("<a b='\"&\">"), "&lt;a b=&#39;&quot;&amp;&quot;&gt;");
        assert_eq!(escape("\u{0}\u{1b}\u{ffff}\u{202e}x"), "\u{fffd}\u{fffd}\u{fffd}\\u{202e}x");
        let json = script_json(&serde_json::json!("</script><!-- \u{2028}&"));
        assert_eq!(json, "\"\\u003c/script\\u003e\\u003c!-- \\u2028\\u0026\"");
    }

    #[test]
    fn tokens_are_named_on_one_line() {
        assert_eq!(token_label(Some("\n"), 1), "\"\\n\"");
        assert_eq!(token_label(Some(&"x".repeat(40)), 1).chars().count(), 27);
        assert_eq!(token_label(None, 7), "token 7");
    }
}
