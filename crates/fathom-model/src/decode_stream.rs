//! Incremental decoding: token ids to text, piece by piece.

use crate::token_text::byte_fallback;
use crate::{Result, Tokenizer};

/// Decodes a sequence as it grows. The pieces concatenated are exactly the text of all ids.
///
/// Tokens cannot be decoded one by one: a character may be spread over several tokens, and a
/// decoder may treat the first token of a text differently. So a short window of tokens is decoded
/// with and without the new tokens, and the difference is the new piece. If the window ends in the
/// middle of a character, only the text before that character is returned.
pub struct DecodeStream {
    tokenizer: Tokenizer,
    /// The tokens of the last complete piece, then the pending ones.
    window: Vec<u32>,
    /// How many tokens of `window` belong to the last complete piece.
    complete: usize,
    /// How many bytes of the pending tokens' text have been returned.
    returned: usize,
}

impl DecodeStream {
    pub(crate) fn new(tokenizer: &Tokenizer) -> DecodeStream {
        DecodeStream { tokenizer: tokenizer.clone(), window: Vec::new(), complete: 0, returned: 0 }
    }

    /// Adds the next id and returns the text it completes, which may be empty.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn push(&mut self, id: u32) -> Result<String> {
        // Ids outside the vocabulary have no text; the tokens around them are decoded as adjacent.
        let Some(token) = self.tokenizer.id_to_token(id) else { return Ok(String::new()) };
        self.window.push(id);
        // A run of byte tokens is decoded as a whole: an invalid later byte turns all of it into
        // replacement characters. So no text is returned before the run ends.
        if byte_fallback(&token).is_some() {
            return Ok(String::new());
        }
        let piece = self.pending()?;
        let certain = piece.trim_end_matches(char::REPLACEMENT_CHARACTER).len();
        let new = piece.get(self.returned..certain).unwrap_or_default().to_owned();
        if piece.is_empty() || certain < piece.len() {
            self.returned = self.returned.max(certain);
            return Ok(new);
        }
        self.window.drain(..self.complete);
        (self.complete, self.returned) = (self.window.len(), 0);
        Ok(new)
    }

    /// The rest of the text. An incomplete character becomes U+FFFD.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn finish(self) -> Result<String> {
        Ok(self.pending()?.get(self.returned..).unwrap_or_default().to_owned())
    }

    /// The text of the pending tokens, decoded after the last complete piece.
    fn pending(&self) -> Result<String> {
        let before = self.tokenizer.decode(&self.window[..self.complete])?;
        let mut text = self.tokenizer.decode(&self.window)?;
        Ok(if text.starts_with(&before) { text.split_off(before.len()) } else { String::new() })
    }
}
