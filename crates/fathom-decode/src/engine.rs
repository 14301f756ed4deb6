//! Decoding of many requests at once by a target model and a draft model.
//!
//! The target runs on the calling thread with its own thread pool, the draft on a worker thread
//! with its own pool. They exchange token ids over channels and share nothing else. Requests join
//! and leave at any step.
//!
//! Which requests are valid depends on the target alone, and so do greedy texts and the
//! distribution of sampled ones. A text that the draft cannot follow continues without drafts, in
//! any batch and mode.

mod admission;
mod draft;
mod draft_worker;
mod drafting;
mod edit_watcher;
mod guessing;
mod handle;
mod judging;
mod metrics;
mod options;
mod prefill;
mod prefix_cache;
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
use fathom_model::{Error, Result, Transformer};

pub use crate::TokenLogprobs;
use crate::{Mode, Planner, Proposal, SuffixIndex, Verification};
use draft_worker::DraftWorker;
pub use edit_watcher::{ChangedRows, EditWatcher};
pub use handle::{Canceller, EngineHandle, RequestUpdates, UpdateCallback};
pub use metrics::{BranchMetrics, EngineMetrics, HandleMetrics};
pub use options::{EngineOptions, Gamma, ModeChoice};
use prefix_cache::PrefixCache;
pub use request::{Done, Request, Ticket, Update};
use rules::{Checked, Rules, Tickets};
use slot::Slot;
pub use watch::{Observations, RowWatcher, WatchedRows, Watcher};

/// Decodes requests in batches, driven step by step. [`Engine::spawn`] moves it to its own thread.
///
/// ```
/// use fathom_decode::engine::{Engine, EngineOptions, Gamma, ModeChoice, Request};
/// use fathom_decode::{Finish, Mode, SamplingParams};
/// # use fathom_kernels::{Cpu, CpuOptions};
/// # use fathom_model::{SyntheticShape, Transformer, write_synthetic};
/// # use std::sync::Arc;
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let (hidden, intermediate, vocab) = (32, 64, 100);
/// # let shape = SyntheticShape {
/// #     layers: 1, hidden, intermediate, heads: 2, kv_heads: 1, vocab, tied: true,
/// # };
/// # write_synthetic(dir.path(), &shape, 1)?;
/// # let cpu = Cpu::new(CpuOptions { threads: Some(1), ..CpuOptions::default() })?;
/// # let target = Transformer::load(dir.path(), cpu)?;
/// let options = EngineOptions {
///     mode: ModeChoice::Always(Mode::Ar),
///     gamma: Gamma::Fixed(1),
///     batch_size: 4,
///     kv_pages: 100,
///     vocab: 100,
///     prefix_cache: true,
/// };
/// let mut engine = Engine::new(target, None, options)?;
/// for id in 0..3 {
///     let params = SamplingParams { max_tokens: 10, ..SamplingParams::default() };
///     let (prompt, eos) = (vec![5, 6], Arc::default());
///     engine.submit(Request::new(id, prompt, params, eos))?;
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
    target: Arc<Transformer<B>>,
    /// The thread that the target's backend is attached to: the one that ran the last step.
    driver: Option<ThreadId>,
    draft: Option<DraftWorker>,
    options: EngineOptions,
    planner: Planner,
    /// Texts that free guesses come from, next to each request's own.
    corpus: SuffixIndex,
    verification: Verification,
    guesses_beside_drafts: bool,
    waiting: VecDeque<Slot<B>>,
    /// Admitted requests whose prompts are not completely in the caches, in the order of admission.
    prefilling: Vec<Slot<B>>,
    running: Vec<Slot<B>>,
    /// The target's. The draft has its own.
    prefix_cache: PrefixCache<B>,
    next_slot: u64,
    tickets: Tickets,
    metrics: EngineMetrics,
}

impl<B: Backend> Engine<B> {
    /// An engine with a target and, for [`Mode::Sd`] and [`Mode::Pearl`], a draft with the same
    /// vocabulary ([`crate::shared_vocabulary`]). Without a draft, [`ModeChoice::Auto`] chooses
    /// between the other modes.
    ///
    /// The vocabulary and the context are the target's. A text that exceeds the draft's vocabulary
    /// or context continues without drafts.
    ///
    /// # Errors
    /// Invalid options, a missing draft, or a thread that cannot be started.
    pub fn new(
        target: Transformer<B>,
        draft: Option<Transformer<B>>,
        options: EngineOptions,
    ) -> Result<Engine<B>> {
        Engine::sharing(Arc::new(target), draft.map(Arc::new), options)
    }

