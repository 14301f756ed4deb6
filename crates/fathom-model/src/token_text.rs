//! The bytes that a vocabulary entry encodes.

/// The bytes that a vocabulary entry encodes: one for a byte-fallback token (`<0xE4>`), one per
/// character for an entry in GPT-2's byte alphabet (`ä½`). `None` for any other entry.
pub(crate) fn token_bytes(token: &str) -> Option<Vec<u8>> {
    match byte_fallback(token) {
        Some(byte) => Some(vec![byte]),
        None => token.chars().map(byte_of_char).collect(),
    }
}

/// The byte of a byte-fallback token, `<0x00>` to `<0xFF>`.
pub(crate) fn byte_fallback(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    // `from_str_radix` alone would also accept a sign.
    if digits.len() != 2 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    u8::from_str_radix(digits, 16).ok()
}

/// The byte that a character of GPT-2's byte alphabet encodes.
///
/// Printable Latin-1 characters encode themselves. The other 68 bytes are encoded, in order, by the
/// characters from U+0100 (`bytes_to_unicode` of GPT-2).
fn byte_of_char(c: char) -> Option<u8> {
    let is_itself = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    match u32::from(c) {
        code @ 0..=0xFF => u8::try_from(code).ok().filter(|byte| is_itself(*byte)),
        code @ 0x100..0x144 => {
            let nth = usize::try_from(code - 0x100).ok()?;
            (0..=u8::MAX).filter(|byte| !is_itself(*byte)).nth(nth)
        }
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn gpt2_alphabet() {
        assert_eq!(token_bytes("Ġthe").unwrap(), b" the");
        assert_eq!(token_bytes("Ċ").unwrap(), b"\n");
        assert_eq!(token_bytes("ä½ł").unwrap(), "你".as_bytes());
        assert_eq!(token_bytes("▁the"), None);
        // Every byte has its character: 188 printable ones and 68 others.
        let all: Vec<u8> = ('\0'..='\u{143}').filter_map(byte_of_char).collect();
        let mut sorted = all.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..=255).collect::<Vec<u8>>());
    }

    #[test]
    fn byte_fallback_tokens() {
        assert_eq!(byte_fallback("<0x0A>"), Some(10));
        assert_eq!(byte_fallback("<0xFF>"), Some(255));
        for other in ["<0x0A", "<0x0AB>", "<0x+A>", "0x0A", "<0xZZ>", ""] {
            assert_eq!(byte_fallback(other), None, "{other}");
        }
    }
}
