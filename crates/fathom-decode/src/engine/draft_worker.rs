//! The draft model, on its own thread.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use fathom_backend::Backend;
use fathom_model::{
    Error, LogitRows, PREFILL_CHUNK, Result, Sequence, SequenceOptions, Step, Transformer,
};

use super::prefix_cache::{PrefixCache, SharedPages};
use super::scores::PassScores;
use crate::panics::panic_message;
use crate::{ConstrainedText, Drafted, History, Proposal, Sampler};

/// Longest tail, in tokens, that is fed in the pass that drafts the first token. After a step that
/// accepted every draft, the draft's cache lacks two tokens. A longer tail needs a catch-up
/// prefill.
const MAX_TAIL: usize = 2;

/// The draft's work for one request: truncate its sequence to `keep` tokens, feed `tail`, which is
/// not empty, and draft `gamma` tokens after it. `gamma` = 0 only prefills.
pub(super) struct DraftItem {
    pub slot: u64,
    /// Prompt length in tokens.
    pub planned_len: usize,
    pub keep: usize,
    pub tail: Vec<u32>,
    pub gamma: usize,
    pub sampler: Arc<Sampler>,
    /// The draft's own copy of the text's constraint, in the first item of a slot.
    pub constraint: Option<ConstrainedText>,
}

impl DraftItem {
    /// Rows that the draft computes for it, at most.
    pub fn rows(&self) -> usize {
        self.tail.len() + self.gamma.saturating_sub(1)
    }
}

/// The draft's work of one step or prefill chunk.
pub(super) struct DraftJob {
    pub items: Vec<DraftItem>,
    /// The longest chunk among the items.
    pub gamma: usize,
    /// Whether the target runs at the same time.
    pub co_running: bool,
    /// The maximum number of pages of all caches together, with those of the prefix cache. `None`:
    /// no prefix cache.
    pub prefix_pages: Option<usize>,
}

/// The texts that the draft can follow. Others continue without drafts.
#[derive(Clone, Copy, Debug)]
pub(super) struct DraftLimits {
    /// The draft's context length: its maximum number of input tokens.
    pub context: usize,
    /// Ids ≥ `vocab` are not inputs of the draft and never drafted.
    pub vocab: usize,
}

impl DraftLimits {
    /// Whether a token may be drafted after `text`.
    pub fn allow(self, text: &[u32]) -> bool {
        text.len() <= self.context && text.iter().all(|&token| (token as usize) < self.vocab)
    }
}

/// Commands to the thread. Only [`DraftCommand::Work`] is answered.
enum DraftCommand {
    Work(DraftJob),
    /// Drops the sequence of a slot.
    Forget(u64),
}

/// The result of a job.
pub(super) struct DraftReport {
    /// Chunks by slot.
    pub chunks: HashMap<u64, Proposal>,
    /// Seconds of the whole job.
    pub seconds: f64,
    /// Seconds of drafting, without the catch-up prefill.
    pub drafting: f64,
}

/// Handle of the draft's thread. Dropping it ends the thread.
pub(super) struct DraftWorker {
    limits: DraftLimits,
    commands: Option<Sender<DraftCommand>>,
    reports: Receiver<Result<DraftReport>>,
    thread: Option<JoinHandle<()>>,
}

impl DraftWorker {
    /// Starts the thread. Ids ≥ `vocab` are padding of the target's logits.
    pub fn spawn<B: Backend>(model: Arc<Transformer<B>>, vocab: usize) -> Result<DraftWorker> {
        let config = model.config();
        let limits =
            DraftLimits { context: config.max_position_embeddings, vocab: vocab.min(config.vocab) };
        let (commands, inbox) = channel();
        let (outbox, reports) = channel();
        let mut draft = Draft::new(model, limits.vocab);
        let run = move || {
            draft.model.backend().attach_thread();
            for command in inbox {
                let job = match command {
                    DraftCommand::Work(job) => job,
                    DraftCommand::Forget(slot) => {
                        draft.forget(slot);
                        continue;
                    }
                };
                let report = draft.work(job);
                let failed = report.is_err();
                if outbox.send(report).is_err() || failed {
                    break;
                }
            }
        };
        let thread = std::thread::Builder::new().name("fathom-draft".to_owned()).spawn(run);
        let thread = thread.map_err(|error| {
            Error::Request(format!("the draft's thread cannot be started: {error}"))
        })?;
        Ok(DraftWorker { limits, commands: Some(commands), reports, thread: Some(thread) })
    }

    /// The texts that the draft can follow.
    pub fn limits(&self) -> DraftLimits {
        self.limits
    }

