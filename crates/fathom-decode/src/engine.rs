//! Many requests at once, decoded by a target and, beside it, a draft.
//!
//! The target runs on the calling thread with its own group of threads, the draft on a worker thread with
//! its own; token ids go back and forth over channels, and nothing else is shared. Requests join and leave
//! at any step.
//!
//! What a request may ask and what its text is depends on the target alone. A text that the draft
//! cannot follow goes on without drafts, in whatever batch and mode.

mod admission;
mod draft_worker;
mod drafting;
mod metrics;
mod options;
mod request;
mod scores;
mod slot;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use fathom_backend::Backend;
use fathom_model::{Error, LogitRows, Model, Result, Step};

use crate::{
    Completion, EndRules, GreedyJudge, Judge, LogitsJudge, Mode, Outcome, Planner, Proposal,
    Sampler, ar, sd,
};
use draft_worker::DraftWorker;
pub use metrics::EngineMetrics;
pub use options::{EngineOptions, Gamma, ModeChoice};
pub use request::{Done, Request, Update};
use scores::Scores;
use slot::Slot;

/// Decodes requests in batches.
pub struct Engine<'a, B: Backend> {
    target: Model<B>,
    draft: Option<DraftWorker>,
    options: EngineOptions,
    planner: Planner,
    waiting: VecDeque<Slot<'a, B>>,
    /// Admitted; their prompts are not yet all in the caches.
    prefilling: VecDeque<Slot<'a, B>>,
    running: Vec<Slot<'a, B>>,
    next_slot: u64,
    metrics: EngineMetrics,
}

