//! Drafted tokens.

use crate::Distribution;

/// One drafted token.
#[derive(Clone, Debug, PartialEq)]
pub struct Drafted {
    /// The token.
    pub token: u32,
    /// The distribution q it was drawn from. `None` if it was not drawn: a greedy draft, which is
    /// the draft model's most likely token, or a free guess. Then q is 1 at the token and 0
    /// elsewhere.
    pub q: Option<Distribution>,
}

/// A chunk of consecutive drafted tokens: γ, or fewer near the end of the text.
pub type Proposal = Vec<Drafted>;