    /// Starts a job. [`DraftWorker::receive`] returns its result, or the error of a draft that has
    /// stopped.
    pub fn send(&self, job: DraftJob) {
        self.command(DraftCommand::Work(job));
    }

    /// Drops a sequence, if it exists.
    pub fn forget(&self, slot: u64) {
        self.command(DraftCommand::Forget(slot));
    }

    fn command(&self, command: DraftCommand) {
        if let Some(commands) = &self.commands {
            // Fails only if the thread has ended. `receive` returns the reason.
            drop(commands.send(command));
        }
    }

    /// Waits for the result of the last job.
    pub fn receive(&mut self) -> Result<DraftReport> {
        match self.reports.recv() {
            Ok(report) => report,
            Err(_) => Err(Error::Request(format!("the draft stopped: {}", self.panic_message()))),
        }
    }

    fn panic_message(&mut self) -> String {
        match self.thread.take().map(JoinHandle::join) {
            Some(Err(panic)) => panic_message(panic.as_ref()),
            _ => "it failed before".to_owned(),
        }
    }
}

impl Drop for DraftWorker {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(thread) = self.thread.take() {
            // `receive` reports panics.
            drop(thread.join());
        }
    }
}

struct Draft<B: Backend> {
    model: Arc<Transformer<B>>,
    vocab: usize,
    /// By slot.
    sequences: HashMap<u64, SlotState<B>>,
    prefix_cache: PrefixCache<B>,
}

/// The draft's state of a request between jobs.
struct SlotState<B: Backend> {
    sequence: Sequence<B>,
    /// Token counts of the sequence and of the drafts after it. `None` if logits are not processed.
    history: Option<History>,
    /// `None` if the text has no constraint.
    constraint: Option<ConstrainedText>,
    /// The pages of the sequence that are the prefix cache's.
    shared: SharedPages,
}

/// A request during a job.
struct Drafting<B: Backend> {
    item: DraftItem,
    state: SlotState<B>,
    chunk: Proposal,
}

impl<B: Backend> Draft<B> {
    fn new(model: Arc<Transformer<B>>, vocab: usize) -> Draft<B> {
        let prefix_cache = PrefixCache::new(model.backend().kv_page());
        Draft { model, vocab, sequences: HashMap::new(), prefix_cache }
    }

    fn forget(&mut self, slot: u64) {
        if let Some(mut state) = self.sequences.remove(&slot) {
            self.prefix_cache.release(&mut state.shared, 0);
        }
    }

    fn work(&mut self, job: DraftJob) -> Result<DraftReport> {
        let start = self.model.backend().mark()?;
        self.model.backend().set_co_running(job.co_running);
        let mut all =
            job.items.into_iter().map(|item| self.begin(item)).collect::<Result<Vec<_>>>()?;
        self.use_prefix_cache(&mut all, job.prefix_pages);
        self.catch_up(&mut all)?;
        if job.prefix_pages.is_some() {
            for Drafting { item, state, .. } in &mut all {
                let prompt = item.planned_len.saturating_sub(1);
                let SlotState { sequence, shared, .. } = state;
                self.prefix_cache.share(&self.model, sequence, shared, prompt);
            }
        }
        let caught_up = self.model.backend().mark()?;
        for round in 0..job.gamma {
            let drafting: Vec<_> = all.iter_mut().filter(|d| d.item.gamma > round).collect();
            if drafting.is_empty() {
                break;
            }
            self.draft_one(drafting)?;
        }
        let chunks = all.into_iter().map(|Drafting { item, state, chunk }| {
            self.sequences.insert(item.slot, state);
            (item.slot, chunk)
        });
        let chunks = chunks.collect();
        let backend = self.model.backend();
        let end = backend.mark()?;
        Ok(DraftReport {
            chunks,
            seconds: backend.seconds_between(&start, &end)?,
            drafting: backend.seconds_between(&caught_up, &end)?,
        })
    }

    /// Truncates a request's sequence to `keep` tokens, or creates it.
    fn begin(&mut self, mut item: DraftItem) -> Result<Drafting<B>> {
        let options = SequenceOptions { planned_len: Some(item.planned_len), ..Default::default() };
        let mut state = self.sequences.remove(&item.slot).unwrap_or_else(|| SlotState {
            sequence: self.model.new_sequence(options),
            history: item.sampler.history(item.planned_len),
            constraint: None,
            shared: SharedPages::default(),
        });
        self.model.truncate(&mut state.sequence, item.keep)?;
        self.prefix_cache.release_beyond(&mut state.shared, item.keep);
        if let Some(history) = &mut state.history {
            history.follow(item.keep, &item.tail);
        }
        if let Some(constraint) = item.constraint.take() {
            state.constraint = Some(constraint);
        }
        if let Some(constraint) = &mut state.constraint {
            let text: Vec<u32> =
                state.sequence.tokens().iter().chain(&item.tail).copied().collect();
            let generated = text.get(item.planned_len..).unwrap_or_default();
            // If it fails, drafts are bad or fail too. The target's own copy decides the text.
            drop(constraint.follow(generated));
        }
        Ok(Drafting { item, state, chunk: Proposal::new() })
    }

