//! Many requests at once, decoded by a target and, beside it, a draft.
//!
//! The target runs on the calling thread with its own group of threads, the draft on a worker
//! thread with its own; token ids go back and forth over channels, and nothing else is shared.
//! Requests join and leave at any step.
//!
//! What a request may ask and what its text is depends on the target alone. A text that the draft
//! cannot follow goes on without drafts, in whatever batch and mode.

mod admission;
mod draft_worker;
mod drafting;
mod handle;
mod metrics;
mod options;
mod request;
mod rules;
mod scores;
mod slot;
mod watch;

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::{self, ThreadId};
use std::time::Instant;

use fathom_backend::Backend;
use fathom_model::{Error, Model, Result};

use crate::{GreedyJudge, Judge, LogitsJudge, Mode, Outcome, Planner, Proposal, ar, sd};
use draft_worker::DraftWorker;
pub use handle::{Canceller, EngineHandle, Generating, Sink};
pub use metrics::{EngineMetrics, HandleMetrics};
pub use options::{EngineOptions, Gamma, ModeChoice};
pub use request::{Done, Request, Ticket, Update};
use rules::{Checked, Rules, Tickets};
use scores::Scores;
use slot::Slot;
pub use watch::{RowWatcher, WatchedRows, Watcher};

/// Decodes requests in batches, driven step by step. [`Engine::spawn`] gives it a thread of its
/// own.
///
/// ```
/// use fathom_decode::engine::{Engine, EngineOptions, Gamma, ModeChoice, Request};
/// use fathom_decode::{Finish, Mode, SamplingParams};
/// # use fathom_kernels::{Cpu, CpuOptions};
/// # use fathom_model::{Model, SyntheticShape, write_synthetic};
/// # use std::sync::Arc;
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let (hidden, intermediate, vocab) = (32, 64, 100);
/// # let shape = SyntheticShape {
/// #     layers: 1, hidden, intermediate, heads: 2, kv_heads: 1, vocab, tied: true,
/// # };
/// # write_synthetic(dir.path(), &shape, 1)?;
/// # let cpu = Cpu::new(CpuOptions { threads: Some(1), ..CpuOptions::default() })?;
/// # let target = Model::load(dir.path(), cpu)?;
/// let options = EngineOptions {
///     mode: ModeChoice::Always(Mode::Ar),
///     gamma: Gamma::Fixed(1),
///     batch_size: 4,
///     kv_pages: 100,
///     vocab: 100,
/// };
/// let mut engine = Engine::new(target, None, options)?;
/// for id in 0..3 {
///     let params = SamplingParams { max_tokens: 10, ..SamplingParams::default() };
///     let (prompt, eos) = (vec![5, 6], Arc::default());
///     engine.submit(Request { id, prompt, params, eos, stop: None, watcher: None })?;
/// }
/// let mut texts = vec![Vec::new(); 3];
/// while engine.pending() > 0 {
///     for update in engine.step()? {
///         texts[update.request as usize].extend(update.tokens);
///         if let Some(done) = update.done {
///             assert_eq!(done.finish, Finish::Length);
///         }
///     }
/// }
/// assert_eq!(texts[0].len(), 10);
/// assert_eq!(texts[0], texts[1], "the same prompt, without randomness");
/// # Ok(())
/// # }
/// ```
pub struct Engine<B: Backend> {
    target: Arc<Model<B>>,
    /// The thread that takes the steps.
    driver: Option<ThreadId>,
    draft: Option<DraftWorker>,
    options: EngineOptions,
    planner: Planner,
    waiting: VecDeque<Slot<B>>,
    /// Admitted; their prompts are not yet all in the caches.
    prefilling: VecDeque<Slot<B>>,
    running: Vec<Slot<B>>,
    next_slot: u64,
    tickets: Tickets,
    metrics: EngineMetrics,
}

impl<B: Backend> Engine<B> {
    /// An engine over a target and, for every mode but [`Mode::Ar`], a draft of the same vocabulary
    /// ([`crate::shared_vocabulary`]).
    ///
    /// The vocabulary and the context are the target's. Where the draft has less of either, a text
    /// that goes beyond it goes on without drafts; it is the same text.
    ///
    /// # Errors
    /// Options that have no meaning or need a draft that is not there, or a thread the operating
    /// system refuses.
    pub fn new(
        target: Model<B>,
        draft: Option<Model<B>>,
        options: EngineOptions,
    ) -> Result<Engine<B>> {
        Engine::sharing(Arc::new(target), draft.map(Arc::new), options)
    }

    /// As [`Engine::new`], with models that others use too. Their passes take turns.
    ///
    /// # Errors
    /// As [`Engine::new`].
    pub fn sharing(
        target: Arc<Model<B>>,
        draft: Option<Arc<Model<B>>>,
        options: EngineOptions,
    ) -> Result<Engine<B>> {
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
        Ok(Engine {
            target,
            driver: None,
            draft,
            options,
            planner: Planner::new(options.gamma),
            waiting: VecDeque::new(),
            prefilling: VecDeque::new(),
            running: Vec::new(),
            next_slot: 0,
            tickets: Tickets::default(),
            metrics: EngineMetrics::default(),
        })
    }

