//! Free guesses: what followed the last tokens of a text where they occurred before.
//!
//! A text that quotes (an edit, a refactored function, a summary) repeats long passages of its
//! prompt or of itself. The guess for its next tokens is what followed the longest suffix of the
//! text that occurred earlier, as in SuffixDecoding (Oliaro et al. 2024, arXiv:2411.04975). It
//! needs no draft model, and costs microseconds.

use std::collections::BTreeMap;

/// Longest context in tokens: longer matches count as matches of this length.
const CONTEXT: usize = 31;
/// Occurrences are counted of strings of up to this length: a context and the token after it.
const COUNTED: usize = CONTEXT + 1;
/// The state of the empty string.
const ROOT: usize = 0;
/// Ends a text of an index of several texts. Never guessed, and no token of a vocabulary.
const END: u32 = u32::MAX;

/// An index of all substrings of a growing text: its suffix automaton (Blumer et al. 1985), with
/// the number of occurrences of every string of up to 32 tokens.
///
/// A state is the set of all strings that end at the same positions of the text. They are suffixes
/// of one another. Each is longer than the strings of the state's `link`, which end at more
/// positions.
///
/// A text of n tokens has at most 2n states and 3n transitions. Adding a token takes amortised
/// O(log n) for the automaton, and at most 32 steps for the counts.
///
/// ```
/// use fathom_decode::SuffixIndex;
///
/// let mut index = SuffixIndex::default();
/// index.extend(&[5, 6, 7, 8, 1, 5, 6]);
/// let found = index.latest();
/// assert_eq!(found.context(), 2, "5 6 occurred before");
/// let guess: Vec<u32> = index.guess(found, 3).iter().map(|guess| guess.token).collect();
/// assert_eq!(guess, [7, 8, 1]);
/// ```
#[derive(Clone, Debug)]
pub struct SuffixIndex {
    states: Vec<State>,
    /// The whole text.
    last: usize,
    /// The last [`COUNTED`] tokens of the text.
    counted: Match,
    /// Length of the text.
    len: usize,
}

#[derive(Clone, Debug, Default)]
struct State {
    /// Length of the longest string.
    len: usize,
    /// The state of the longest suffix that ends at more positions. The root's is the root.
    link: usize,
    /// By the token after the strings.
    next: BTreeMap<u32, usize>,
    /// Number of occurrences, if the shortest string has at most [`COUNTED`] tokens.
    count: usize,
    /// End of the last occurrence, for the same states.
    latest: usize,
}

/// A suffix of a text that occurs in an index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Match {
    state: usize,
    len: usize,
}

impl Match {
    /// Length of the suffix in tokens; 0 if there is none. At most 31.
    pub fn context(self) -> usize {
        self.len
    }
}

/// A guess of one token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guess {
    /// The token.
    pub token: u32,
    /// Length of the context in tokens: the match, and the guesses before this one.
    pub context: usize,
    /// How often the token followed the context.
    pub count: usize,
    /// How often any token followed the context.
    pub total: usize,
}

impl Default for SuffixIndex {
    /// The index of an empty text.
    fn default() -> SuffixIndex {
        let (states, counted) = (vec![State::default()], Match::default());
        SuffixIndex { states, last: ROOT, counted, len: 0 }
    }
}

impl SuffixIndex {
    /// Length of the text in tokens.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the text is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds tokens to the end of the text.
    pub fn extend(&mut self, tokens: &[u32]) {
        tokens.iter().for_each(|&token| self.push(token));
    }

    /// Adds another text. No match and no guess goes across its borders.
    pub fn add_text(&mut self, tokens: &[u32]) {
        self.extend(tokens);
        self.push(END);
    }

    /// Adds a token to the end of the text.
    pub fn push(&mut self, token: u32) {
        self.append(token);
        self.len += 1;
        let before = self.settle(self.counted);
        let state = self.states[before.state].next.get(&token).copied().unwrap_or(ROOT);
        self.counted = self.shorten(Match { state, len: before.len + 1 }, COUNTED);
        // The suffixes of the text, longest first.
        let mut state = self.counted.state;
        while state != ROOT {
            self.states[state].count += 1;
            self.states[state].latest = self.len;
            state = self.states[state].link;
        }
    }