    /// Takes rows of long tails from the prefix cache, and evicts pages until those of all sequences
    /// fit at the end of the job.
    fn use_prefix_cache(&mut self, all: &mut [Drafting<B>], pages: Option<usize>) {
        let Some(pages) = pages else { return self.prefix_cache.shrink_to(0) };
        for Drafting { item, state, .. } in all.iter_mut() {
            if item.tail.len() > MAX_TAIL {
                let SlotState { sequence, shared, .. } = state;
                let own = sequence.tokens().iter().chain(&item.tail).copied();
                // The last token is fed by the pass that drafts the first one.
                let known = item.keep + item.tail.len() - usize::from(item.gamma > 0);
                let text: Vec<u32> = own.take(known).collect();
                let taken = self.prefix_cache.take(&self.model, sequence, shared, &text);
                item.tail.drain(..taken);
            }
        }
        let page = self.model.backend().kv_page();
        let own = |tokens: usize, shared: &SharedPages| tokens.div_ceil(page) - shared.len();
        let resting = self.sequences.values().map(|state| own(state.sequence.len(), &state.shared));
        let working =
            all.iter().map(|d| own(d.state.sequence.len() + d.item.rows(), &d.state.shared));
        self.prefix_cache.shrink_to(pages.saturating_sub(resting.chain(working).sum()));
    }

    /// Catch-up prefill: feeds the whole tail of items that only prefill, and all but the last
    /// token of tails longer than [`MAX_TAIL`]. This is one pass if the tokens fit in a prefill
    /// chunk. The rest of a tail is fed in the pass that drafts the first token.
    fn catch_up(&self, all: &mut [Drafting<B>]) -> Result<()> {
        let mut prefills = Vec::new();
        for d in all.iter_mut() {
            let prefilled = match d.item.gamma {
                0 => d.item.tail.len(),
                _ if d.item.tail.len() > MAX_TAIL => d.item.tail.len() - 1,
                _ => 0,
            };
            prefills.push(d.item.tail.drain(..prefilled).collect::<Vec<u32>>());
        }
        if prefills.iter().map(Vec::len).sum::<usize>() > PREFILL_CHUNK {
            for (d, tokens) in all.iter_mut().zip(&prefills) {
                self.model.prefill(
                    &mut d.state.sequence,
                    tokens,
                    PREFILL_CHUNK,
                    None,
                    &mut |_| {},
                )?;
            }
            return Ok(());
        }
        let with_tokens = all.iter_mut().zip(&prefills).filter(|(_, tokens)| !tokens.is_empty());
        let mut steps: Vec<Step<'_, B>> =
            with_tokens.map(|(d, tokens)| d.step(tokens, LogitRows::None)).collect();
        if !steps.is_empty() {
            self.model.forward(&mut steps, None)?;
        }
        Ok(())
    }

    /// Drafts one more token for each request.
    fn draft_one(&self, mut drafting: Vec<&mut Drafting<B>>) -> Result<()> {
        let argmax_only = drafting.iter().all(|d| d.takes_argmax());
        let feeds: Vec<Vec<u32>> = drafting
            .iter_mut()
            .map(|d| match d.chunk.last() {
                Some(last) => vec![last.token],
                None => std::mem::take(&mut d.item.tail),
            })
            .collect();
        let mut steps: Vec<Step<'_, B>> = drafting
            .iter_mut()
            .zip(&feeds)
            .map(|(d, tokens)| d.step(tokens, LogitRows::Last))
            .collect();
        let scores = PassScores::of(&self.model, &mut steps, None, argmax_only, self.vocab)?;
        for (i, d) in drafting.into_iter().enumerate() {
            let drafted = match (&scores.logits, scores.best[i].first()) {
                (Some(all), _) if !d.takes_argmax() => {
                    let Ok(drafted) = d.draft(all.step(self.model.backend(), i)?) else {
                        // The draft's logits are not numbers, or it has no token that the
                        // constraint allows: no more drafts in this step. The text continues.
                        d.item.gamma = 0;
                        continue;
                    };
                    drafted
                }
                (_, Some(&token)) => Drafted { token, q: None },
                (_, None) => continue,
            };
            d.push(drafted);
        }
        Ok(())
    }
}

