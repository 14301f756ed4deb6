//! Drafted tokens.

use crate::Distribution;

/// One drafted token.
#[derive(Clone, Debug, PartialEq)]
pub struct Drafted {
    /// The token.
    pub token: u32,
    /// The distribution it was drawn from. `None` for greedy drafts, which are the most likely
    /// token.
    pub q: Option<Distribution>,
}

/// A chunk of consecutive drafted tokens: γ, or fewer near the end of the text.
pub type Proposal = Vec<Drafted>;