    /// Like [`Engine::new`], with models that are also used elsewhere. Their passes are serialized.
    ///
    /// # Errors
    /// See [`Engine::new`].
    pub fn sharing(
        target: Arc<Transformer<B>>,
        draft: Option<Arc<Transformer<B>>>,
        options: EngineOptions,
    ) -> Result<Engine<B>> {
        options.validate()?;
        let vocab = target.config().vocab;
        refuse_without_draft(options.mode, draft.is_some())?;
        if options.vocab > vocab {
            return Err(Error::Request(format!(
                "the vocabulary has {} tokens; expected at most {vocab}, the width of the target's \
                 logits",
                options.vocab
            )));
        }
        let draft = match (options.mode, draft) {
            (_, None) => None,
            (ModeChoice::Always(mode), _) if !mode.needs_draft_model() => None,
            (_, Some(draft)) => Some(DraftWorker::spawn(draft, options.vocab)?),
        };
        let page = target.backend().kv_page();
        Ok(Engine {
            target,
            driver: None,
            draft,
            options,
            planner: Planner::new(options.gamma),
            corpus: SuffixIndex::default(),
            verification: Verification::default(),
            guesses_beside_drafts: true,
            waiting: VecDeque::new(),
            prefilling: Vec::new(),
            running: Vec::new(),
            prefix_cache: PrefixCache::new(page),
            next_slot: 0,
            tickets: Tickets::default(),
            metrics: EngineMetrics::default(),
        })
    }

    /// Queues a request and returns its ticket. Its text ends at the target's context length or
    /// when it fills the whole key/value cache, if not earlier.
    ///
    /// # Errors
    /// Invalid sampling parameters, or a token in them outside the vocabulary; stop strings without
    /// a stop check; a constraint with `ignore_eos`; a prompt that is empty, leaves no room for a
    /// token, or has a token outside the vocabulary.
    pub fn submit(&mut self, request: Request) -> Result<Ticket> {
        let checked = self.rules().check(request)?;
        Ok(self.enqueue(checked))
    }

    /// The checks of requests under the current options.
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

    /// Cancels a request in any state. It gets no further updates. No effect if it has ended.
    pub fn cancel(&mut self, ticket: Ticket) {
        self.waiting.retain(|slot| slot.ticket != ticket);
        self.release_where(|slot| slot.ticket == ticket);
    }

    /// Cancels all requests.
    pub fn cancel_all(&mut self) {
        self.waiting.clear();
        self.release_where(|_| true);
    }

    /// Removes the admitted requests for which `removed` is true, with their sequences.
    fn release_where(&mut self, removed: impl Fn(&Slot<B>) -> bool) {
        let mut gone: Vec<Slot<B>> = Vec::new();
        gone.extend(self.prefilling.extract_if(.., |slot| removed(slot)));
        gone.extend(self.running.extract_if(.., |slot| removed(slot)));
        gone.iter_mut().for_each(|slot| self.leave_batch(slot));
    }

    /// Drops the draft's sequence of a request, and its use of the prefix cache.
    fn leave_batch(&mut self, slot: &mut Slot<B>) {
        if let Some(draft) = &self.draft {
            draft.forget(slot.number);
        }
        self.prefix_cache.release(&mut slot.shared, 0);
    }

    /// Number of unfinished requests.
    pub fn pending(&self) -> usize {
        self.waiting.len() + self.prefilling.len() + self.running.len()
    }

    /// The current options.
    pub fn options(&self) -> &EngineOptions {
        &self.options
    }

    /// Changes the decoding mode from the next step on. Greedy texts do not depend on it.
    ///
    /// # Errors
    /// See [`Engine::configure`].
    pub fn set_mode(&mut self, mode: ModeChoice) -> Result<()> {
        self.configure(EngineOptions { mode, ..self.options })
    }

    /// Changes the options from the next step on. Greedy texts do not depend on them, and the
    /// planner keeps its measurements. The next steps bring caches within the new limits. Queued
    /// requests keep the limits they were submitted under.
    ///
    /// # Errors
    /// Invalid options, or a mode that needs a missing draft.
    pub fn configure(&mut self, options: EngineOptions) -> Result<()> {
        options.validate()?;
        refuse_without_draft(options.mode, self.draft.is_some())?;
        if options.vocab != self.options.vocab {
            let message = "an engine's vocabulary is that of its models and cannot change";
            return Err(Error::Request(message.to_owned()));
        }
        if options.gamma != self.options.gamma {
            self.planner.set_gamma(options.gamma);
        }
        if !options.prefix_cache {
            self.prefix_cache.shrink_to(0);
        }
        self.options = options;
        Ok(())
    }

    /// Changes how the drafts of sampled texts are judged, from the next step on.
    pub fn set_verification(&mut self, verification: Verification) {
        self.verification = verification;
    }

    /// Whether `pearl` and `sd` may verify free guesses besides the draft model's tokens, from the
    /// next step on; they do by default. Greedy texts do not depend on it.
    pub fn set_guesses_beside_drafts(&mut self, on: bool) {
        self.guesses_beside_drafts = on;
    }

    /// Replaces the metrics and returns the old ones. The measurements of the planner are kept.
    pub fn replace_metrics(&mut self, metrics: EngineMetrics) -> EngineMetrics {
        std::mem::replace(&mut self.metrics, metrics)
    }