    /// The usual construction: new states and transitions for the text with one more token.
    fn append(&mut self, token: u32) {
        let new = self.states.len();
        self.states.push(State { len: self.states[self.last].len + 1, ..State::default() });
        let mut from = std::mem::replace(&mut self.last, new);
        while !self.states[from].next.contains_key(&token) {
            self.states[from].next.insert(token, new);
            if from == ROOT {
                return; // a new token: its link is the root
            }
            from = self.states[from].link;
        }
        let Some(&known) = self.states[from].next.get(&token) else { return };
        let len = self.states[from].len + 1;
        if self.states[known].len == len {
            self.states[new].link = known;
            return;
        }
        // The strings of `known` of up to `len` tokens now end at one more position: a new state.
        let short = self.states.len();
        self.states.push(State { len, ..self.states[known].clone() });
        self.states[known].link = short;
        self.states[new].link = short;
        while self.states[from].next.get(&token) == Some(&known) {
            self.states[from].next.insert(token, short);
            if from == ROOT {
                return;
            }
            from = self.states[from].link;
        }
    }

    /// The longest suffix of the text that occurred before.
    pub fn latest(&self) -> Match {
        let state = self.states[self.last].link;
        self.shorten(Match { state, len: self.states[state].len }, CONTEXT)
    }

    /// The longest suffix that occurs in this index, of a text whose longest such suffix was
    /// `found` before `token` was added to it.
    pub fn follow(&self, found: Match, token: u32) -> Match {
        let mut from = self.settle(found);
        loop {
            if let Some(&state) = self.states[from.state].next.get(&token) {
                return self.shorten(Match { state, len: from.len + 1 }, CONTEXT);
            }
            if from.state == ROOT {
                return Match::default();
            }
            from = self.shorter(from);
        }
    }

    /// Guesses up to `most` tokens after a match. Each is the most frequent token after its
    /// context, and of several the one that occurred last.
    pub fn guess(&self, found: Match, most: usize) -> Vec<Guess> {
        let mut at = self.settle(found);
        let mut guesses = Vec::with_capacity(most);
        while guesses.len() < most && at.len > 0 {
            let next = self.states[at.state].next.iter().filter(|(token, _)| **token != END);
            let followers = next.map(|(token, state)| (&self.states[*state], *token, *state));
            let total = followers.clone().map(|(state, ..)| state.count).sum();
            let best = followers.max_by_key(|(state, ..)| (state.count, state.latest));
            match best {
                Some((state, token, number)) => {
                    guesses.push(Guess { token, context: at.len, count: state.count, total });
                    at = self.shorten(Match { state: number, len: at.len + 1 }, CONTEXT);
                }
                // The context is the end of a text.
                None => at = self.shorter(at),
            }
        }
        guesses
    }

    /// The longest suffix of a match that occurs in more places.
    fn shorter(&self, found: Match) -> Match {
        let state = self.states[found.state].link;
        Match { state, len: self.states[state].len }
    }

    /// The last `most` tokens of a match, or all if there are fewer.
    fn shorten(&self, found: Match, most: usize) -> Match {
        self.settle(Match { len: found.len.min(most), ..found })
    }

