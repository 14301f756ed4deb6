//! Branches of forked PEARL in the draft: a batch of sequences that share the rows of their text.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use fathom_backend::Backend;

use super::super::draft_worker::{Branching, DraftItem};
use super::super::prefix_cache::SharedPages;
use super::{Draft, Drafting, SlotState};
use crate::branch::CONSIDERED;
use crate::{Alternatives, Branch, Proposal, Verification, likeliest_rejections};

impl<B: Backend> Draft<B> {
    /// The sequence of a text that took a branch.
    pub(super) fn take_branch(&mut self, mut text: SlotState<B>, taken: usize) -> SlotState<B> {
        if taken >= text.branches.len() {
            return text;
        }
        let mut branch = text.branches.swap_remove(taken);
        // The whole pages before the fork are the same.
        branch.shared = std::mem::take(&mut text.shared);
        self.prefix_cache.release_beyond(&mut branch.shared, branch.forked_at);
        branch.forked_at = 0;
        branch
    }

    /// Forks the texts at their likeliest rejections, after the first token of every chunk. At most
    /// `room` branches. Returns them, and all that were considered, by slot.
    pub(super) fn fork_branches(
        &self,
        all: &mut [Drafting<B>],
        mut room: usize,
    ) -> (Vec<Drafting<B>>, HashMap<u64, Vec<Branch>>) {
        let (mut forks, mut considered) = (Vec::new(), HashMap::new());
        for text in all {
            let Some(branching) = text.item.branching.filter(|_| text.item.gamma > 1) else {
                continue;
            };
            let branches = text.likeliest_rejections(branching.text_len);
            let wanted = branches.iter().take(branching.branches.min(room));
            let made: Vec<_> =
                wanted.map_while(|branch| self.fork(text, branching, branch)).collect();
            room -= made.len();
            forks.extend(made);
            considered.insert(text.item.slot, branches);
        }
        (forks, considered)
    }

    /// A branch of a text. `None` if its constraint cannot follow.
    fn fork(
        &self,
        text: &mut Drafting<B>,
        branching: Branching,
        branch: &Branch,
    ) -> Option<Drafting<B>> {
        let Drafting { item, state, .. } = text;
        let forked_at = branching.text_len + branch.after;
        let sequence = self.model.fork(&state.sequence, forked_at)?;
        let mut history = state.history.clone();
        if let Some(history) = &mut history {
            history.follow(forked_at, &[branch.token]);
        }
        let constraint = match &mut state.constraint {
            Some(constraint) => {
                let mut own = constraint.fork().ok()?;
                let generated = &sequence.tokens()[item.planned_len.min(forked_at)..];
                own.follow(&[generated, &[branch.token]].concat()).ok()?;
                Some(own)
            }
            None => None,
        };
        let mut sampler = Arc::clone(&item.sampler);
        if branching.verification == Verification::Block && constraint.is_none() {
            // As the target does after this rejection (`Sampler::start_run`).
            Arc::make_mut(&mut sampler).start_run(forked_at + 1);
        }
        let state = SlotState {
            sequence,
            history,
            constraint,
            shared: SharedPages::default(),
            forked_at,
            alternatives: BTreeMap::new(),
            branches: Vec::new(),
        };
        let item = DraftItem {
            slot: item.slot,
            planned_len: item.planned_len,
            keep: forked_at,
            tail: vec![branch.token],
            gamma: item.gamma,
            sampler,
            constraint: None,
            taken: None,
            branching: Some(branching),
        };
        Some(Drafting { item, state, chunk: Proposal::new() })
    }
}

impl<B: Backend> Drafting<B> {
    /// The likeliest rejections of the pending drafts after the text and of the first of the chunk.
    fn likeliest_rejections(&self, text_len: usize) -> Vec<Branch> {
        let SlotState { sequence, alternatives, .. } = &self.state;
        let pending = sequence.tokens().get(text_len..).unwrap_or_default().iter().copied();
        let first = self.chunk.first().map(|draft| draft.token);
        let unknown = Alternatives::default();
        let drafts = (text_len..).zip(pending.chain(first));
        let drafts: Vec<(u32, &Alternatives)> = drafts
            .map(|(position, token)| (token, alternatives.get(&position).unwrap_or(&unknown)))
            .collect();
        likeliest_rejections(&drafts, CONSIDERED)
    }
}

impl<B: Backend> SlotState<B> {
    /// Forgets the alternatives at positions that are not those of pending drafts.
    pub(super) fn forget_alternatives(&mut self, item: &DraftItem) {
        let end = item.keep + item.tail.len();
        let text_len = item.branching.map_or(end, |branching| branching.text_len);
        self.alternatives.retain(|position, _| (text_len..end).contains(position));
    }
}