    /// The mean accepted tokens (MAT) of a running request so far.
    pub fn mat(&self, ticket: Ticket) -> Option<f64> {
        self.running.iter().find(|slot| slot.ticket == ticket)?.runs.mean()
    }

    /// Times, acceptance and other counts since the start or [`Engine::replace_metrics`].
    pub fn metrics(&self) -> &EngineMetrics {
        &self.metrics
    }

    /// Admits requests that fit, prefills one chunk, and runs one decoding step: every running
    /// request gets at least one token. If no request is running, prefills until one is.
    ///
    /// # Errors
    /// A failure of either model, logits that are not numbers, a failed stop check, or a failed
    /// constraint. The engine cannot be used after an error.
    pub fn step(&mut self) -> Result<Vec<Update>> {
        let mut updates = self.advance()?;
        while updates.is_empty() && self.pending() > 0 {
            updates = self.advance()?;
        }
        updates.into_iter().map(|(_, update)| update).collect()
    }

    /// Like [`Engine::step`], but an error of one request ends that request only, and there are no
    /// updates if no request is running after one chunk of prefill.
    fn advance(&mut self) -> Result<Vec<(Ticket, Result<Update>)>> {
        self.attach();
        self.admit();
        self.prefill_chunk()?;
        let updates = self.decode()?;
        self.shrink_prefix_cache();
        self.metrics.pages_used = self.pages_held();
        self.metrics.pages_cached = self.prefix_cache.unused();
        self.metrics.pages_total = self.options.kv_pages;
        Ok(updates)
    }

    /// One decoding step of the running requests, if there are any.
    fn decode(&mut self) -> Result<Vec<(Ticket, Result<Update>)>> {
        let start = Instant::now();
        self.preempt();
        self.shrink_prefix_cache();
        if self.running.is_empty() {
            return Ok(Vec::new());
        }
        let plan = self.plan();
        let mode = plan.mode;
        self.target.backend().set_co_running(mode.is_parallel());
        // `work`: seconds in the models. Time in which both run counts once.
        let (chunks, scores, work) = match mode {
            Mode::Ar => {
                let (scores, scoring) = self.score(mode, None)?;
                (vec![Proposal::new(); self.running.len()], scores, scoring)
            }
            Mode::Sd => {
                let job = self.start_drafting(plan);
                let (mut chunks, drafting) = self.finish_drafting(mode, job)?;
                self.replace_drafts(&mut chunks);
                let (scores, scoring) = self.score(mode, Some(&chunks))?;
                (chunks, scores, drafting + scoring)
            }
            Mode::Suffix => {
                let chunks = self.guessed_chunks();
                let (scores, scoring) = self.score(mode, Some(&chunks))?;
                (chunks, scores, scoring)
            }
            Mode::Pearl | Mode::Forked => {
                let job = self.start_drafting(plan);
                let (scores, scoring) = self.score(mode, None)?;
                let (chunks, drafting) = self.finish_drafting(mode, job)?;
                (chunks, scores, drafting.max(scoring))
            }
        };
        let batch = self.running.len();
        let updates = self.judge(mode, chunks, &scores)?;
        self.planner.speeds.record_overhead(batch, mode, start.elapsed().as_secs_f64() - work);
        Ok(updates)
    }

    /// Admits requests that fit and prefills them completely, without decoding, so that prefill and
    /// decoding can be measured separately.
    ///
    /// # Errors
    /// See [`Engine::step`].
    pub fn prefill(&mut self) -> Result<()> {
        self.attach();
        self.admit();
        while !self.prefilling.is_empty() {
            self.prefill_chunk()?;
        }
        Ok(())
    }

    /// Attaches the target's backend to the calling thread if it changed.
    fn attach(&mut self) {
        let here = thread::current().id();
        if self.driver.replace(here) != Some(here) {
            self.target.backend().attach_thread();
        }
    }

    /// Resets the running requests to their prompts, to decode them again: a benchmark does so
    /// between modes. Requests with stop strings cannot be reset. The draft prefills the prompts
    /// again if it could not follow the texts to their end.
    ///
    /// # Errors
    /// A failure of either model.
    pub fn rewind(&mut self) -> Result<()> {
        for slot in &mut self.running {
            slot.rewind(&self.target)?;
            let prompt = slot.prompt_prefix();
            self.prefix_cache.release_beyond(&mut slot.shared, prompt);
        }
        self.prefill_draft_prompts()
    }
}

/// Checks that a mode that needs a draft model has one.
fn refuse_without_draft(mode: ModeChoice, has_draft: bool) -> Result<()> {
    match mode {
        ModeChoice::Always(mode) if mode.needs_draft_model() && !has_draft => {
            Err(Error::Request(format!(
                "mode `{mode}` needs a draft model, and there is none; expected one, or mode `ar` \
                 or `suffix`"
            )))
        }
        _ => Ok(()),
    }
}
