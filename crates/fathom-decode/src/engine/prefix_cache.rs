//! Keys and values of earlier texts, for prompts that begin with the same tokens.
//!
//! A text is cut into pages of the backend's page size. A page's rows depend on all tokens before
//! it, so its key is the page before it and its own tokens: two texts share a page exactly if they
//! agree up to its end. The comparison is of tokens, not of hashes, so no collision can mix texts
//! up. The first page follows the rotary regime of its text, which its rows also depend on. The
//! last page of a prompt is kept too, if it is not full.
//!
//! Where the tokens of a text part from those of the cache within a page, the text takes a copy of
//! the page's rows up to there.
//!
//! What a watcher saw in a page is kept with it. A watched text takes only pages that have such
//! observations, and adds its own to those that have none.
//!
//! Both models have such a cache. By row invariance the bits of a text do not depend on it.

mod pages;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;

use fathom_backend::Backend;
use fathom_model::{Result, Sequence, SharedRows, Transformer};

use super::slot::Slot;
use super::watch::Watcher;
use pages::{Before, Observed, Page, PageId};
pub(super) use pages::{PageKey, SharedPages};

/// Pages looked at on either side of a key, to find one that agrees with it and that a watched text
/// can take.
const NEIGHBOURS: usize = 16;

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

    /// The key of the page that computes the next rows of `text` after the sequence. `None` if the
    /// cache cannot have it from this sequence.
    pub fn next_key(
        &self,
        model: &Transformer<B>,
        sequence: &Sequence<B>,
        shared: &SharedPages,
        text: &[u32],
    ) -> Option<PageKey> {
        let start = shared.known() * self.page;
        let tokens = text.get(start..(start + self.page).min(text.len()))?.into();
        let before = shared.last_known(model.rotary_regime(sequence));
        (sequence.len() / self.page == shared.known()).then_some(PageKey { before, tokens })
    }

    /// Takes the longest cached beginning of `text` that is longer than the sequence, as far as its
    /// watcher, if any, can take over what others saw in it. Returns the number of tokens by which
    /// the sequence has grown.
    ///
    /// # Errors
    /// An error of the watcher.
    pub fn take(
        &mut self,
        model: &Transformer<B>,
        sequence: &mut Sequence<B>,
        shared: &mut SharedPages,
        text: &[u32],
        watcher: Option<&mut (dyn Watcher + 'static)>,
    ) -> Result<usize> {
        let (own, regime) = (sequence.len(), model.rotary_regime(sequence));
        let start = shared.len() * self.page;
        let (mut found, mut len) = (Vec::new(), start);
        let mut before = shared.last_shared(regime);
        for tokens in text[start.min(text.len())..].chunks(self.page) {
            let key = PageKey { before, tokens: tokens.into() };
            let Some((id, common)) = self.nearest(&key, watcher.as_deref()) else { break };
            found.push((id, len..len + common));
            len += common;
            if common < self.page {
                break;
            }
            before = Before::Page(id);
        }
        let last = found.last().and_then(|(id, _)| self.pages.get(id));
        let Some(page) = last.filter(|_| len > own) else { return Ok(0) };
        if !model.adopt(sequence, &model.beginning(&page.rows, len), &text[..len]) {
            return Ok(0);
        }
        if let Some(watcher) = watcher {
            watcher.truncate(start);
            for (id, positions) in &found {
                let observed = self.pages.get(id).and_then(|page| page.observed.as_ref());
                if let Some(Observed { observations, references }) = observed {
                    watcher.adopt(positions.clone(), observations)?;
                    sequence.adopt_reference_rows(references); // the last page's stay
                }
            }
        }
        shared.regime = Some(regime);
        shared.copied.clear();
        self.clock += 1;
        for (id, positions) in found {
            self.begin_use(id);
            match positions.len() == self.page {
                true => shared.pages.push(id),
                false => self.end_use(id), // its rows are copied when the sequence goes on
            }
        }
        Ok(len - own)
    }

    /// The page that has the most first tokens in common with `key`, of those that a text with this
    /// watcher can take, and their number, at least 1.
    ///
    /// In the order of keys, the more a page has in common with `key`, the nearer it is.
    fn nearest(
        &self,
        key: &PageKey,
        watcher: Option<&(dyn Watcher + 'static)>,
    ) -> Option<(PageId, usize)> {
        let suits = |id: &PageId| self.pages.get(id).is_some_and(|page| page.suits(watcher));
        let common = |(other, &id): (&Arc<PageKey>, &PageId)| (id, other.common(key));
        let before = self.by_key.range::<PageKey, _>(..key).rev().take(NEIGHBOURS).map(common);
        let from = self.by_key.range::<PageKey, _>(key..).take(NEIGHBOURS).map(common);
        let agrees = |(_, common): &(PageId, usize)| *common > 0;
        let before = before.take_while(agrees).find(|(id, _)| suits(id));
        let from = from.take_while(agrees).find(|(id, _)| suits(id));
        before.into_iter().chain(from).max_by_key(|(_, common)| *common)
    }

    /// Shares the full pages of `sequence` and, where its prompt ends, the last one, with what its
    /// watcher saw in them. Rows from `prompt` on are generated ones.
    pub fn share(
        &mut self,
        model: &Transformer<B>,
        sequence: &Sequence<B>,
        shared: &mut SharedPages,
        prompt: usize,
        watcher: Option<&(dyn Watcher + 'static)>,
    ) {
        let regime = model.rotary_regime(sequence);
        if shared.regime.replace(regime).is_some_and(|before| before != regime) {
            // All rows were computed again when the regime changed.
            self.release(shared, 0);
            shared.regime = Some(regime);
        }
        let text = sequence.tokens();
        loop {
            let start = shared.known() * self.page;
            let full = start + self.page <= text.len();
            let end = if full { start + self.page } else { prompt };
            if !full && (text.len() != prompt || start >= prompt) {
                break;
            }
            let (before, tokens) = (shared.last_known(regime), text[start..end].into());
            let key = PageKey { before, tokens };
            let (id, copied) = match self.by_key.get(&key) {
                Some(&id) => (id, true),
                // Rows after pages of its own would keep these.
                None if !shared.copied.is_empty() => break,
                None => (self.insert(key, model.share(sequence, end)), false),
            };
            self.observe(id, start..end, sequence, watcher);
            match (full, copied) {
                (false, _) => break,
                (true, true) => shared.copied.push(id),
                (true, false) => {
                    self.begin_use(id);
                    shared.pages.push(id);
                }
            }
        }
    }

    /// [`PrefixCache::share`] for the target's sequence of a request.
    pub fn share_slot(&mut self, model: &Transformer<B>, slot: &mut Slot<B>) {
        let (prompt, shares) = (slot.prompt_prefix(), slot.shares_rows());
        let Slot { sequence: Some(sequence), shared, watcher, failure: None, .. } = slot else {
            return;
        };
        if shares {
            self.share(model, sequence, shared, prompt, watcher.as_deref());
        }
    }

    /// Adds what the watcher of a sequence saw at the positions of a page, unless the page has
    /// such observations.
    fn observe(
        &mut self,
        id: PageId,
        positions: Range<usize>,
        sequence: &Sequence<B>,
        watcher: Option<&(dyn Watcher + 'static)>,
    ) {
        let Some(page) = self.pages.get_mut(&id).filter(|page| !page.suits(watcher)) else {
            return;
        };
        if let Some(observations) = watcher.and_then(|watcher| watcher.observed(positions)) {
            let references = sequence.reference_rows();
            page.observed = Some(Observed { observations, references });
        }
    }

    /// Ends the use of the pages that the sequence drops when it is truncated to `len` tokens.
    pub fn release_beyond(&mut self, shared: &mut SharedPages, len: usize) {
        let kept = len / self.page;
        shared.copied.truncate(kept.saturating_sub(shared.len()));
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
        shared.copied.clear();
        if kept == 0 {
            shared.regime = None;
        }
    }

    /// Adds an idle page.
    fn insert(&mut self, key: PageKey, rows: SharedRows<B>) -> PageId {
        self.clock += 1;
        let (id, key) = (PageId(self.clock), Arc::new(key));
        let (users, last_use, observed) = (0, self.clock, None);
        let page = Page { key: Arc::clone(&key), rows, observed, users, last_use };
        self.idle.insert(page.turn(id));
        self.pages.insert(id, page);
        self.by_key.insert(key, id);
        id
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
