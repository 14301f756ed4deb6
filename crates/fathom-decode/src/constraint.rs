//! Texts restricted token by token, such as to JSON of a schema.
//!
//! The mask of a constraint applies to the target's logits and to the draft's, before a token is
//! chosen. Speculation stays exact: p and q are the masked distributions, so a greedy text is the
//! one that plain decoding under the constraint returns, and a sampled one has its distribution.

use std::panic::{AssertUnwindSafe, catch_unwind};

use fathom_model::{Error, Result};

use crate::panics::panic_message;

/// A rule for which tokens may follow a text.
pub trait Constraint: Send {
    /// The tokens allowed after the tokens so far. End-of-text tokens are among them where the text
    /// may end, and alone where it must.
    ///
    /// # Errors
    /// A limit of the constraint was exceeded. The request ends with this error.
    fn allowed(&mut self) -> Result<TokenMask>;

    /// Adds a token to the text. It is one that [`Constraint::allowed`] just allowed.
    ///
    /// # Errors
    /// As [`Constraint::allowed`].
    fn advance(&mut self, token: u32) -> Result<()>;

    /// Removes the last `tokens` tokens, such as those of rejected drafts.
    ///
    /// # Errors
    /// As [`Constraint::allowed`].
    fn roll_back(&mut self, tokens: usize) -> Result<()>;

    /// An independent constraint in the same state, for the draft's thread.
    fn fork(&self) -> Box<dyn Constraint>;
}

/// A set of token ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenMask {
    /// Bit `id % 32` of word `id / 32`.
    words: Vec<u32>,
}

impl TokenMask {
    /// The empty set, for ids < `vocab`.
    pub fn none(vocab: usize) -> TokenMask {
        TokenMask { words: vec![0; vocab.div_ceil(32)] }
    }

    /// The set of the ids whose bit is set: bit `id % 32` of word `id / 32`.
    pub fn from_words(words: Vec<u32>) -> TokenMask {
        TokenMask { words }
    }

    /// Adds an id below `vocab`.
    pub fn allow(&mut self, id: u32) {
        if let Some(word) = self.words.get_mut(id as usize / 32) {
            *word |= 1 << (id % 32);
        }
    }

    /// Whether an id is in the set.
    pub fn allows(&self, id: u32) -> bool {
        self.words.get(id as usize / 32).is_some_and(|word| word >> (id % 32) & 1 == 1)
    }

    /// Sets the logits of all ids that are not in the set to -∞.
    pub fn apply(&self, logits: &mut [f32]) {
        for (ids, word) in logits.chunks_mut(32).zip(self.words.iter().chain(std::iter::repeat(&0)))
        {
            let refused = (0..).zip(ids).filter(|(bit, _)| word >> bit & 1 == 0);
            refused.for_each(|(_, logit)| *logit = f32::NEG_INFINITY);
        }
    }
}

/// A constraint and the tokens after the prompt that it has seen.
pub struct ConstrainedText {
    constraint: Box<dyn Constraint>,
    tokens: Vec<u32>,
}

impl ConstrainedText {
    /// A text without tokens. `constraint` is in its initial state.
    pub fn new(constraint: Box<dyn Constraint>) -> ConstrainedText {
        ConstrainedText { constraint, tokens: Vec::new() }
    }

    /// An independent copy.
    ///
    /// # Errors
    /// The constraint panicked.
    pub fn fork(&mut self) -> Result<ConstrainedText> {
        let tokens = self.tokens.clone();
        Ok(ConstrainedText {
            constraint: self.guarded(|constraint| Ok(constraint.fork()))?,
            tokens,
        })
    }

    /// Rolls back and advances the constraint to the text `tokens`, without the prompt.
    ///
    /// # Errors
    /// Errors of the constraint.
    pub fn follow(&mut self, tokens: &[u32]) -> Result<()> {
        let kept = self.tokens.iter().zip(tokens).take_while(|(own, new)| own == new).count();
        let dropped = self.tokens.len() - kept;
        if dropped > 0 {
            self.guarded(|constraint| constraint.roll_back(dropped))?;
            self.tokens.truncate(kept);
        }
        tokens[kept..].iter().try_for_each(|&token| self.push(token))
    }