    /// A match with the state that its string has now: the state may have been divided since, and a
    /// shortened string belongs to another state.
    fn settle(&self, Match { mut state, len }: Match) -> Match {
        while state != ROOT && self.states[self.states[state].link].len >= len {
            state = self.states[state].link;
        }
        Match { state, len }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Ends of the occurrences of `string` in `text`.
    fn ends(text: &[u32], string: &[u32]) -> Vec<usize> {
        (string.len()..=text.len()).filter(|&end| text[..end].ends_with(string)).collect()
    }

    /// How often each token follows `context` in `texts`, and the end of its last occurrence in
    /// their concatenation.
    fn followers(texts: &[Vec<u32>], context: &[u32]) -> BTreeMap<u32, (usize, usize)> {
        let mut found: BTreeMap<u32, (usize, usize)> = BTreeMap::new();
        let mut before = 0;
        for text in texts {
            for end in ends(text, context).into_iter().filter(|&end| end < text.len()) {
                let entry = found.entry(text[end]).or_default();
                *entry = (entry.0 + 1, before + end + 1);
            }
            before += text.len() + 1;
        }
        found
    }

    /// Brute force: the guesses after `text`, whose longest matching suffix has `context` tokens.
    fn expected(texts: &[Vec<u32>], text: &[u32], context: usize, most: usize) -> Vec<Guess> {
        let (mut text, mut context, mut guesses) = (text.to_vec(), context, Vec::new());
        while guesses.len() < most && context > 0 {
            let found = followers(texts, &text[text.len() - context..]);
            let total = found.values().map(|(count, _)| count).sum();
            let best = found.into_iter().max_by_key(|(_, (count, latest))| (*count, *latest));
            match best {
                Some((token, (count, _))) => {
                    guesses.push(Guess { token, context, count, total });
                    text.push(token);
                    context = (context + 1).min(CONTEXT);
                }
                None => context -= 1,
            }
        }
        guesses
    }

    /// Longest suffix of `text` that occurs in `texts`, with a token after it if `followed`.
    fn longest(texts: &[Vec<u32>], text: &[u32], followed: bool) -> usize {
        let occurs = |len: usize| {
            let suffix = &text[text.len() - len..];
            let last = |text: &Vec<u32>| text.len() - usize::from(followed);
            texts.iter().any(|text| ends(text, suffix).iter().any(|&end| end <= last(text)))
        };
        (0..=text.len().min(CONTEXT)).rev().find(|&len| len == 0 || occurs(len)).unwrap_or(0)
    }

    /// Texts with long repetitions: pieces of a few kinds, of few tokens.
    fn text() -> impl Strategy<Value = Vec<u32>> {
        let piece = prop_oneof![
            prop::collection::vec(0..3_u32, 0..6),
            Just(vec![0, 1, 2, 2, 1, 0, 1]),
            (0..3_u32, 1..40_usize).prop_map(|(token, n)| vec![token; n]),
        ];
        prop::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        /// The match and the guesses of a text in itself, at every length of the text.
        #[test]
        fn guesses_are_those_of_a_search_through_the_text(text in text(), most in 0..50_usize) {
            let mut index = SuffixIndex::default();
            for len in 0..=text.len() {
                let own = vec![text[..len].to_vec()];
                let found = index.latest();
                prop_assert_eq!(found.context(), longest(&own, &text[..len], true));
                let guesses = index.guess(found, most);
                prop_assert_eq!(guesses, expected(&own, &text[..len], found.context(), most));
                text.get(len).into_iter().for_each(|&token| index.push(token));
            }
            prop_assert!(index.states.len() <= 2 * text.len().max(1));
        }

        /// The match of a text in other texts, some of which are added while it grows.
        #[test]
        fn a_text_is_followed_through_other_texts(
            texts in prop::collection::vec(text(), 1..4),
            text in text(),
        ) {
            let (mut index, mut found) = (SuffixIndex::default(), Match::default());
            let mut added = Vec::new();
            for (position, &token) in text.iter().enumerate() {
                if let Some(new) = texts.get(position / 3).filter(|_| position % 3 == 0) {
                    index.add_text(new);
                    added.push(new.clone());
                    // A match is extended: it does not start in the middle of a new text.
                    found = Match::default();
                    text[..position].iter().for_each(|&token| found = index.follow(found, token));
                }
                found = index.follow(found, token);
                let now = &text[..=position];
                prop_assert_eq!(found.context(), longest(&added, now, false));
                let guesses = index.guess(found, 9);
                prop_assert_eq!(guesses, expected(&added, now, found.context(), 9));
            }
        }

        /// A match made before the index grew is still a match, with the same guesses as one made
        /// afterwards.
        #[test]
        fn a_match_stays_valid_while_the_index_grows(first in text(), more in text()) {
            let mut index = SuffixIndex::default();
            index.add_text(&first);
            let mut found = Match::default();
            first.iter().for_each(|&token| found = index.follow(found, token));
            index.add_text(&more);
            let both = [first.clone(), more];
            prop_assert_eq!(index.guess(found, 9), expected(&both, &first, found.context(), 9));
        }
    }
}
