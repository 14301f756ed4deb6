//! Keys and values of earlier texts, for prompts that begin with the same tokens.
//!
//! A text is cut into pages of the backend's page size. A page's rows depend on all tokens before
//! it, so its key is the page before it and its own tokens: two texts share a page exactly if they
//! agree up to its end. The comparison is of tokens, not of hashes, so no collision can mix texts
//! up. The first page follows the rotary regime of its text, which its rows also depend on. The last
//! page of a prompt is kept too, if it is not full.
//!
//! Where the tokens of a text part from those of the cache within a page, the text takes a copy of
//! the page's rows up to there.
//!
//! Both models have such a cache. By row invariance the bits of a text do not depend on it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use fathom_backend::Backend;
use fathom_model::{Sequence, SharedRows, Transformer};

use super::slot::Slot;

/// A page in the cache. Numbers are not used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct PageId(u64);

/// What a page follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Before {
    /// Nothing: the first page of a text of this rotary regime.
    Start(u64),
    Page(PageId),
}

/// The tokens of a page and what it follows: what its rows depend on. In their order, pages that
/// follow the same one stand together, and of these the ones that begin with the same tokens.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct PageKey {
    before: Before,
    tokens: Box<[u32]>,
}

impl PageKey {
    /// The number of first tokens that two pages have in common: 0 if they follow different ones.
    fn common(&self, other: &PageKey) -> usize {
        let pairs = self.tokens.iter().zip(&other.tokens);
        if self.before == other.before { pairs.take_while(|(a, b)| a == b).count() } else { 0 }
    }
}

/// A page and the pages before it.
struct Page<B: Backend> {
    key: Arc<PageKey>,
    /// The rows from the text's beginning to the end of this page.
    rows: SharedRows<B>,
    /// Number of sequences that share it.
    users: usize,
    last_use: u64,
}

impl<B: Backend> Page<B> {
    /// The order of eviction: least recently used first, and of the pages of one text the last
    /// first, which no other page follows.
    fn turn(&self, id: PageId) -> (u64, Reverse<usize>, PageId) {
        (self.last_use, Reverse(self.rows.len()), id)
    }
}

/// The pages that a sequence shares with the cache: its first ones, all of them full.
#[derive(Debug, Default)]
pub(super) struct SharedPages {
    pages: Vec<PageId>,
    /// Rotary regime of the sequence. `None` before the first page.
    regime: Option<u64>,
    /// The sequence computed its next page although the cache has it. That page and those after it
    /// are its own.
    ends: bool,
}

impl SharedPages {
    /// Number of pages.
    pub fn len(&self) -> usize {
        self.pages.len()
    }

    fn last(&self, regime: u64) -> Before {
        self.pages.last().map_or(Before::Start(regime), |&page| Before::Page(page))
    }
}

/// The prefix cache of one model.
pub(super) struct PrefixCache<B: Backend> {
    /// Tokens per page.
    page: usize,
    pages: HashMap<PageId, Page<B>>,
    by_key: BTreeMap<Arc<PageKey>, PageId>,
    /// The pages without users, in the order of eviction.
    idle: BTreeSet<(u64, Reverse<usize>, PageId)>,
    /// Number of uses and pages so far.
    clock: u64,
}

impl<B: Backend> PrefixCache<B> {
    /// An empty cache with pages of `page` tokens.
    pub fn new(page: usize) -> PrefixCache<B> {
        let (pages, by_key, idle) = (HashMap::new(), BTreeMap::new(), BTreeSet::new());
        PrefixCache { page, pages, by_key, idle, clock: 0 }
    }

    /// Number of pages.
    pub fn len(&self) -> usize {
        self.pages.len()
    }

    /// Number of pages that sequences share, which cannot be evicted.
    pub fn in_use(&self) -> usize {
        self.pages.len() - self.idle.len()
    }

    /// Number of pages that no sequence shares.
    pub fn unused(&self) -> usize {
        self.idle.len()
    }

    /// Evicts pages until at most `most` are left, or all others are in use.
    pub fn shrink_to(&mut self, most: usize) {
        while self.pages.len() > most {
            let Some((_, _, id)) = self.idle.pop_first() else { break };
            if let Some(page) = self.pages.remove(&id) {
                self.by_key.remove(&page.key);
            }
        }
    }

    /// The key of the page that computes the next rows of `text` after `shared`.
    pub fn next_key(
        &self,
        model: &Transformer<B>,
        sequence: &Sequence<B>,
        shared: &SharedPages,
        text: &[u32],
    ) -> PageKey {
        let start = shared.len() * self.page;
        let tokens = text[start.min(text.len())..(start + self.page).min(text.len())].into();
        PageKey { before: shared.last(model.rotary_regime(sequence)), tokens }
    }

