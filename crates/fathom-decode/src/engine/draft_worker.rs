//! The draft model, on a thread of its own.

use std::any::Any;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use fathom_backend::Backend;
use fathom_model::{
    Error, LogitRows, Model, PREFILL_CHUNK, Result, Sequence, SequenceOptions, Step,
};

use super::scores::Scores;
use crate::{Drafted, History, Proposal, Sampler};

/// Tokens a sequence is behind by before it drafts, after a step that accepted everything.
const RIDES_ALONG: usize = 2;

/// What the draft is to do for one request: forget all tokens from `keep` on, take in `tail`, which
/// is not empty, and draft `gamma` tokens after it (none: just take in).
pub(super) struct DraftItem {
    pub slot: u64,
    /// Length of the prompt.
    pub planned_len: usize,
    pub keep: usize,
    pub tail: Vec<u32>,
    pub gamma: usize,
    pub sampler: Arc<Sampler>,
}

/// One round of work.
pub(super) struct DraftJob {
    pub items: Vec<DraftItem>,
    /// The longest chunk among the items.
    pub gamma: usize,
    /// Whether the target is at work at the same time.
    pub beside: bool,
}

/// What a draft can follow. A text beyond it goes on without.
#[derive(Clone, Copy, Debug)]
pub(super) struct DraftLimits {
    /// The draft's context: the most tokens it is fed.
    pub context: usize,
    /// Ids from here on it cannot be fed, and never drafts.
    pub vocab: usize,
}

impl DraftLimits {
    /// Whether a token may be drafted after `text`.
    pub fn allow(self, text: &[u32]) -> bool {
        text.len() <= self.context && text.iter().all(|&token| (token as usize) < self.vocab)
    }
}

/// What the thread is told. Only a job is answered.
enum Order {
    Work(DraftJob),
    /// A sequence that is no longer needed.
    Forget(u64),
}

/// What came of it.
pub(super) struct DraftReport {
    /// Chunks by slot.
    pub chunks: HashMap<u64, Proposal>,
    /// Of all of it.
    pub seconds: f64,
    /// Of drafting alone: not of taking in what a sequence was behind by.
    pub drafting: f64,
}

/// A handle on the thread; dropping it ends the thread.
pub(super) struct DraftWorker {
    limits: DraftLimits,
    orders: Option<Sender<Order>>,
    reports: Receiver<Result<DraftReport>>,
    thread: Option<JoinHandle<()>>,
}

