//! Many requests at once, decoded by a target and, beside it, a draft.
//!
//! The target runs on the calling thread with its own group of threads, the draft on a worker thread with
//! its own; token ids go back and forth over channels, and nothing else is shared. Requests join and leave
//! at any step.

mod draft_worker;
mod metrics;
mod options;
mod request;
mod slot;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use fathom_kernels::Backend;
use fathom_model::{Error, LogitRows, Logits, Model, PREFILL_CHUNK, Result, SequenceOptions, Step};

use crate::{
    AdaptiveGamma, AutoMode, Completion, EndRules, GreedyJudge, Judge, LogitsJudge, Mode, Outcome,
    Proposal, Sampler, ar, sd,
};
use draft_worker::{DraftJob, DraftWorker};
pub use metrics::EngineMetrics;
pub use options::{EngineOptions, Gamma, ModeChoice};
pub use request::{Done, Request, Update};
use slot::Slot;

/// Decodes requests in batches.
pub struct Engine<'a, B: Backend> {
    target: Model<B>,
    draft: Option<DraftWorker>,
    options: EngineOptions,
    gamma: AdaptiveGamma,
    auto: AutoMode,
    /// Most tokens of a sequence, prompt included.
    context: usize,
    waiting: VecDeque<Slot<'a, B>>,
    running: Vec<Slot<'a, B>>,
    next_slot: u64,
    /// Slots whose draft sequences are no longer needed.
    forget: Vec<u64>,
    metrics: EngineMetrics,
}