    /// Adds a token.
    ///
    /// # Errors
    /// Errors of the constraint.
    pub fn push(&mut self, token: u32) -> Result<()> {
        self.guarded(|constraint| constraint.advance(token))?;
        self.tokens.push(token);
        Ok(())
    }

    /// Sets the logits of all tokens that may not follow to -∞.
    ///
    /// # Errors
    /// Errors of the constraint; no token may follow.
    pub fn mask(&mut self, logits: &mut [f32]) -> Result<()> {
        let possible = |logits: &[f32]| logits.iter().any(|&logit| logit > f32::NEG_INFINITY);
        if !possible(logits) {
            return Ok(()); // not numbers: whoever chooses a token reports it
        }
        self.guarded(|constraint| constraint.allowed())?.apply(logits);
        match possible(logits) {
            true => Ok(()),
            false => Err(Error::Request(
                "the text cannot go on: its constraint allows no token here".to_owned(),
            )),
        }
    }

    /// Runs `work`. A panic is an error of this text alone.
    fn guarded<T>(&mut self, work: impl FnOnce(&mut dyn Constraint) -> Result<T>) -> Result<T> {
        catch_unwind(AssertUnwindSafe(|| work(&mut *self.constraint))).unwrap_or_else(|panic| {
            let message = panic_message(panic.as_ref());
            Err(Error::Request(format!("the request's constraint stopped: {message}")))
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_excludes_what_it_does_not_allow() {
        let mut mask = TokenMask::none(40);
        [0, 31, 33].into_iter().for_each(|id| mask.allow(id));
        let mut logits = vec![1.0; 70]; // wider than the mask: padding
        mask.apply(&mut logits);
        let kept: Vec<usize> = (0..70).filter(|&id| logits[id] == 1.0).collect();
        assert_eq!(kept, [0, 31, 33]);
        assert!((0..70).all(|id| mask.allows(id) == kept.contains(&(id as usize))));
        assert!(logits.iter().all(|&logit| logit == 1.0 || logit == f32::NEG_INFINITY));
        assert_eq!(TokenMask::from_words(vec![1 | 1 << 31, 2]), mask);
    }

    /// Allows `last + 1` alone, up to 5.
    #[derive(Clone, Default)]
    struct Counting(Vec<u32>);

    impl Constraint for Counting {
        fn allowed(&mut self) -> Result<TokenMask> {
            let next = self.0.last().map_or(0, |last| last + 1);
            assert!(next != 5, "five is too much");
            let mut mask = TokenMask::none(8);
            if next < 4 {
                mask.allow(next);
            }
            Ok(mask)
        }

        fn advance(&mut self, token: u32) -> Result<()> {
            self.0.push(token);
            Ok(())
        }

        fn roll_back(&mut self, tokens: usize) -> Result<()> {
            self.0.truncate(self.0.len() - tokens);
            Ok(())
        }

        fn fork(&self) -> Box<dyn Constraint> {
            Box::new(self.clone())
        }
    }

    #[test]
    fn a_constraint_follows_its_text_and_its_copy_does_not() {
        let mut text = ConstrainedText::new(Box::new(Counting::default()));
        let allowed = |text: &mut ConstrainedText| {
            let mut logits = vec![0.0; 8];
            text.mask(&mut logits).map(|()| logits.iter().position(|&logit| logit == 0.0))
        };
        text.follow(&[0, 1, 2]).unwrap();
        let mut copy = text.fork().unwrap();
        text.follow(&[0]).unwrap();
        assert_eq!(allowed(&mut text).unwrap(), Some(1));
        assert_eq!(allowed(&mut copy).unwrap(), Some(3));
        copy.push(3).unwrap();
        let nothing = allowed(&mut copy).unwrap_err().to_string();
        assert!(nothing.contains("allows no token"), "{nothing}");
        copy.push(4).unwrap();
        let panicked = allowed(&mut copy).unwrap_err().to_string();
        assert!(panicked.contains("five is too much"), "{panicked}");
        let mut broken = vec![f32::NAN; 8];
        text.mask(&mut broken).unwrap(); // left to the sampler
    }
}