impl<'a, B: Backend> Engine<'a, B> {
    /// An engine over a target and, for every mode but [`Mode::Ar`], a draft of the same vocabulary
    /// ([`crate::shared_vocabulary`]).
    ///
    /// The vocabulary and the context are the target's. Where the draft has less of either, a text
    /// that goes beyond it goes on without drafts; it is the same text.
    ///
    /// # Errors
    /// Options that have no meaning or need a draft that is not there, or a thread the operating system
    /// refuses.
    ///
    /// The calling thread becomes the target's, where the target's threads have places of their own.
    pub fn new(
        target: Model<B>,
        draft: Option<Model<B>>,
        options: EngineOptions,
    ) -> Result<Engine<'a, B>> {
        options.validate()?;
        let vocab = target.config().vocab;
        if draft.is_none() && options.mode != ModeChoice::Always(Mode::Ar) {
            let message = "speculative decoding needs a draft model; expected one, or mode `ar`";
            return Err(Error::Request(message.to_owned()));
        }
        if options.vocab > vocab {
            return Err(Error::Request(format!(
                "the vocabulary has {} tokens; expected at most {vocab}, the rows of the target's logits",
                options.vocab
            )));
        }
        let draft = match (options.mode, draft) {
            (ModeChoice::Always(Mode::Ar), _) | (_, None) => None,
            (_, Some(draft)) => Some(DraftWorker::spawn(draft, options.vocab)?),
        };
        target.backend().attach_thread();
        Ok(Engine {
            target,
            draft,
            options,
            planner: Planner::new(options.gamma),
            waiting: VecDeque::new(),
            prefilling: VecDeque::new(),
            running: Vec::new(),
            next_slot: 0,
            metrics: EngineMetrics::default(),
        })
    }

    /// Queues a request. Its text ends at the target's context at the latest, or where it fills all
    /// of the key/value cache.
    ///
    /// # Errors
    /// Sampling parameters that have no meaning or name a token outside the vocabulary; stop strings nobody
    /// watches for; a prompt that is empty, does not leave room for a token,
    /// or names a token outside the vocabulary.
    pub fn submit(&mut self, request: Request<'a>) -> Result<()> {
        let Request { id, prompt, params, eos, stop } = request;
        let sampler = Sampler::new(params, id, self.options.vocab)?.with_eos(&eos)?;
        let context = self.target.config().max_position_embeddings;
        let longest =
            context.min(self.options.kv_pages.saturating_mul(self.target.backend().kv_page()));
        let refuse =
            |problem: String| Err(Error::Request(format!("the prompt of request {id} {problem}")));
        if prompt.is_empty() {
            return refuse("is empty; expected at least one token".to_owned());
        }
        if prompt.len() >= longest {
            return refuse(format!(
                "has {} tokens; expected fewer than {longest}, the target's context or what the \
                 key/value cache may hold",
                prompt.len()
            ));
        }
        if let Some(token) = prompt.iter().find(|&&token| token as usize >= self.options.vocab) {
            return refuse(format!(
                "holds token {token}; expected ids below {}, the target's vocabulary",
                self.options.vocab
            ));
        }
        let params = sampler.params();
        if !params.stop.is_empty() && stop.is_none() {
            return Err(Error::Request(format!(
                "request {id} has stop strings; expected a check that watches for them"
            )));
        }
        let eos = if params.ignore_eos { Arc::default() } else { eos };
        let stop_tokens = params.stop_token_ids.as_slice().into();
        let max_tokens = params.max_tokens.min(longest - prompt.len());
        let text = Completion::new(prompt, EndRules { eos, stop_tokens, max_tokens, stop });
        let limits = self.draft.as_ref().map(DraftWorker::limits);
        self.waiting.push_back(Slot::new(id, text, Arc::new(sampler), limits));
        Ok(())
    }

    /// Drops a request, wherever it is. Nothing more is heard of it.
    pub fn cancel(&mut self, id: u64) {
        self.waiting.retain(|slot| slot.request != id);
        for slot in self.prefilling.iter().filter(|slot| slot.request == id) {
            self.draft_forgets(slot.number);
        }
        self.prefilling.retain(|slot| slot.request != id);
        self.release_where(|slot| slot.request == id);
    }

    /// Takes running requests out of the batch for good.
    fn release_where(&mut self, leaves: impl Fn(&Slot<'a, B>) -> bool) {
        for slot in self.running.extract_if(.., |slot| leaves(slot)).collect::<Vec<_>>() {
            self.draft_forgets(slot.number);
        }
    }

    /// Requests not finished yet.
    pub fn pending(&self) -> usize {
        self.waiting.len() + self.prefilling.len() + self.running.len()
    }

    /// How it is set up.
    pub fn options(&self) -> &EngineOptions {
        &self.options
    }

    /// Goes on in another way of decoding. No text is disturbed by it.
    ///
    /// # Errors
    /// As [`Engine::configure`].
    pub fn set_mode(&mut self, mode: ModeChoice) -> Result<()> {
        self.configure(EngineOptions { mode, ..self.options })
    }

    /// Goes on with other options. No text is disturbed by it, and what was measured is kept. Caches that already hold
    /// more than they now may, and prompts submitted under other limits, are a matter of the next steps.
    ///
    /// # Errors
    /// Options that have no meaning, or need a draft that is not there.
    pub fn configure(&mut self, options: EngineOptions) -> Result<()> {
        options.validate()?;
        if self.draft.is_none() && options.mode != ModeChoice::Always(Mode::Ar) {
            let message =
                "speculative decoding needs a draft model, and this engine was set up without";
            return Err(Error::Request(message.to_owned()));
        }
        if options.vocab != self.options.vocab {
            let message = "an engine's vocabulary is that of its models, and stays";
            return Err(Error::Request(message.to_owned()));
        }
        if options.gamma != self.options.gamma {
            self.planner.set_gamma(options.gamma);
        }
        self.options = options;
        Ok(())
    }

    /// The metrics so far, which go on from `metrics`. What γ and [`ModeChoice::Auto`] adapt to is kept.
    pub fn replace_metrics(&mut self, metrics: EngineMetrics) -> EngineMetrics {
        std::mem::replace(&mut self.metrics, metrics)
    }

    /// Mean accepted tokens, so far, of a request in the batch.
    pub fn mat(&self, request: u64) -> Option<f64> {
        self.running.iter().find(|slot| slot.request == request)?.runs.mean()
    }

    /// Where the time went, and what speculation was worth.
    pub fn metrics(&self) -> &EngineMetrics {
        &self.metrics
    }

    /// Admits what fits, prefills a chunk of what was admitted, and takes every running request one step
    /// further: at least one token each. Without a request that runs, prefills until there is one.
    ///
    /// # Errors
    /// A failure of either model, after which the engine is of no further use.
    pub fn step(&mut self) -> Result<Vec<Update>> {
        self.admit();
        self.prefill_chunk()?;
        while self.running.is_empty() && !self.prefilling.is_empty() {
            self.prefill_chunk()?;
        }
        if self.running.is_empty() {
            return Ok(Vec::new());
        }
        let start = Instant::now();
        self.preempt();
        let (mode, gamma) = self.plan();
        self.target.backend().set_shared(mode == Mode::Pearl);
        // The seconds are those of both models' work, as far as it does not overlap.
        let (chunks, scores, work) = match mode {
            Mode::Ar => {
                let (scores, scoring) = self.score(mode, None)?;
                (vec![Proposal::new(); self.running.len()], scores, scoring)
            }
            Mode::Sd => {
                let asked = self.start_drafting(mode, gamma);
                let (chunks, drafting) = self.finish_drafting(mode, asked)?;
                let (scores, scoring) = self.score(mode, Some(&chunks))?;
                (chunks, scores, drafting + scoring)
            }
            Mode::Pearl => {
                let asked = self.start_drafting(mode, gamma);
                let (scores, scoring) = self.score(mode, None)?;
                let (chunks, drafting) = self.finish_drafting(mode, asked)?;
                (chunks, scores, drafting.max(scoring))
            }
        };
        let batch = self.running.len();
        let updates = self.judge(mode, chunks, &scores)?;
        self.planner.speeds.record_overhead(batch, mode, start.elapsed().as_secs_f64() - work);
        Ok(updates)
    }

    /// Admits what fits and prefills all of it, decoding nothing: for those who measure the two apart.
    ///
    /// # Errors
    /// As [`Engine::step`].
    pub fn prefill(&mut self) -> Result<()> {
        self.admit();
        while !self.prefilling.is_empty() {
            self.prefill_chunk()?;
        }
        Ok(())
    }

    /// Takes the running requests, which have no stop strings, back to their prompts, to be decoded
    /// once more: what a benchmark does between the ways of decoding it compares. A draft that
    /// could not follow their texts to the end takes the prompts in again.
    ///
    /// # Errors
    /// None of its own; it passes on what the models return.
    pub fn rewind(&mut self) -> Result<()> {
        self.running.iter_mut().try_for_each(|slot| slot.rewind(&self.target))?;
        self.draft_takes_prompts_in()
    }

    /// The target's pass: the last committed token and the drafts that follow it, of every request; and
    /// the seconds it took.
    fn score(&mut self, mode: Mode, chunks: Option<&[Proposal]>) -> Result<(Scores<B>, f64)> {
        let backend = self.target.backend();
        let start = backend.mark()?;
        let argmax_only = self.running.iter().all(Slot::takes_argmax);
        let feeds: Vec<Vec<u32>> = match chunks {
            Some(chunks) => {
                self.running.iter().zip(chunks).map(|(slot, chunk)| slot.feed(chunk)).collect()
            }
            None => self.running.iter().map(|slot| slot.feed(slot.pearl.pending())).collect(),
        };
        let sequences = self.running.iter_mut().filter_map(|slot| slot.sequence.as_mut());
        let mut steps: Vec<Step<'_, B>> = sequences
            .zip(&feeds)
            .map(|(sequence, tokens)| Step { sequence, tokens, logits: LogitRows::All })
            .collect();
        let scores = Scores::of(&self.target, &mut steps, argmax_only, self.options.vocab)?;
        let seconds = backend.seconds_between(&start, &backend.mark()?)?;
        let rows = feeds.iter().map(Vec::len).sum::<usize>();
        self.metrics.verify_seconds += seconds;
        self.metrics.pass_cost.record(rows as f64, seconds);
        self.metrics.kv_pages = self.metrics.kv_pages.max(self.pages_held());
        self.planner.speeds.record_target(feeds.len(), mode == Mode::Pearl, rows, seconds);
        Ok((scores, seconds))
    }

    /// Judges what was drafted, commits what holds, rolls both models back to it, and lets finished
    /// requests go.
    fn judge(
        &mut self,
        mode: Mode,
        chunks: Vec<Proposal>,
        scores: &Scores<B>,
    ) -> Result<Vec<Update>> {
        let start = Instant::now();
        let backend = self.target.backend();
        let mut updates = Vec::with_capacity(self.running.len());
        for (i, (slot, chunk)) in self.running.iter_mut().zip(chunks).enumerate() {
            let before = slot.text.generated().len();
            let position = slot.text.tokens().len();
            let logits;
            let judge: &mut dyn Judge = match &scores.logits {
                Some(all) if !slot.takes_argmax() => {
                    logits = all.step(backend, i)?;
                    &mut LogitsJudge {
                        sampler: &slot.sampler,
                        logits: &logits,
                        vocab: self.target.config().vocab,
                        position,
                        history: slot.history.as_mut(),
                    }
                }
                _ => &mut GreedyJudge { best: &scores.best[i] },
            };
            let outcome: Outcome = match mode {
                Mode::Ar => ar::step(&mut slot.text, judge)?,
                Mode::Sd => sd::step(&mut slot.text, &chunk, judge)?,
                Mode::Pearl => slot.pearl.step(&mut slot.text, chunk, judge)?,
            };
            slot.count_from(position);
            slot.roll_back(&self.target)?;
            if slot.outgrows_draft()
                && let Some(draft) = &self.draft
            {
                draft.forget(slot.number);
            }
            self.planner.speeds.record_acceptance(
                slot.runs.open(),
                outcome.judged,
                outcome.accepted,
            );
            slot.runs.record(&outcome);
            slot.acceptance.record(&outcome);
            self.metrics.acceptance.record(&outcome);
            self.metrics.tokens += outcome.committed;
            self.metrics.wasted += outcome.wasted;
            updates.push(Update {
                request: slot.request,
                tokens: slot.text.generated()[before..].to_vec(),
                done: slot.text.finish().map(|finish| Done {
                    finish,
                    mat: slot.runs.mean().unwrap_or(0.0),
                    acceptance: slot.acceptance.clone(),
                }),
            });
        }
        self.release_where(|slot| slot.text.is_finished());
        self.metrics.judge_seconds += start.elapsed().as_secs_f64();
        Ok(updates)
    }
}