impl<'a, B: Backend> Engine<'a, B> {
    /// An engine over a target and, for every mode but [`Mode::Ar`], a draft of the same vocabulary
    /// ([`crate::shared_vocabulary`]).
    ///
    /// # Errors
    /// Options that have no meaning or need a draft that is not there, or a thread the operating system
    /// refuses.
    pub fn new(
        target: Model<B>,
        draft: Option<Model<B>>,
        options: EngineOptions,
    ) -> Result<Engine<'a, B>> {
        options.validate()?;
        let mut context = target.config().max_position_embeddings;
        let mut vocab = target.config().vocab;
        if let Some(draft) = &draft {
            context = context.min(draft.config().max_position_embeddings);
            vocab = vocab.min(draft.config().vocab);
        } else if options.mode != ModeChoice::Always(Mode::Ar) {
            let message = "speculative decoding needs a draft model; expected one, or mode `ar`";
            return Err(Error::Request(message.to_owned()));
        }
        if options.vocab > vocab {
            return Err(Error::Request(format!(
                "the vocabulary has {} tokens; expected at most {vocab}, which is what both models have",
                options.vocab
            )));
        }
        let gamma = match options.gamma {
            Gamma::Fixed(gamma) => AdaptiveGamma::fixed(gamma),
            Gamma::Adaptive(limits) => AdaptiveGamma::new(limits),
        };
        let draft = match (options.mode, draft) {
            (ModeChoice::Always(Mode::Ar), _) | (_, None) => None,
            (_, Some(draft)) => Some(DraftWorker::spawn(draft, options.vocab)?),
        };
        Ok(Engine {
            target,
            draft,
            options,
            gamma,
            auto: AutoMode::default(),
            context,
            waiting: VecDeque::new(),
            running: Vec::new(),
            next_slot: 0,
            forget: Vec::new(),
            metrics: EngineMetrics::default(),
        })
    }

    /// Queues a request. Its text ends at the models' context at the latest.
    ///
    /// # Errors
    /// Sampling parameters that have no meaning; stop strings nobody watches for; a prompt that is empty, does not leave room for a token,
    /// or names a token outside the vocabulary.
    pub fn submit(&mut self, request: Request<'a>) -> Result<()> {
        let Request { id, prompt, params, eos, stop } = request;
        let sampler = Arc::new(Sampler::new(params, id, self.options.vocab)?);
        let longest = self.context.min(self.options.kv_tokens);
        let refuse =
            |problem: String| Err(Error::Request(format!("the prompt of request {id} {problem}")));
        if prompt.is_empty() {
            return refuse("is empty; expected at least one token".to_owned());
        }
        if prompt.len() >= longest {
            return refuse(format!(
                "has {} tokens; expected fewer than {longest}, the models' context or what the \
                 key/value cache may hold",
                prompt.len()
            ));
        }
        if let Some(token) = prompt.iter().find(|&&token| token as usize >= self.options.vocab) {
            return refuse(format!(
                "holds token {token}; expected ids below {}, the shared vocabulary",
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
        let max_tokens = params.max_tokens.min(longest - prompt.len());
        let planned_len = prompt.len();
        let text = Completion::new(prompt, EndRules { eos, max_tokens, stop });
        self.waiting.push_back(Slot::new(id, planned_len, text, sampler));
        Ok(())
    }

    /// Drops a request, wherever it is. Nothing more is heard of it.
    pub fn cancel(&mut self, id: u64) {
        self.waiting.retain(|slot| slot.request != id);
        self.release_where(|slot| slot.request == id);
    }

    /// Takes running requests out of the batch for good.
    fn release_where(&mut self, leaves: impl Fn(&Slot<'a, B>) -> bool) {
        for slot in self.running.extract_if(.., |slot| leaves(slot)) {
            self.forget.extend(self.draft.as_ref().map(|_| slot.number));
        }
    }

    /// Requests not finished yet.
    pub fn pending(&self) -> usize {
        self.waiting.len() + self.running.len()
    }

    /// How it is set up.
    pub fn options(&self) -> &EngineOptions {
        &self.options
    }

    /// Goes on in another way of decoding. No text is disturbed by it.
    ///
    /// # Errors
    /// A way that needs a draft, where there is none.
    pub fn set_mode(&mut self, mode: ModeChoice) -> Result<()> {
        if self.draft.is_none() && mode != ModeChoice::Always(Mode::Ar) {
            let message =
                "speculative decoding needs a draft model, and this engine was set up without";
            return Err(Error::Request(message.to_owned()));
        }
        self.options.mode = mode;
        Ok(())
    }

    /// The metrics so far, which begin anew. What γ adapts to is kept.
    pub fn take_metrics(&mut self) -> EngineMetrics {
        std::mem::take(&mut self.metrics)
    }

    /// Mean accepted tokens, so far, of a request in the batch.
    pub fn mat(&self, request: u64) -> Option<f64> {
        self.running.iter().find(|slot| slot.request == request)?.runs.mean()
    }

    /// Where the time went, and what speculation was worth.
    pub fn metrics(&self) -> &EngineMetrics {
        &self.metrics
    }

    /// Admits what fits and takes every running request one step further: at least one token each.
    ///
    /// # Errors
    /// A failure of either model, after which the engine is of no further use.
    pub fn step(&mut self) -> Result<Vec<Update>> {
        self.admit()?;
        if self.running.is_empty() {
            return Ok(Vec::new());
        }
        let (mode, gamma) = self.plan();
        self.target.backend().set_beside(mode == Mode::Pearl);
        let (start, batch) = (Instant::now(), self.running.len());
        let (chunks, scores) = match mode {
            Mode::Ar => (vec![Proposal::new(); self.running.len()], self.score(None)?),
            Mode::Sd => {
                self.start_drafting(gamma, false);
                let chunks = self.finish_drafting(gamma)?;
                let scores = self.score(Some(&chunks))?;
                (chunks, scores)
            }
            Mode::Pearl => {
                self.start_drafting(gamma, true);
                let scores = self.score(None)?;
                (self.finish_drafting(gamma)?, scores)
            }
        };
        let updates = self.judge(mode, chunks, &scores)?;
        self.auto.record(batch, mode, start.elapsed().as_secs_f64());
        Ok(updates)
    }

    /// Moves waiting requests into the batch while there is room, and prefills them: both models' caches
    /// then hold the text but its last token, as before every step.
    fn admit(&mut self) -> Result<()> {
        let mut admitted = Vec::new();
        let mut held: usize = self.running.iter().map(|slot| self.footprint(slot)).sum();
        while let Some(slot) = self.waiting.front() {
            held += self.footprint(slot);
            let room = self.running.len() + admitted.len() < self.options.batch_size;
            // A request alone always fits: see `submit`.
            let alone = self.running.is_empty() && admitted.is_empty();
            if !room || (held > self.options.kv_tokens && !alone) {
                break;
            }
            admitted.extend(self.waiting.pop_front());
        }
        if admitted.is_empty() {
            return Ok(());
        }
        let start = Instant::now();
        for slot in &mut admitted {
            slot.number = self.next_slot;
            self.next_slot += 1;
        }
        if let Some(draft) = &self.draft {
            let items = admitted.iter_mut().map(|slot| slot.draft_item(0)).collect();
            let forget = std::mem::take(&mut self.forget);
            draft.send(DraftJob { items, gamma: 0, beside: true, forget });
        }
        self.target.backend().set_beside(self.draft.is_some());
        for slot in &mut admitted {
            let options =
                SequenceOptions { planned_len: Some(slot.planned_len), ..Default::default() };
            let mut sequence = self.target.new_sequence(options);
            let tokens = slot.text.tokens();
            let prefix = &tokens[..tokens.len() - 1];
            self.target.prefill(&mut sequence, prefix, PREFILL_CHUNK, None, &mut |_| {})?;
            slot.sequence = Some(sequence);
        }
        if let Some(draft) = &mut self.draft {
            draft.receive()?;
        }
        self.metrics.prefill_seconds += start.elapsed().as_secs_f64();
        self.running.extend(admitted);
        Ok(())
    }

    /// Tokens a sequence's cache may hold at the end of the next step.
    fn footprint(&self, slot: &Slot<'a, B>) -> usize {
        let reach =
            slot.text.tokens().len() + slot.pearl.pending().len() + self.options.max_gamma();
        reach.min(slot.text.tokens().len() + slot.text.remaining())
    }

    /// How the next step is made. Before that, where the caches have grown beyond what they may hold,
    /// sends the youngest requests back to wait; they keep their text and resume where they were.
    fn plan(&mut self) -> (Mode, usize) {
        while self.running.len() > 1
            && self.running.iter().map(|slot| self.footprint(slot)).sum::<usize>()
                > self.options.kv_tokens
        {
            let Some(mut slot) = self.running.pop() else { break };
            self.forget.extend(self.draft.as_ref().map(|_| slot.number));
            self.metrics.preemptions += 1;
            self.metrics.wasted += slot.release();
            self.waiting.push_front(slot);
        }
        let batch = self.running.len();
        let (mode, gamma) = match self.options.mode {
            ModeChoice::Always(Mode::Ar) => (Mode::Ar, 0),
            ModeChoice::Always(mode) => (mode, self.gamma.gamma(mode, batch)),
            ModeChoice::Auto => {
                let gamma = Mode::ALL.map(|mode| match mode {
                    Mode::Ar => 0,
                    mode => self.gamma.gamma(mode, batch),
                });
                let tokens_per_step = |mode: Mode| {
                    self.gamma.tokens_per_step(mode, gamma[mode as usize]).unwrap_or(1.0)
                };
                let mode = self.auto.choose(batch, tokens_per_step);
                (mode, gamma[mode as usize])
            }
        };
        if mode != Mode::Pearl {
            for slot in &mut self.running {
                self.metrics.wasted += slot.drop_pending();
            }
        }
        self.metrics.gamma = gamma;
        *self.metrics.steps.entry(mode).or_default() += 1;
        (mode, gamma)
    }

    /// Sets the draft to work on a chunk of `gamma` tokens for every running request, `beside` the target
    /// or while that waits.
    fn start_drafting(&mut self, gamma: usize, beside: bool) {
        let Some(draft) = &self.draft else { return };
        let items = self.running.iter_mut().map(|slot| slot.draft_item(gamma));
        let items = items.filter(|item| item.gamma > 0).collect();
        let forget = std::mem::take(&mut self.forget);
        draft.send(DraftJob { items, gamma, beside, forget });
    }

    /// Waits for the chunks; one for every running request, empty where there was no room.
    fn finish_drafting(&mut self, gamma: usize) -> Result<Vec<Proposal>> {
        let Some(draft) = &mut self.draft else { return Ok(Vec::new()) };
        let start = Instant::now();
        let report = draft.receive()?;
        self.metrics.wait_seconds += start.elapsed().as_secs_f64();
        self.metrics.draft_seconds += report.seconds;
        self.gamma.record_draft(self.running.len(), gamma, report.seconds);
        let mut chunks = report.chunks;
        Ok(self
            .running
            .iter()
            .map(|slot| chunks.remove(&slot.number).unwrap_or_default())
            .collect())
    }

    /// The target's pass: the last committed token and the drafts that follow it, of every request.
    fn score(&mut self, chunks: Option<&[Proposal]>) -> Result<Logits<B>> {
        let start = Instant::now();
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
        let logits = self.target.forward(&mut steps, None)?;
        let seconds = start.elapsed().as_secs_f64();
        let rows = feeds.iter().map(Vec::len).sum();
        self.metrics.verify_seconds += seconds;
        self.gamma.record_target(feeds.len(), rows, seconds);
        Ok(logits)
    }

    /// Judges what was drafted, commits what holds, rolls both models back to it, and lets finished
    /// requests go.
    fn judge(
        &mut self,
        mode: Mode,
        chunks: Vec<Proposal>,
        scores: &Logits<B>,
    ) -> Result<Vec<Update>> {
        let start = Instant::now();
        let backend = self.target.backend();
        let best = scores.argmax(backend, self.options.vocab);
        let mut updates = Vec::with_capacity(self.running.len());
        for (i, (slot, chunk)) in self.running.iter_mut().zip(chunks).enumerate() {
            let before = slot.text.generated().len();
            let logits;
            let judge: &mut dyn Judge = if slot.sampler.params().is_greedy() {
                &mut GreedyJudge { best: &best[i] }
            } else {
                logits = scores.step(backend, i);
                &mut LogitsJudge {
                    sampler: &slot.sampler,
                    logits: &logits,
                    vocab: self.target.config().vocab,
                    position: slot.text.tokens().len(),
                }
            };
            let outcome: Outcome = match mode {
                Mode::Ar => ar::step(&mut slot.text, judge)?,
                Mode::Sd => sd::step(&mut slot.text, &chunk, judge)?,
                Mode::Pearl => slot.pearl.step(&mut slot.text, chunk, judge)?,
            };
            slot.roll_back(&self.target)?;
            slot.runs.record(&outcome);
            slot.acceptance.record(&outcome);
            self.metrics.acceptance.record(&outcome);
            self.metrics.tokens += outcome.committed;
            self.metrics.wasted += outcome.wasted;
            self.gamma.record_acceptance(outcome.judged, outcome.accepted);
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