impl<B: Backend> Drafting<B> {
    /// The draft's pass over the next tokens of the text.
    fn step<'a>(&'a mut self, tokens: &'a [u32], logits: LogitRows) -> Step<'a, B> {
        Step { sequence: &mut self.state.sequence, tokens, logits }
    }

    /// Whether the next token is the argmax of the draft's unprocessed logits.
    fn takes_argmax(&self) -> bool {
        let generated = self.state.history.as_ref().map_or(0, History::generated);
        self.state.constraint.is_none() && self.item.sampler.takes_argmax(generated)
    }

    /// Draws the next token from the draft's logits `[vocab]`.
    fn draft(&mut self, mut logits: Vec<f32>) -> Result<Drafted> {
        let SlotState { sequence, history, constraint, .. } = &mut self.state;
        if let Some(history) = history {
            self.item.sampler.process(&mut logits, history);
        }
        if let Some(constraint) = constraint {
            constraint.mask(&mut logits)?;
        }
        self.item.sampler.draft(&logits, sequence.len())
    }

    /// Adds a drafted token.
    fn push(&mut self, drafted: Drafted) {
        if let Some(history) = &mut self.state.history {
            history.push(drafted.token);
        }
        if let Some(constraint) = &mut self.state.constraint
            && constraint.push(drafted.token).is_err()
        {
            self.item.gamma = 0; // no draft after this one
        }
        self.chunk.push(drafted);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use fathom_kernels::{Cpu, CpuOptions};

    use super::*;
    use crate::SamplingParams;

    /// A failing draft returns its error, and every later job returns that it has stopped.
    #[test]
    fn a_draft_that_fails_ends_with_its_error() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/golden/qwen2");
        let options = CpuOptions { threads: Some(1), ..CpuOptions::default() };
        let model = Transformer::load(&dir, Cpu::new(options).unwrap()).unwrap();
        let vocab = model.config().vocab;
        let sampler = Arc::new(Sampler::new(SamplingParams::default(), 0, vocab).unwrap());
        let job = |token: u32| {
            let sampler = Arc::clone(&sampler);
            let item = DraftItem {
                slot: 1,
                planned_len: 1,
                keep: 0,
                tail: vec![token],
                gamma: 2,
                sampler,
                constraint: None,
            };
            DraftJob { items: vec![item], gamma: 2, co_running: false, prefix_pages: None }
        };
        let mut worker = DraftWorker::spawn(model.into(), vocab).unwrap();
        worker.send(job(1));
        assert_eq!(worker.receive().unwrap().chunks[&1].len(), 2);
        worker.send(job(vocab as u32));
        let error = worker.receive().err().unwrap().to_string();
        assert!(error.contains("outside the model's vocabulary"), "{error}");
        worker.send(job(1));
        let error = worker.receive().err().unwrap().to_string();
        assert!(error.contains("the draft stopped"), "{error}");
    }

    /// A later job for a forgotten slot starts from its own tail alone.
    #[test]
    fn a_forgotten_sequence_is_gone() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/golden/qwen2");
        let options = CpuOptions { threads: Some(1), ..CpuOptions::default() };
        let model = Transformer::load(&dir, Cpu::new(options).unwrap()).unwrap();
        let vocab = model.config().vocab;
        let sampler = Arc::new(Sampler::new(SamplingParams::default(), 0, vocab).unwrap());
        let mut worker = DraftWorker::spawn(model.into(), vocab).unwrap();
        let mut chunk = |slot, keep, tail: &[u32], forget| {
            let (tail, sampler) = (tail.to_vec(), Arc::clone(&sampler));
            let constraint = None;
            let item =
                DraftItem { slot, planned_len: 1, keep, tail, gamma: 6, sampler, constraint };
            if forget {
                worker.forget(slot);
            }
            let items = vec![item];
            worker.send(DraftJob { items, gamma: 6, co_running: false, prefix_pages: None });
            worker.receive().unwrap().chunks.remove(&slot).unwrap()
        };
        let (whole, last) = (chunk(1, 0, &[5, 6, 7], false), chunk(2, 0, &[7], false));
        assert_ne!(whole, last);
        assert_eq!(chunk(1, 2, &[7], false), whole);
        assert_eq!(chunk(1, 2, &[7], true), last);
    }

    #[test]
    fn a_draft_follows_a_text_to_its_own_context_and_with_its_own_tokens() {
        let limits = DraftLimits { context: 3, vocab: 10 };
        assert!(limits.allow(&[9]) && limits.allow(&[0, 9, 9]));
        assert!(!limits.allow(&[0, 0, 0, 0]) && !limits.allow(&[0, 10]));
    }
}
