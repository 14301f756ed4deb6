//! Planning of a step and the draft's work in it.

use std::time::Instant;

use fathom_backend::Backend;
use fathom_model::Result;

use super::draft_worker::{DraftItem, DraftJob, DraftReport, ForkedRounds};
use super::slot::Slot;
use super::{Engine, EngineOptions, ModeChoice};
use crate::planner::StepPlan;
use crate::{Mode, Phase, Proposal};

/// A draft job in progress.
pub(super) struct StartedJob {
    /// Number of sequences.
    sequences: usize,
    /// Their longest chunk.
    gamma: usize,
}

impl<B: Backend> Engine<B> {
    /// The mode, γ and branches of the next step.
    pub(super) fn plan(&mut self) -> StepPlan {
        let longest_guess = self.plan_guesses();
        let running = &self.running;
        let speculating = || running.iter().filter(|slot| slot.speculates());
        let runs: Vec<usize> = speculating().map(|slot| slot.runs.open()).collect();
        let plain = running.len() - runs.len();
        let (choice, phases) = (self.options.mode, speculating().map(|slot| slot.pearl.phase()));
        let mut plan = match choice {
            // Without a sequence that the draft model follows, its modes are `ar`, and the planner
            // learns nothing.
            ModeChoice::Always(mode) if mode.needs_draft_model() && runs.is_empty() => {
                StepPlan { mode: Mode::Ar, gamma: 0, branches: 0 }
            }
            _ if runs.is_empty() => {
                let modes = &Mode::WITHOUT_DRAFT_MODEL;
                self.planner.plan(choice, modes, &runs, plain, phases)
            }
            _ => self.planner.plan(choice, &Mode::ALL, &runs, plain, phases),
        };
        if plan.mode == Mode::Suffix {
            plan.gamma = longest_guess;
        }
        let StepPlan { mode, gamma, .. } = plan;
        self.plan_guesses_beside_drafts(plan);
        let running = &self.running;
        let all_in_pre = || running.iter().all(|slot| slot.pearl.phase() == Phase::PreVerify);
        match mode {
            Mode::Ar => {}
            Mode::Pearl | Mode::Forked if all_in_pre() => {
                self.metrics.gamma_pre_verify.record(gamma as f64)
            }
            _ => self.metrics.gamma_post_verify.record(gamma as f64),
        }
        if !mode.is_parallel() {
            for slot in &mut self.running {
                self.metrics.wasted += slot.drop_pending();
            }
        }
        if self.draft.is_some() && mode != Mode::Suffix {
            self.metrics.steps_without_draft += plain;
        }
        (self.metrics.mode, self.metrics.gamma) = (Some(mode), gamma);
        *self.metrics.steps.entry(mode).or_default() += 1;
        plan
    }

    /// Starts drafting γ tokens for every running request with room for drafts, and branches.
    /// `None` if there is no such request.
    pub(super) fn start_drafting(&mut self, plan: StepPlan) -> Option<StartedJob> {
        let draft = self.draft.as_ref()?;
        let (StepPlan { mode, gamma, branches }, verification) = (plan, self.verification);
        let drafts = |slot: &&mut Slot<B>| !slot.guesser.replaces_draft(mode);
        let items = self.running.iter_mut().filter(drafts);
        let items = items.filter_map(|slot| slot.draft_item(gamma, branches, verification));
        let items: Vec<DraftItem> = items.collect();
        let gamma = items.iter().map(|item| item.gamma).max()?;
        let sequences = items.len();
        draft.send(self.job(items, gamma, mode.is_parallel()));
        Some(StartedJob { sequences, gamma })
    }

    /// Waits for the chunks. Returns one for every running request, empty for those without room,
    /// and the seconds the draft ran.
    pub(super) fn finish_drafting(
        &mut self,
        mode: Mode,
        job: Option<StartedJob>,
    ) -> Result<(Vec<Proposal>, f64)> {
        let (Some(draft), Some(StartedJob { sequences, gamma })) = (&mut self.draft, job) else {
            return Ok((vec![Proposal::new(); self.running.len()], 0.0));
        };
        let start = Instant::now();
        let report = draft.receive()?;
        self.metrics.wait_seconds += start.elapsed().as_secs_f64();
        self.metrics.draft_seconds += report.seconds;
        self.metrics.draft_cost.record(report.drafting / gamma as f64);
        let co_running = mode.is_parallel();
        let speeds = &mut self.planner.speeds;
        match report.forked {
            None => speeds.record_draft(sequences, co_running, gamma, report.drafting),
            Some(ForkedRounds { rows, rounds, seconds }) => {
                speeds.record_branching(sequences, rows, seconds / rounds as f64);
            }
        }
        share_seconds(&mut self.running, &report);
        let (mut chunks, mut branches) = (report.chunks, report.branches);
        for slot in &mut self.running {
            slot.branches = branches.remove(&slot.number).unwrap_or_default();
            let drafted: usize = slot.branches.iter().map(|branch| branch.drafts.len()).sum();
            self.metrics.branches.drafted += drafted;
        }
        let chunk = |slot: &Slot<B>| chunks.remove(&slot.number).unwrap_or_default();
        Ok((self.running.iter().map(chunk).collect(), report.seconds))
    }

    /// Prefills, in the draft, the prompts of running requests that it can follow but holds no
    /// tokens of.
    pub(super) fn prefill_draft_prompts(&mut self) -> Result<()> {
        let items: Vec<_> = self.running.iter_mut().filter_map(Slot::prompt_item).collect();
        let job = self.job(items, 0, false);
        match &mut self.draft {
            Some(draft) if !job.items.is_empty() => {
                draft.send(job);
                draft.receive().map(drop)
            }
            _ => Ok(()),
        }
    }

    /// A job of the draft under the engine's options.
    pub(super) fn job(&self, items: Vec<DraftItem>, gamma: usize, co_running: bool) -> DraftJob {
        let EngineOptions { kv_pages, prefix_cache, .. } = self.options;
        DraftJob { items, gamma, co_running, pages: kv_pages, prefix_cache }
    }
}

/// Adds to the slots their shares of the seconds of a draft's job, by their rows in it.
pub(super) fn share_seconds<B: Backend>(slots: &mut [Slot<B>], report: &DraftReport) {
    let total: usize = report.rows.values().sum();
    for slot in slots {
        let rows = report.rows.get(&slot.number).copied().unwrap_or(0);
        slot.draft_seconds += report.seconds * rows as f64 / total.max(1) as f64;
    }
}
