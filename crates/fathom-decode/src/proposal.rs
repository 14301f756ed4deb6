//! What a draft model proposes.

use crate::Distribution;

/// One drafted token.
#[derive(Clone, Debug, PartialEq)]
pub struct Drafted {
    /// The token.
    pub token: u32,
    /// The distribution it was drawn from; `None` where the draft took its most likely token,
    /// always.
    pub q: Option<Distribution>,
}

/// Consecutive drafted tokens: a chunk of γ, or fewer where the text must end before.
pub type Proposal = Vec<Drafted>;
