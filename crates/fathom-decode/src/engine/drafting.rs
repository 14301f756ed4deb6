//! The draft's part in a step: how the step is planned, what the draft is asked for, and what it is
//! spared.

use std::time::Instant;

use fathom_backend::Backend;
use fathom_model::Result;

use super::Engine;
use super::draft_worker::{DraftItem, DraftJob};
use super::slot::Slot;
use crate::{Mode, Phase, Proposal};

/// What the draft was set to work on.
pub(super) struct Asked {
    /// For so many sequences.
    sequences: usize,
    /// The longest chunk of theirs.
    gamma: usize,
}

impl<'a, B: Backend> Engine<'a, B> {
    /// How the next step is made: the way of decoding, and γ.
    pub(super) fn plan(&mut self) -> (Mode, usize) {
        let running = &self.running;
        let speculating = || running.iter().filter(|slot| slot.speculates());
        let runs: Vec<usize> = speculating().map(|slot| slot.runs.open()).collect();
        let plain = running.len() - runs.len();
        // Without any sequence that speculates every way of decoding is plain decoding, and there
        // is nothing to learn of it.
        let (mode, gamma) = match runs.is_empty() {
            true => (Mode::Ar, 0),
            false => {
                let phases = speculating().map(|slot| slot.pearl.phase());
                self.planner.plan(self.options.mode, &runs, plain, phases)
            }
        };
        let all_in_pre = || running.iter().all(|slot| slot.pearl.phase() == Phase::PreVerify);
        match mode {
            Mode::Ar => {}
            Mode::Pearl if all_in_pre() => self.metrics.gamma_pre_verify.record(gamma as f64),
            _ => self.metrics.gamma_post_verify.record(gamma as f64),
        }
        if mode != Mode::Pearl {
            for slot in &mut self.running {
                self.metrics.wasted += slot.drop_pending();
            }
        }
        if self.draft.is_some() {
            self.metrics.beyond_draft += plain;
        }
        self.metrics.gamma = gamma;
        *self.metrics.steps.entry(mode).or_default() += 1;
        (mode, gamma)
    }

    /// Sets the draft to work on a chunk of `gamma` tokens for every running request that has room
    /// for drafts. `None` where none has.
    pub(super) fn start_drafting(&mut self, mode: Mode, gamma: usize) -> Option<Asked> {
        let draft = self.draft.as_ref()?;
        let items = self.running.iter_mut().filter_map(|slot| slot.draft_item(gamma));
        let items: Vec<DraftItem> = items.collect();
        let gamma = items.iter().map(|item| item.gamma).max()?;
        let sequences = items.len();
        draft.send(DraftJob { items, gamma, beside: mode == Mode::Pearl });
        Some(Asked { sequences, gamma })
    }

    /// Waits for the chunks, one for every running request, empty where there was no room; and the
    /// seconds the draft worked.
    pub(super) fn finish_drafting(
        &mut self,
        mode: Mode,
        asked: Option<Asked>,
    ) -> Result<(Vec<Proposal>, f64)> {
        let (Some(draft), Some(Asked { sequences, gamma })) = (&mut self.draft, asked) else {
            return Ok((vec![Proposal::new(); self.running.len()], 0.0));
        };
        let start = Instant::now();
        let report = draft.receive()?;
        self.metrics.wait_seconds += start.elapsed().as_secs_f64();
        self.metrics.draft_seconds += report.seconds;
        self.metrics.draft_cost.record(report.drafting / gamma as f64);
        let beside = mode == Mode::Pearl;
        self.planner.speeds.record_draft(sequences, beside, gamma, report.drafting);
        let mut chunks = report.chunks;
        let chunk = |slot: &Slot<'a, B>| chunks.remove(&slot.number).unwrap_or_default();
        Ok((self.running.iter().map(chunk).collect(), report.seconds))
    }

    /// The draft needs a sequence no longer.
    pub(super) fn draft_forgets(&self, number: u64) {
        if let Some(draft) = &self.draft {
            draft.forget(number);
        }
    }

    /// Prefills, in the draft, the prompts of running requests of which it holds nothing though it
    /// could follow them.
    pub(super) fn draft_takes_prompts_in(&mut self) -> Result<()> {
        let Some(draft) = &mut self.draft else { return Ok(()) };
        let items: Vec<_> = self.running.iter_mut().filter_map(Slot::prompt_item).collect();
        if !items.is_empty() {
            draft.send(DraftJob { items, gamma: 0, beside: false });
            draft.receive()?;
        }
        Ok(())
    }
}