    /// Queues a request, and says which it is from now on. Its text ends at the target's context at
    /// the latest, or where it fills all of the key/value cache.
    ///
    /// # Errors
    /// Sampling parameters that have no meaning or name a token outside the vocabulary; stop
    /// strings nobody watches for; a prompt that is empty, does not leave room for a token, or
    /// names a token outside the vocabulary.
    pub fn submit(&mut self, request: Request) -> Result<Ticket> {
        let checked = self.rules().check(request)?;
        Ok(self.enqueue(checked))
    }

    /// What requests must keep to, under the options in force.
    fn rules(&self) -> Rules {
        let context = self.target.config().max_position_embeddings;
        let longest =
            context.min(self.options.kv_pages.saturating_mul(self.target.backend().kv_page()));
        Rules { vocab: self.options.vocab, longest, tickets: self.tickets.clone() }
    }

    fn enqueue(&mut self, request: Checked) -> Ticket {
        let ticket = request.ticket;
        let limits = self.draft.as_ref().map(DraftWorker::limits);
        self.waiting.push_back(Slot::new(request, limits));
        ticket
    }

    /// Drops a request, wherever it is. Nothing more is heard of it. One that has ended is none.
    pub fn cancel(&mut self, ticket: Ticket) {
        self.waiting.retain(|slot| slot.ticket != ticket);
        for slot in self.prefilling.iter().filter(|slot| slot.ticket == ticket) {
            self.draft_forgets(slot.number);
        }
        self.prefilling.retain(|slot| slot.ticket != ticket);
        self.release_where(|slot| slot.ticket == ticket);
    }

    /// Drops all requests.
    pub fn cancel_all(&mut self) {
        self.waiting.clear();
        self.prefilling.iter().for_each(|slot| self.draft_forgets(slot.number));
        self.prefilling.clear();
        self.release_where(|_| true);
    }

    /// Takes running requests out of the batch for good.
    fn release_where(&mut self, leaves: impl Fn(&Slot<B>) -> bool) {
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

    /// Goes on with other options. No text is disturbed by it, and what was measured is kept.
    /// Caches that already hold more than they now may, and prompts submitted under other limits,
    /// are a matter of the next steps.
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

    /// The metrics so far, which go on from `metrics`. What γ and [`ModeChoice::Auto`] adapt to is
    /// kept.
    pub fn replace_metrics(&mut self, metrics: EngineMetrics) -> EngineMetrics {
        std::mem::replace(&mut self.metrics, metrics)
    }

    /// Mean accepted tokens, so far, of a request in the batch.
    pub fn mat(&self, ticket: Ticket) -> Option<f64> {
        self.running.iter().find(|slot| slot.ticket == ticket)?.runs.mean()
    }

    /// Where the time went, and what speculation was worth.
    pub fn metrics(&self) -> &EngineMetrics {
        &self.metrics
    }

    /// Admits what fits, prefills a chunk of what was admitted, and takes every running request one
    /// step further: at least one token each. Without a request that runs, prefills until there is
    /// one.
    ///
    /// # Errors
    /// A failure of either model, or scores or a stop check of a request that cannot be used; after
    /// any of them the engine is of no further use.
    pub fn step(&mut self) -> Result<Vec<Update>> {
        self.advance()?.into_iter().map(|(_, update)| update).collect()
    }

    /// The same, where a request that cannot go on ends with its error and leaves the others alone.
    fn advance(&mut self) -> Result<Vec<(Ticket, Result<Update>)>> {
        self.attach();
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

    /// Admits what fits and prefills all of it, decoding nothing: for those who measure the two
    /// apart.
    ///
    /// # Errors
    /// As [`Engine::step`].
    pub fn prefill(&mut self) -> Result<()> {
        self.attach();
        self.admit();
        while !self.prefilling.is_empty() {
            self.prefill_chunk()?;
        }
        Ok(())
    }

    /// The thread that takes the steps is the one the target's backend is driven by.
    fn attach(&mut self) {
        let here = thread::current().id();
        if self.driver.replace(here) != Some(here) {
            self.target.backend().attach_thread();
        }
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

    /// Judges what was drafted, commits what holds, rolls both models back to it, and lets finished
    /// requests go.
    fn judge(
        &mut self,
        mode: Mode,
        chunks: Vec<Proposal>,
        scores: &Scores<B>,
    ) -> Result<Vec<(Ticket, Result<Update>)>> {
        let start = Instant::now();
        let backend = self.target.backend();
        let mut updates = Vec::with_capacity(self.running.len());
        let mut failed = Vec::new();
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
            let outcome = match mode {
                Mode::Ar => ar::step(&mut slot.text, judge),
                Mode::Sd => sd::step(&mut slot.text, &chunk, judge),
                Mode::Pearl => slot.pearl.step(&mut slot.text, chunk, judge),
            };
            let outcome = slot.failure.take().map_or(outcome, Err);
            let outcome: Outcome = match outcome {
                Ok(outcome) => outcome,
                Err(error) => {
                    failed.push(slot.ticket);
                    updates.push((slot.ticket, Err(error)));
                    continue;
                }
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
            let done = slot.text.finish().map(|finish| Done {
                finish,
                mat: slot.runs.mean().unwrap_or(0.0),
                acceptance: slot.acceptance.clone(),
            });
            let (ticket, request) = (slot.ticket, slot.request);
            let tokens = slot.text.generated()[before..].to_vec();
            updates.push((ticket, Ok(Update { ticket, request, tokens, done })));
        }
        self.release_where(|slot| slot.text.is_finished() || failed.contains(&slot.ticket));
        self.metrics.judge_seconds += start.elapsed().as_secs_f64();
        Ok(updates)
    }
}