    /// Takes the longest cached beginning of `text` that is longer than the sequence. Returns the
    /// number of tokens by which the sequence has grown.
    pub fn take(
        &mut self,
        model: &Transformer<B>,
        sequence: &mut Sequence<B>,
        shared: &mut SharedPages,
        text: &[u32],
    ) -> usize {
        let (own, regime) = (sequence.len(), model.rotary_regime(sequence));
        let (mut found, mut len) = (Vec::new(), shared.len() * self.page);
        let mut before = shared.last(regime);
        for tokens in text[len.min(text.len())..].chunks(self.page) {
            let key = PageKey { before, tokens: tokens.into() };
            let Some((id, common)) = self.nearest(&key) else { break };
            found.push((id, common));
            len += common;
            if common < self.page {
                break;
            }
            before = Before::Page(id);
        }
        let last = found.last().and_then(|(id, _)| self.pages.get(id));
        let Some(page) = last.filter(|_| len > own) else { return 0 };
        if !model.adopt(sequence, &model.beginning(&page.rows, len), &text[..len]) {
            return 0;
        }
        (shared.regime, shared.ends) = (Some(regime), false);
        self.clock += 1;
        for (id, common) in found {
            self.begin_use(id);
            match common == self.page {
                true => shared.pages.push(id),
                false => self.end_use(id), // its rows are copied when the sequence goes on
            }
        }
        len - own
    }

    /// The page that has the most first tokens in common with `key`, and their number, at least 1.
    ///
    /// It is the one next to `key` in the order of keys, on one side or the other.
    fn nearest(&self, key: &PageKey) -> Option<(PageId, usize)> {
        let before = self.by_key.range::<PageKey, _>(..key).next_back();
        let from = self.by_key.range::<PageKey, _>(key..).next();
        let both = before.into_iter().chain(from);
        let common = both.map(|(other, &id)| (id, other.common(key)));
        common.filter(|(_, common)| *common > 0).max_by_key(|(_, common)| *common)
    }

    /// Shares the full pages of `sequence` and, where its prompt ends, the last one. Rows from
    /// `prompt` on are generated ones.
    pub fn share(
        &mut self,
        model: &Transformer<B>,
        sequence: &Sequence<B>,
        shared: &mut SharedPages,
        prompt: usize,
    ) {
        let regime = model.rotary_regime(sequence);
        if shared.regime.replace(regime).is_some_and(|before| before != regime) {
            // All rows were computed again when the regime changed.
            self.release(shared, 0);
            shared.regime = Some(regime);
        }
        let text = sequence.tokens();
        while !shared.ends && (shared.len() + 1) * self.page <= text.len() {
            let key = self.next_key(model, sequence, shared, text);
            let rows = model.share(sequence, (shared.len() + 1) * self.page);
            match self.insert(key, rows) {
                Some(id) => {
                    self.begin_use(id);
                    shared.pages.push(id);
                }
                None => shared.ends = true,
            }
        }
        if !shared.ends && text.len() == prompt && !prompt.is_multiple_of(self.page) {
            let key = self.next_key(model, sequence, shared, text);
            self.insert(key, model.share(sequence, prompt));
        }
    }

    /// [`PrefixCache::share`] for the target's sequence of a request.
    pub fn share_slot(&mut self, model: &Transformer<B>, slot: &mut Slot<B>) {
        let prompt = slot.prompt_prefix();
        if slot.shares_rows()
            && let Some(sequence) = &slot.sequence
        {
            self.share(model, sequence, &mut slot.shared, prompt);
        }
    }

    /// Ends the use of the pages that the sequence drops when it is truncated to `len` tokens.
    pub fn release_beyond(&mut self, shared: &mut SharedPages, len: usize) {
        let kept = len / self.page;
        if kept < shared.len() {
            self.release(shared, kept);
        }
    }

    /// Ends the use of all but the first `kept` pages, whose rows the sequence drops.
    pub fn release(&mut self, shared: &mut SharedPages, kept: usize) {
        self.clock += 1; // one use of all of them, so that the last one goes first
        for id in shared.pages.drain(kept.min(shared.pages.len())..) {
            self.end_use(id);
        }
        shared.ends = false;
        if kept == 0 {
            shared.regime = None;
        }
    }

    /// Adds an idle page. `None` if it is there already.
    fn insert(&mut self, key: PageKey, rows: SharedRows<B>) -> Option<PageId> {
        if self.by_key.contains_key(&key) {
            return None;
        }
        self.clock += 1;
        let (id, key) = (PageId(self.clock), Arc::new(key));
        let page = Page { key: Arc::clone(&key), rows, users: 0, last_use: self.clock };
        self.idle.insert(page.turn(id));
        self.pages.insert(id, page);
        self.by_key.insert(key, id);
        Some(id)
    }

    fn begin_use(&mut self, id: PageId) {
        if let Some(page) = self.pages.get_mut(&id) {
            self.idle.remove(&page.turn(id));
            page.users += 1;
        }
    }

    fn end_use(&mut self, id: PageId) {
        if let Some(page) = self.pages.get_mut(&id) {
            page.users -= 1;
            page.last_use = self.clock;
            if page.users == 0 {
                self.idle.insert(page.turn(id));
            }
        }
    }
}
