//! Streaming detokenization up to a stop string.

use fathom_model::{DecodeStream, Result, Tokenizer};

use crate::{SamplingParams, StopCheck, StopStrings};

/// The text of a generation in pieces. The joined pieces are the text of all tokens up to the first
/// stop string.
///
/// ```
/// use fathom_decode::TextStream;
/// use fathom_model::Tokenizer;
/// # use std::path::Path;
///
/// # fn main() -> fathom_model::Result<()> {
/// # let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models/draft");
/// let tokenizer = Tokenizer::from_dir(&dir)?;
/// let mut stream = TextStream::new(&tokenizer, vec!["END".to_owned()]);
/// let mut text = String::new();
/// for token in tokenizer.encode("naïve 世界 END and more", false)? {
///     text += &stream.push(token)?;
/// }
/// text += &stream.finish()?;
/// assert_eq!(text, "naïve 世界 ");
/// # Ok(())
/// # }
/// ```
pub struct TextStream {
    decode: DecodeStream,
    stops: StopStrings,
    /// Number of further tokens in whose text stop strings are ignored.
    exempt: usize,
}

impl TextStream {
    /// The text of a generation by `tokenizer`'s model that ends at any of `stops`.
    pub fn new(tokenizer: &Tokenizer, stops: Vec<String>) -> TextStream {
        TextStream { decode: tokenizer.decode_stream(), stops: StopStrings::new(stops), exempt: 0 }
    }

    /// The text of a request with `params`: its stop strings, which count after `min_tokens`.
    pub fn of_request(tokenizer: &Tokenizer, params: &SamplingParams) -> TextStream {
        TextStream::new(tokenizer, params.stop.clone()).with_min_tokens(params.min_tokens)
    }

    /// Ignores stop strings that are complete within the text of the first `min_tokens` tokens, as
    /// vLLM does.
    #[must_use]
    pub fn with_min_tokens(self, min_tokens: usize) -> TextStream {
        TextStream { exempt: min_tokens, ..self }
    }

    /// Adds the next token and returns the text that is final now, which may be empty.
    ///
    /// # Errors
    /// Errors of the tokenizer.
    pub fn push(&mut self, token: u32) -> Result<String> {
        let piece = self.decode.push(token)?;
        if self.exempt == 0 {
            return Ok(self.stops.push(&piece));
        }
        self.exempt -= 1;
        Ok(self.stops.push_exempt(&piece))
    }

    /// Ends the generation and returns the rest of its text.
    ///
    /// # Errors
    /// Errors of the tokenizer.
    pub fn finish(mut self) -> Result<String> {
        let rest = self.decode.finish()?;
        let rest = match self.exempt {
            0 => self.stops.push(&rest),
            _ => self.stops.push_exempt(&rest),
        };
        Ok(rest + &self.stops.finish())
    }

    /// A [`StopCheck`] for a generation that ends at any of `stops`. `None` without stop strings.
    pub fn stop_check(tokenizer: &Tokenizer, stops: &[String]) -> Option<StopCheck> {
        TextStream::new(tokenizer, stops.to_vec()).into_stop_check()
    }

    /// This stream as a [`StopCheck`]. `None` without stop strings.
    pub fn into_stop_check(mut self) -> Option<StopCheck> {
        if self.stops.is_empty() {
            return None;
        }
        Some(Box::new(move |token| {
            self.push(token)?;
            Ok(self.stops.stopped())
        }))
    }
}