impl DraftWorker {
    /// Ids from `vocab` on are padding of the target's logits.
    pub fn spawn<B: Backend>(model: Arc<Model<B>>, vocab: usize) -> Result<DraftWorker> {
        let config = model.config();
        let limits =
            DraftLimits { context: config.max_position_embeddings, vocab: vocab.min(config.vocab) };
        let (orders, inbox) = channel();
        let (outbox, reports) = channel();
        let mut draft = Draft { model, vocab: limits.vocab, known: HashMap::new() };
        let run = move || {
            draft.model.backend().attach_thread();
            for order in inbox {
                let job = match order {
                    Order::Work(job) => job,
                    Order::Forget(slot) => {
                        draft.known.remove(&slot);
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
        Ok(DraftWorker { limits, orders: Some(orders), reports, thread: Some(thread) })
    }

    /// What the draft can follow.
    pub fn limits(&self) -> DraftLimits {
        self.limits
    }

    /// Sets the draft to work. A draft that has stopped says so in [`DraftWorker::receive`].
    pub fn send(&self, job: DraftJob) {
        self.order(Order::Work(job));
    }

    /// Gives up a sequence, where there is one.
    pub fn forget(&self, slot: u64) {
        self.order(Order::Forget(slot));
    }

    fn order(&self, order: Order) {
        if let Some(orders) = &self.orders {
            // Fails only where the thread has ended; its reason is in `receive`.
            drop(orders.send(order));
        }
    }

    /// Waits for the report on the job sent last.
    pub fn receive(&mut self) -> Result<DraftReport> {
        match self.reports.recv() {
            Ok(report) => report,
            Err(_) => Err(Error::Request(format!("the draft stopped: {}", self.last_words()))),
        }
    }

    fn last_words(&mut self) -> String {
        match self.thread.take().map(JoinHandle::join) {
            Some(Err(panic)) => panic_message(panic.as_ref()),
            _ => "it failed before".to_owned(),
        }
    }
}

impl Drop for DraftWorker {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            // A panic was or would have been told by `receive`.
            drop(thread.join());
        }
    }
}

/// What a thread that panicked said.
pub(super) fn panic_message(panic: &(dyn Any + Send)) -> String {
    let message = panic.downcast_ref::<&str>().map(|message| (*message).to_owned());
    message.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or("a panic".to_owned())
}

struct Draft<B: Backend> {
    model: Arc<Model<B>>,
    vocab: usize,
    known: HashMap<u64, Known<B>>,
}

/// What is kept of a request between jobs.
struct Known<B: Backend> {
    sequence: Sequence<B>,
    /// The tokens of the sequence and what was drafted after them, counted, where logits are
    /// processed by it.
    history: Option<History>,
}

/// A request during one job.
struct Drafting<B: Backend> {
    item: DraftItem,
    sequence: Sequence<B>,
    history: Option<History>,
    chunk: Proposal,
}

impl<B: Backend> Draft<B> {
    fn work(&mut self, job: DraftJob) -> Result<DraftReport> {
        let start = self.model.backend().mark()?;
        self.model.backend().set_shared(job.beside);
        let mut all =
            job.items.into_iter().map(|item| self.begin(item)).collect::<Result<Vec<_>>>()?;
        self.take_in(&mut all)?;
        let caught_up = self.model.backend().mark()?;
        for round in 0..job.gamma {
            let drafting: Vec<_> = all.iter_mut().filter(|d| d.item.gamma > round).collect();
            if drafting.is_empty() {
                break;
            }
            self.draft_one(drafting)?;
        }
        let chunks = all.into_iter().map(|Drafting { item, sequence, history, chunk }| {
            self.known.insert(item.slot, Known { sequence, history });
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

    /// Rolls a request's sequence back to what holds.
    fn begin(&mut self, item: DraftItem) -> Result<Drafting<B>> {
        let options = SequenceOptions { planned_len: Some(item.planned_len), ..Default::default() };
        let known = self.known.remove(&item.slot);
        let Known { mut sequence, mut history } = known.unwrap_or_else(|| Known {
            sequence: self.model.new_sequence(options),
            history: item.sampler.history(item.planned_len),
        });
        self.model.truncate(&mut sequence, item.keep)?;
        if let Some(history) = &mut history {
            history.follow(item.keep, &item.tail);
        }
        Ok(Drafting { item, sequence, history, chunk: Proposal::new() })
    }

    /// Takes in what the sequences are behind by, all in one pass where it is a chunk of prefill or
    /// less. What a step usually adds rides along with the first drafted token's pass.
    fn take_in(&self, all: &mut [Drafting<B>]) -> Result<()> {
        let mut behind = Vec::new();
        for d in all.iter_mut() {
            let alone = match d.item.gamma {
                0 => d.item.tail.len(),
                _ if d.item.tail.len() > RIDES_ALONG => d.item.tail.len() - 1,
                _ => 0,
            };
            behind.push(d.item.tail.drain(..alone).collect::<Vec<u32>>());
        }
        if behind.iter().map(Vec::len).sum::<usize>() > PREFILL_CHUNK {
            for (d, tokens) in all.iter_mut().zip(&behind) {
                self.model.prefill(&mut d.sequence, tokens, PREFILL_CHUNK, None, &mut |_| {})?;
            }
            return Ok(());
        }
        let with_tokens = all.iter_mut().zip(&behind).filter(|(_, tokens)| !tokens.is_empty());
        let mut steps: Vec<Step<'_, B>> = with_tokens
            .map(|(d, tokens)| Step { sequence: &mut d.sequence, tokens, logits: LogitRows::None })
            .collect();
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
            .map(|(d, tokens)| Step { sequence: &mut d.sequence, tokens, logits: LogitRows::Last })
            .collect();
        let scores = Scores::of(&self.model, &mut steps, None, argmax_only, self.vocab)?;
        for (i, d) in drafting.into_iter().enumerate() {
            let drafted = match (&scores.logits, scores.best[i].first()) {
                (Some(all), _) if !d.takes_argmax() => {
                    let Ok(drafted) = d.draft(all.step(self.model.backend(), i)?) else {
                        // No numbers: it has nothing to propose here, which is no reason for the
                        // text to end.
                        d.item.gamma = 0;
                        continue;
                    };
                    drafted
                }
                (_, Some(&token)) => Drafted { token, q: None },
                (_, None) => continue,
            };
            if let Some(history) = &mut d.history {
                history.push(drafted.token);
            }
            d.chunk.push(drafted);
        }
        Ok(())
    }
}

impl<B: Backend> Drafting<B> {
    /// Whether the next token is the most likely one of the draft's own logits.
    fn takes_argmax(&self) -> bool {
        let generated = self.history.as_ref().map_or(0, History::generated);
        self.item.sampler.takes_argmax(generated)
    }

    /// The next token, from the draft's logits after all that came before it.
    fn draft(&self, mut logits: Vec<f32>) -> Result<Drafted> {
        if let Some(history) = &self.history {
            self.item.sampler.process(&mut logits, history);
        }
        self.item.sampler.draft(&logits, self.sequence.len())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use fathom_kernels::{Cpu, CpuOptions};

    use super::*;
    use crate::SamplingParams;

    /// A draft that fails says why, and then that it is gone; nothing waits for ever.
    #[test]
    fn a_draft_that_fails_ends_with_its_error() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/golden/qwen2");
        let options = CpuOptions { threads: Some(1), ..CpuOptions::default() };
        let model = Model::load(&dir, Cpu::new(options).unwrap()).unwrap();
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
            };
            DraftJob { items: vec![item], gamma: 2, beside: false }
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

    /// What was forgotten is gone: a job that builds on it finds only what it brings itself.
    #[test]
    fn a_forgotten_sequence_is_gone() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/golden/qwen2");
        let options = CpuOptions { threads: Some(1), ..CpuOptions::default() };
        let model = Model::load(&dir, Cpu::new(options).unwrap()).unwrap();
        let vocab = model.config().vocab;
        let sampler = Arc::new(Sampler::new(SamplingParams::default(), 0, vocab).unwrap());
        let mut worker = DraftWorker::spawn(model.into(), vocab).unwrap();
        let mut chunk = |slot, keep, tail: &[u32], forget| {
            let (tail, sampler) = (tail.to_vec(), Arc::clone(&sampler));
            let item = DraftItem { slot, planned_len: 1, keep, tail, gamma: 6, sampler };
            if forget {
                worker.forget(slot);
            }
            worker.send(DraftJob { items: vec![item], gamma: 6, beside: false });
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
