//! Words of strangers in messages of ours.

/// `text` fit for one line of a message: control characters escaped, the rest of a long text left
/// out.
pub(crate) fn brief(text: &str) -> String {
    const LONGEST: usize = 200;
    let mut brief = String::new();
    for (i, char) in text.chars().enumerate() {
        if i == LONGEST {
            brief.push('…');
            break;
        }
        match char.is_control() {
            true => brief.extend(char.escape_default()),
            false => brief.push(char),
        }
    }
    brief
}

#[cfg(test)]
mod tests {
    use super::brief;

    #[test]
    fn messages_stay_one_short_line() {
        assert_eq!(brief("model.norm.weight"), "model.norm.weight");
        assert_eq!(brief("a\nb\u{1b}[2J"), "a\\nb\\u{1b}[2J");
        assert_eq!(brief(&"ä".repeat(1_000_000)), "ä".repeat(200) + "…");
    }
}
