//! The special tokens that a post-processor adds around a text.

use tokenizers::{Encoding, Token};

/// The special tokens before and after a text.
#[derive(Clone)]
pub(super) struct Framing {
    pub front: Vec<u32>,
    pub back: Vec<u32>,
}

impl Framing {
    /// Runs the post-processor on one placeholder token and splits the result there. `None` if the
    /// result does not contain the placeholder exactly once.
    ///
    /// # Errors
    /// The post-processor fails.
    pub fn of(tokenizer: &tokenizers::Tokenizer) -> tokenizers::Result<Option<Framing>> {
        // No vocabulary has this id.
        const TEXT: u32 = u32::MAX;
        let text = Encoding::from_tokens(vec![Token::new(TEXT, String::new(), (0, 0))], 0);
        let framed = tokenizer.post_process(text, None, true)?;
        let mut parts = framed.get_ids().split(|id| *id == TEXT);
        Ok(match (parts.next(), parts.next(), parts.next()) {
            (Some(front), Some(back), None) => {
                Some(Framing { front: front.to_vec(), back: back.to_vec() })
            }
            _ => None,
        })
    }
}
