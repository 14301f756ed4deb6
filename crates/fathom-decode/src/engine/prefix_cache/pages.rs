//! The pages of the prefix cache, and those that a sequence shares.

use std::cmp::Reverse;
use std::sync::Arc;

use fathom_backend::Backend;
use fathom_model::{ReferenceRows, SharedRows};

use crate::engine::watch::{Observations, Watcher};

/// A page in the cache. Numbers are not used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct PageId(pub u64);

/// What a page follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Before {
    /// Nothing: the first page of a text of this rotary regime.
    Start(u64),
    Page(PageId),
}

/// The tokens of a page and what it follows: what its rows depend on. In their order, pages that
/// follow the same one stand together, and of these the ones that begin with the same tokens.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::engine) struct PageKey {
    pub(super) before: Before,
    pub(super) tokens: Box<[u32]>,
}

impl PageKey {
    /// The number of first tokens that two pages have in common: 0 if they follow different ones.
    pub(super) fn common(&self, other: &PageKey) -> usize {
        let pairs = self.tokens.iter().zip(&other.tokens);
        if self.before == other.before { pairs.take_while(|(a, b)| a == b).count() } else { 0 }
    }
}

/// A page and the pages before it.
pub(super) struct Page<B: Backend> {
    pub key: Arc<PageKey>,
    /// The rows from the text's beginning to the end of this page.
    pub rows: SharedRows<B>,
    /// What a watcher saw when it was computed. `None`: there was none.
    pub observed: Option<Observed<B>>,
    /// Number of sequences that share it.
    pub users: usize,
    pub last_use: u64,
}

/// What a watcher saw in a page, and what it needs to go on after it.
pub(super) struct Observed<B: Backend> {
    pub observations: Observations,
    pub references: ReferenceRows<B>,
}

impl<B: Backend> Page<B> {
    /// The order of eviction: least recently used first, and of the pages of one text the last
    /// first, which no other page follows.
    pub fn turn(&self, id: PageId) -> (u64, Reverse<usize>, PageId) {
        (self.last_use, Reverse(self.rows.len()), id)
    }

    /// Whether a text with this watcher, if any, can take the page.
    pub fn suits(&self, watcher: Option<&(dyn Watcher + 'static)>) -> bool {
        let observed = self.observed.as_ref();
        let accepts = |watcher: &(dyn Watcher + 'static)| {
            observed.is_some_and(|observed| watcher.accepts(&observed.observations))
        };
        watcher.is_none_or(accepts)
    }
}

/// The pages that a sequence shares with the cache: its first ones, all of them full.
#[derive(Debug, Default)]
pub(in crate::engine) struct SharedPages {
    pub(super) pages: Vec<PageId>,
    /// Pages of the cache that the sequence computed nevertheless: those after its shared ones,
    /// all of them full. It has its own copies of them, and of all that follows.
    pub(super) copied: Vec<PageId>,
    /// Rotary regime of the sequence. `None` before the first page.
    pub(super) regime: Option<u64>,
}

impl SharedPages {
    /// Number of pages.
    pub fn len(&self) -> usize {
        self.pages.len()
    }

    /// Number of the sequence's pages that the cache has.
    pub(super) fn known(&self) -> usize {
        self.pages.len() + self.copied.len()
    }

    /// What the sequence's next shared page follows.
    pub(super) fn last_shared(&self, regime: u64) -> Before {
        self.pages.last().map_or(Before::Start(regime), |&page| Before::Page(page))
    }

    /// What the page after the known ones follows.
    pub(super) fn last_known(&self, regime: u64) -> Before {
        self.copied.last().map_or(self.last_shared(regime), |&page| Before::Page(page))
    }
}
