//! Free guesses of the next tokens of each text.

use fathom_backend::Backend;

use super::slot::Slot;
use super::{Engine, Gamma, ModeChoice};
use crate::planner::{Guessed, Guessing, StepPlan};
use crate::{Drafted, Guess, Match, Mode, Proposal, SuffixIndex};

/// The guesses for one text: from the text itself, or from the engine's corpus if a longer suffix
/// of the text occurs there.
#[derive(Default)]
pub(super) struct Guesser {
    /// The text, as far as it was followed.
    text: SuffixIndex,
    /// Its longest suffix that occurs in the corpus.
    in_corpus: Match,
    /// Number of pending drafts before the guesses.
    pending: usize,
    /// What may follow the text and the pending drafts.
    guesses: Vec<Guess>,
    /// How many of them are verified in this step.
    verified: usize,
}

impl Guesser {
    /// Guesses up to `most` tokens after `text`, which continues the last one, and the pending
    /// drafts after it.
    fn guess(&mut self, text: &[u32], pending: &[Drafted], corpus: &SuffixIndex, most: usize) {
        for &token in text.get(self.text.len()..).unwrap_or_default() {
            self.text.push(token);
            self.in_corpus = corpus.follow(self.in_corpus, token);
        }
        let (mut own, mut other) = (self.text.latest(), self.in_corpus);
        for draft in pending {
            own = self.text.follow(own, draft.token);
            other = corpus.follow(other, draft.token);
        }
        (self.pending, self.verified) = (pending.len(), 0);
        self.guesses = match other.context() > own.context() {
            true => corpus.guess(other, most),
            false => self.text.guess(own, most),
        };
    }

    /// What may follow the text.
    pub fn guesses(&self) -> &[Guess] {
        &self.guesses
    }

    /// The guesses that are verified in this step.
    pub fn verified(&self) -> &[Guess] {
        &self.guesses[..self.verified]
    }

    /// The tokens of [`Guesser::verified`].
    pub fn verified_tokens(&self) -> Vec<u32> {
        self.verified().iter().map(|guess| guess.token).collect()
    }

    /// Whether guesses take the place of a chunk of the draft model in this step: in `sd`, because
    /// they are expected to be right for longer.
    pub fn replaces_draft(&self, mode: Mode) -> bool {
        mode == Mode::Sd && self.verified > 0
    }

    /// Ends a step, in which `committed` was added to the text.
    pub fn record(&mut self, committed: &[u32], acceptance: &mut Guessing) {
        // The guesses say something if all drafts before them became text.
        acceptance.record(&self.guesses, committed.get(self.pending..).unwrap_or_default());
        self.forget();
    }

    fn forget(&mut self) {
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
            slot.guesser.guess(slot.text.tokens(), &[], &self.corpus, most);
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

    /// Plans guesses beside the drafts of a model, at an adaptive γ and for greedy texts: in
    /// `pearl` after the pending drafts, where they fill the target's pass, and in `sd` in place of
    /// a chunk if they are expected to be right for longer. Other modes keep or drop all guesses.
    pub(super) fn plan_guesses_beside_drafts(&mut self, plan: StepPlan) {
        let StepPlan { mode, gamma, .. } = plan;
        if mode == Mode::Suffix {
            return;
        }
        self.running.iter_mut().for_each(|slot| slot.guesser.forget());
        let fixed = matches!(self.options.gamma, Gamma::Fixed(_));
        if mode == Mode::Ar || fixed || !self.guesses_beside_drafts {
            return;
        }
        for slot in self.running.iter_mut().filter(|slot| slot.takes_argmax()) {
            let most = match mode.is_parallel() {
                // The pass itself adds a token.
                true => slot.chunk_len(self.planner.longest()).saturating_sub(1),
                false => slot.chunk_len(gamma),
            };
            let (text, pending) = (slot.text.tokens(), slot.pearl.pending());
            slot.guesser.guess(text, pending, &self.corpus, most);
        }
        let guessed = |slot: &Slot<B>| Guessed {
            run: slot.runs.open(),
            pending: slot.pearl.pending().len(),
            guesses: slot.guesser.guesses.clone(),
        };
        let guessed: Vec<Guessed> = self.running.iter().map(guessed).collect();
        let lengths = self.planner.plan_guesses_beside_drafts(plan, &guessed);
        for (slot, length) in self.running.iter_mut().zip(lengths) {
            slot.guesser.verified = length;
        }
    }

    /// Puts guesses in the place of the chunks that they replace.
    pub(super) fn replace_drafts(&self, chunks: &mut [Proposal]) {
        for (chunk, guesses) in chunks.iter_mut().zip(self.guessed_chunks()) {
            if !guesses.is_empty() {
                *chunk = guesses;
            }
        }
    }

    /// The guesses to verify, one chunk for every running request.
    pub(super) fn guessed_chunks(&self) -> Vec<Proposal> {
        let drafted = |guess: &Guess| Drafted { token: guess.token, q: None };
        let chunk = |slot: &Slot<B>| slot.guesser.verified().iter().map(drafted).collect();
        self.running.iter().map(chunk).collect()
    }
}
