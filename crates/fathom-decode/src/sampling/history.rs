//! Counts of the tokens before a row of logits, for penalties.

use std::collections::HashMap;

/// Number of occurrences of a token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Count {
    /// In the prompt.
    pub prompt: u32,
    /// After the prompt.
    pub output: u32,
}

/// A prompt and the tokens after it, including drafts, with counts by token. It is updated from
/// step to step at constant cost per token.
#[derive(Clone, Debug)]
pub struct History {
    tokens: Vec<u32>,
    prompt_len: usize,
    counts: HashMap<u32, Count>,
}

impl History {
    /// An empty history of a text whose prompt has `prompt_len` tokens.
    pub fn new(prompt_len: usize) -> History {
        History { tokens: Vec::new(), prompt_len, counts: HashMap::new() }
    }

    /// Number of counted tokens.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether no token is counted.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Number of counted tokens after the prompt.
    pub fn generated(&self) -> usize {
        self.tokens.len().saturating_sub(self.prompt_len)
    }

    /// Adds a token.
    pub fn push(&mut self, token: u32) {
        *self.count(self.tokens.len(), token) += 1;
        self.tokens.push(token);
    }

    /// Truncates to `len` tokens.
    pub fn truncate(&mut self, len: usize) {
        while self.tokens.len() > len {
            let Some(token) = self.tokens.pop() else { break };
            *self.count(self.tokens.len(), token) -= 1;
            if self.counts.get(&token) == Some(&Count::default()) {
                self.counts.remove(&token);
            }
        }
    }

    /// Truncates to `keep` tokens and adds `tail`.
    pub fn follow(&mut self, keep: usize, tail: &[u32]) {
        self.truncate(keep);
        tail.iter().for_each(|&token| self.push(token));
    }

    /// The count that a token at `position` belongs to.
    fn count(&mut self, position: usize, token: u32) -> &mut u32 {
        let in_prompt = position < self.prompt_len;
        let count = self.counts.entry(token).or_default();
        if in_prompt { &mut count.prompt } else { &mut count.output }
    }

    /// All tokens with their counts, in no order.
    pub(super) fn counts(&self) -> impl Iterator<Item = (u32, Count)> {
        self.counts.iter().map(|(&token, &count)| (token, count))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// After any pushes and truncations the counts are those of the remaining tokens.
        #[test]
        fn counts_are_those_of_the_remaining_tokens(
            prompt_len in 0..6_usize,
            moves in prop::collection::vec(
                (0..12_usize, prop::collection::vec(0..4_u32, 0..5)),
                0..12,
            ),
        ) {
            let mut history = History::new(prompt_len);
            let mut tokens: Vec<u32> = Vec::new();
            for (keep, tail) in moves {
                history.follow(keep, &tail);
                tokens.truncate(keep);
                tokens.extend(tail);
                let count = |token: u32, within: &[u32]| {
                    within.iter().filter(|&&other| other == token).count() as u32
                };
                let (prompt, output) = tokens.split_at(prompt_len.min(tokens.len()));
                let expected: BTreeMap<u32, (u32, u32)> = tokens
                    .iter()
                    .map(|&token| (token, (count(token, prompt), count(token, output))))
                    .collect();
                let counts = history.counts();
                let counts: BTreeMap<u32, (u32, u32)> =
                    counts.map(|(token, count)| (token, (count.prompt, count.output))).collect();
                prop_assert_eq!(counts, expected);
                prop_assert_eq!((history.len(), history.generated()), (tokens.len(), output.len()));
            }
        }
    }
}
