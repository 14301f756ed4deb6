//! Tokens to text while they come, up to a stop string.

use fathom_model::{DecodeStream, Result, Tokenizer};

use crate::{StopCheck, StopStrings};

/// A generation's text, piece by piece: the pieces joined are the text of all its tokens, cut before the
/// first stop string.
pub struct TextStream<'a> {
    decode: DecodeStream<'a>,
    stops: StopStrings,
}

impl<'a> TextStream<'a> {
    /// The text of a generation by `tokenizer`'s model that ends at any of `stops`.
    pub fn new(tokenizer: &'a Tokenizer, stops: Vec<String>) -> TextStream<'a> {
        TextStream { decode: tokenizer.decode_stream(), stops: StopStrings::new(stops) }
    }

    /// Takes the next token and returns the text that is certain by now, which may be empty.
    ///
    /// # Errors
    /// What the tokenizer fails on.
    pub fn push(&mut self, token: u32) -> Result<String> {
        Ok(self.stops.push(&self.decode.push(token)?))
    }

    /// The generation has ended: the rest of its text.
    ///
    /// # Errors
    /// What the tokenizer fails on.
    pub fn finish(mut self) -> Result<String> {
        let rest = self.stops.push(&self.decode.finish()?);
        Ok(rest + &self.stops.finish())
    }

    /// A [`StopCheck`] for a generation that ends at any of `stops`; `None` without any.
    pub fn stop_check(tokenizer: &'a Tokenizer, stops: &[String]) -> Option<StopCheck<'a>> {
        if stops.is_empty() {
            return None;
        }
        let mut stream = TextStream::new(tokenizer, stops.to_vec());
        Some(Box::new(move |token| {
            stream.push(token)?;
            Ok(stream.stops.stopped())
        }))
    }
}
