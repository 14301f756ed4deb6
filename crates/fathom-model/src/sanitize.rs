//! Untrusted text in error messages and remarks.

/// `text` as one short line: control characters are escaped, and everything after the first 200
/// characters is replaced by `…`.
pub(crate) fn sanitize(text: &str) -> String {
    const MAX_CHARS: usize = 200;
    let mut sanitized = String::new();
    for (i, char) in text.chars().enumerate() {
        if i == MAX_CHARS {
            sanitized.push('…');
            break;
        }
        match char.is_control() {
            true => sanitized.extend(char.escape_default()),
            false => sanitized.push(char),
        }
    }
    sanitized
}

#[cfg(test)]
mod tests {
    use super::sanitize;

    #[test]
    fn messages_stay_one_short_line() {
        assert_eq!(sanitize("model.norm.weight"), "model.norm.weight");
        assert_eq!(sanitize("a\nb\u{1b}[2J"), "a\\nb\\u{1b}[2J");
        assert_eq!(sanitize(&"ä".repeat(1_000_000)), "ä".repeat(200) + "…");
    }
}
