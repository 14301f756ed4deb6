//! Free guesses of the next tokens of each text.

use fathom_backend::Backend;

use super::slot::Slot;
use super::{Engine, ModeChoice};
use crate::{Drafted, Guess, Match, Mode, Proposal, SuffixIndex};

/// The guesses for one text: from the text itself, or from the engine's corpus if a longer suffix
/// of the text occurs there.
#[derive(Default)]
pub(super) struct Guesser {
    /// The text, as far as it was followed.
    text: SuffixIndex,
    /// Its longest suffix that occurs in the corpus.
    in_corpus: Match,
    /// What may follow the text.
    guesses: Vec<Guess>,
    /// How many of them are verified in this step.
    verified: usize,
}

impl Guesser {
    /// Guesses up to `most` tokens after `text`, which continues the last one.
    fn guess(&mut self, text: &[u32], corpus: &SuffixIndex, most: usize) {
        for &token in &text[self.text.len()..] {
            self.text.push(token);
            self.in_corpus = corpus.follow(self.in_corpus, token);
        }
        let own = self.text.latest();
        self.guesses = match self.in_corpus.context() > own.context() {
            true => corpus.guess(self.in_corpus, most),
            false => self.text.guess(own, most),
        };
    }

    /// What may follow the text.
    pub fn guesses(&self) -> &[Guess] {
        &self.guesses
    }

    /// The guesses that are verified in this step.
    fn verified(&self) -> &[Guess] {
        &self.guesses[..self.verified]
    }

    /// Forgets the guesses after a step.
    pub fn clear(&mut self) {
        self.guesses.clear();
        self.verified = 0;
    }
}

impl<B: Backend> Engine<B> {
    /// Adds a text to the corpus that free guesses come from, next to each request's own text.
    /// Texts and their distribution do not depend on it.
    pub fn add_to_corpus(&mut self, tokens: &[u32]) {
        self.corpus.add_text(tokens);
    }

    /// Guesses what follows each text, if the mode may verify guesses, and plans how many to
    /// verify. Returns the longest.
    pub(super) fn plan_guesses(&mut self) -> usize {
        if !matches!(self.options.mode, ModeChoice::Auto | ModeChoice::Always(Mode::Suffix)) {
            return 0;
        }
        let most = self.planner.longest();
        for slot in &mut self.running {
            // The pass itself adds a token.
            let most = most.min(slot.text.remaining().saturating_sub(1));
            slot.guesser.guess(slot.text.tokens(), &self.corpus, most);
        }
        let guesses: Vec<&[Guess]> =
            self.running.iter().map(|slot| slot.guesser.guesses()).collect();
        let lengths = self.planner.plan_guesses(&guesses);
        let longest = lengths.iter().copied().max().unwrap_or(0);
        for (slot, length) in self.running.iter_mut().zip(lengths) {
            slot.guesser.verified = length;
        }
        longest
    }

    /// The guesses to verify, one chunk for every running request.
    pub(super) fn guessed_chunks(&self) -> Vec<Proposal> {
        let drafted = |guess: &Guess| Drafted { token: guess.token, q: None };
        let chunk = |slot: &Slot<B>| slot.guesser.verified().iter().map(drafted).collect();
        self.running.iter().map(chunk).collect()
    }
}
