//! The end of a step: what becomes text.

use std::sync::Arc;
use std::time::Instant;

use fathom_backend::Backend;
use fathom_model::Result;

use super::scores::PassScores;
use super::slot::Slot;
use super::{Done, Engine, Ticket, Update};
use crate::{
    BlockJudge, GreedyJudge, Judge, LogitsJudge, Mode, Outcome, Phase, Planner, Proposal,
    TokenLogprobs, Verification, ar, sd,
};

impl<B: Backend> Engine<B> {
    /// Judges the drafts, commits the accepted tokens, rolls both caches back to the text, and
    /// releases finished requests.
    pub(super) fn judge(
        &mut self,
        mode: Mode,
        chunks: Vec<Proposal>,
        scores: &PassScores<B>,
    ) -> Result<Vec<(Ticket, Result<Update>)>> {
        let start = Instant::now();
        let (width, vocab) = (self.target.config().vocab, self.options.vocab);
        let mut updates = Vec::with_capacity(self.running.len());
        let mut failed = Vec::new();
        let speculating = self.running.iter().filter(|slot| slot.speculates()).count();
        for (i, (slot, chunk)) in self.running.iter_mut().zip(chunks).enumerate() {
            let before = slot.text.generated().len();
            let logits = match &scores.logits {
                Some(all) if slot.reads_logits() => all.step(self.target.backend(), i)?,
                _ => Vec::new(),
            };
            let began = Began {
                phase: slot.pearl.phase(),
                position: slot.text.tokens().len(),
                has_branches: !slot.branches.is_empty(),
            };
            let best = &scores.best[i];
            let judged = judge_one(slot, (mode, self.verification), chunk, &logits, width, best);
            let judged = judged.and_then(|judged| {
                let tokens = &slot.text.generated()[before..];
                Ok((judged, logprobs(tokens, slot.logprobs, &logits, width, vocab)?))
            });
            let (judged, logprobs) = match slot.failure.take().map_or(judged, Err) {
                Ok(judged) => judged,
                Err(error) => {
                    failed.push(slot.ticket);
                    updates.push((slot.ticket, Err(error)));
                    continue;
                }
            };
            slot.roll_back(&self.target)?;
            if self.options.prefix_cache {
                self.prefix_cache.share_slot(&self.target, slot);
            }
            if slot.outgrows_draft()
                && let Some(draft) = &self.draft
            {
                draft.forget(slot.number);
            }
            let outcome = judged.outcome;
            self.metrics.record(mode, began.phase, slot.guesser.verified().len(), &outcome);
            slot.teach(&mut self.planner, mode, speculating, began, &judged);
            slot.runs.record(&outcome);
            slot.acceptance.record(&outcome);
            let (ticket, request) = (slot.ticket, slot.request);
            let tokens = slot.text.generated()[before..].to_vec();
            let prompt_logprobs = std::mem::take(&mut slot.of_prompt);
            let done = slot.done();
            let update =
                Update { ticket, request, tokens, outcome, logprobs, prompt_logprobs, done };
            updates.push((ticket, Ok(update)));
        }
        self.release_where(|slot| slot.text.is_finished() || failed.contains(&slot.ticket));
        self.metrics.judge_seconds += start.elapsed().as_secs_f64();
        Ok(updates)
    }
}

/// A text before it is judged.
#[derive(Clone, Copy, Debug)]
struct Began {
    phase: Phase,
    /// The length of the text.
    position: usize,
    /// Whether the draft considered rejections of it.
    has_branches: bool,
}

/// The result of judging one text.
struct Judged {
    outcome: Outcome,
    /// The branch that it took, of those considered.
    branch: Option<usize>,
}

/// Judges the drafts of one text and commits the accepted ones. `logits` `[rows, width]` may be
/// empty if the text takes the most likely tokens, `best`.
fn judge_one<B: Backend>(
    slot: &mut Slot<B>,
    (mode, verification): (Mode, Verification),
    chunk: Proposal,
    logits: &[f32],
    width: usize,
    best: &[u32],
) -> Result<Judged> {
    let position = slot.text.tokens().len();
    // The mask of a row depends on the drafts accepted before it: a constrained text is judged
    // token by token.
    let block = verification == Verification::Block && slot.constraint.is_none();
    let argmax = slot.takes_argmax();
    let judge = LogitsJudge {
        sampler: &slot.sampler,
        logits,
        vocab: width,
        position,
        history: slot.history.as_mut(),
        constraint: slot.constraint.as_mut(),
    };
    let judge: &mut dyn Judge = match (argmax, block) {
        (true, _) => &mut GreedyJudge { best },
        (false, true) => &mut BlockJudge(judge),
        (false, false) => &mut { judge },
    };
    let mut branch = None;
    let outcome = match mode {
        Mode::Ar => ar::step(&mut slot.text, judge),
        Mode::Sd | Mode::Suffix => sd::step(&mut slot.text, &chunk, judge),
        Mode::Pearl | Mode::Forked => {
            let (guesses, branches) = (slot.guesser.verified_tokens(), &slot.branches);
            let step =
                slot.pearl.step_with_branches(&mut slot.text, chunk, &guesses, branches, judge);
            step.map(|(outcome, taken)| {
                branch = taken;
                outcome
            })
        }
    }?;
    slot.take_branch(branch);
    if block && outcome.ends_run {
        let end = slot.text.tokens().len();
        Arc::make_mut(&mut slot.sampler).start_run(end);
    }
    slot.follow_text(position)?;
    Ok(Judged { outcome, branch })
}

/// The log-probabilities of the `tokens` committed in a step, if requested. Row `i` of `logits`
/// `[rows, width]` predicts token `i`. Ids ≥ `vocab` are padding.
fn logprobs(
    tokens: &[u32],
    top: Option<usize>,
    logits: &[f32],
    width: usize,
    vocab: usize,
) -> Result<Vec<TokenLogprobs>> {
    let Some(top) = top else { return Ok(Vec::new()) };
    let rows = tokens.iter().zip(logits.chunks_exact(width));
    rows.map(|(&token, row)| TokenLogprobs::of(row, token, top, vocab)).collect()
}

impl<B: Backend> Slot<B> {
    /// Tells the planner how a step of `mode` went, in which `speculating` texts had drafts.
    fn teach(
        &mut self,
        planner: &mut Planner,
        mode: Mode,
        speculating: usize,
        began: Began,
        judged: &Judged,
    ) {
        let Judged { outcome, branch } = judged;
        let speeds = &mut planner.speeds;
        if mode.needs_draft_model() && !self.guesser.replaces_draft(mode) {
            speeds.record_acceptance(self.runs.open(), outcome.judged, outcome.accepted);
        }
        if mode.is_parallel() && self.speculates() {
            let guesses = self.guesser.verified().len();
            speeds.free_tokens.record(speculating, began.phase, guesses, outcome);
        }
        if began.has_branches && outcome.ends_run && outcome.judged > 0 {
            speeds.branch_hits.record(*branch);
        }
        self.guesser.record(&self.text.tokens()[began.position..], &mut planner.guessing);
    }

    /// How the text ended. `None` if it has not.
    fn done(&self) -> Option<Done> {
        Some(Done {
            finish: self.text.finish()?,
            mat: self.runs.mean().unwrap_or(0.0),
            acceptance: self.acceptance.clone(),
            cached_prompt_tokens: self.cached,
            queue_seconds: self.queue_seconds.unwrap_or(0.0),
            target_seconds: self.target_seconds,
            draft_seconds: self.draft_seconds,
        })
    }
}
