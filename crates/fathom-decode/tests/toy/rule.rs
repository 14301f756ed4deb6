//! A constraint for tests.

use fathom_decode::{Constraint, TokenMask};
use fathom_model::Result;

/// A rule in which every token decides which ones may follow: after tokens of sum s those with
/// (7 · id + s) % 5 < `share`, and after `longest` tokens only `end`.
#[derive(Clone, Debug)]
pub struct Rule {
    pub vocab: usize,
    pub share: u32,
    pub longest: usize,
    pub end: Option<u32>,
    pub text: Vec<u32>,
}

impl Rule {
    pub fn new(vocab: usize, share: u32) -> Rule {
        Rule { vocab, share, longest: usize::MAX, end: None, text: Vec::new() }
    }

    /// Whether `id` may follow `text`.
    pub fn allows(&self, text: &[u32], id: u32) -> bool {
        let sum: u32 = text.iter().sum();
        match text.len() >= self.longest {
            true => self.end == Some(id),
            false => (7 * id + sum) % 5 < self.share,
        }
    }
}

impl Constraint for Rule {
    fn allowed(&mut self) -> Result<TokenMask> {
        let mut mask = TokenMask::none(self.vocab);
        (0..self.vocab as u32)
            .filter(|&id| self.allows(&self.text, id))
            .for_each(|id| mask.allow(id));
        Ok(mask)
    }

    fn advance(&mut self, token: u32) -> Result<()> {
        assert!(self.allows(&self.text, token), "{token} after {:?}", self.text);
        self.text.push(token);
        Ok(())
    }

    fn roll_back(&mut self, tokens: usize) -> Result<()> {
        self.text.truncate(self.text.len() - tokens);
        Ok(())
    }

    fn fork(&self) -> Box<dyn Constraint> {
        Box::new(self.clone())
    }
}
