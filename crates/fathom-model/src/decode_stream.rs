//! Token ids to text, piece by piece.

use crate::token_text::byte_fallback;
use crate::{Result, Tokenizer};

/// Decodes a sequence as it grows: the pieces joined are exactly the text of all ids.
///
/// A token has no text of its own: a character may be spread over several tokens, and a decoder may
/// treat the first token of a text differently. So a short window of tokens is decoded with and
/// without the new ones, and the difference is the new piece. Of a window that ends in the middle
/// of a character, what comes before that character is given out.
pub struct DecodeStream {
    tokenizer: Tokenizer,
    /// The tokens of the last piece given out, then those still held back.
    window: Vec<u32>,
    /// How many of `window` belong to the piece given out.
    given: usize,
    /// Bytes given out of what the others add.
    ahead: usize,
}

impl DecodeStream {
    pub(crate) fn new(tokenizer: &Tokenizer) -> DecodeStream {
        DecodeStream { tokenizer: tokenizer.clone(), window: Vec::new(), given: 0, ahead: 0 }
    }

    /// Takes the next id and returns the text it completes, which may be empty.
    ///
    /// # Errors
    /// What [`Tokenizer::decode`] fails on.
    pub fn push(&mut self, id: u32) -> Result<String> {
        // Ids outside the vocabulary have no text, and do not part what stands around them.
        let Some(token) = self.tokenizer.id_to_token(id) else { return Ok(String::new()) };
        self.window.push(id);
        // A run of byte tokens is decoded as a whole: if a later byte breaks it, all of it turns
        // into replacement characters, so none of it may be given out before the run ends.
        if byte_fallback(&token).is_some() {
            return Ok(String::new());
        }
        let piece = self.pending()?;
        let certain = piece.trim_end_matches(char::REPLACEMENT_CHARACTER).len();
        let new = piece.get(self.ahead..certain).unwrap_or_default().to_owned();
        if piece.is_empty() || certain < piece.len() {
            self.ahead = self.ahead.max(certain);
            return Ok(new);
        }
        self.window.drain(..self.given);
        (self.given, self.ahead) = (self.window.len(), 0);
        Ok(new)
    }

    /// The rest of the text, an unfinished character included (as U+FFFD).
    ///
    /// # Errors
    /// What [`Tokenizer::decode`] fails on.
    pub fn finish(self) -> Result<String> {
        Ok(self.pending()?.get(self.ahead..).unwrap_or_default().to_owned())
    }

    /// What the window's held-back tokens add to its text.
    fn pending(&self) -> Result<String> {
        let before = self.tokenizer.decode(&self.window[..self.given])?;
        let mut text = self.tokenizer.decode(&self.window)?;
        Ok(if text.starts_with(&before) { text.split_off(before.len()) } else { String::new() })
    }
}
