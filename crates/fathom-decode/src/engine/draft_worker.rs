//! The thread of the draft model, and the work it is given.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use fathom_backend::Backend;
use fathom_model::{Error, Result, Transformer};

use super::draft::Draft;
use crate::panics::panic_message;
use crate::{Branch, ConstrainedText, Proposal, Sampler, Verification};

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
    /// The branch of the last job that the text took.
    pub taken: Option<usize>,
    /// `None` except in `forked`.
    pub branching: Option<Branching>,
}

/// The branches to prepare for a text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Branching {
    /// Number of branches, at most.
    pub branches: usize,
    /// Length of the text. Pending drafts follow it.
    pub text_len: usize,
    /// How the drafts are judged.
    pub verification: Verification,
}

impl DraftItem {
    /// Rows that the draft computes for it, at most, without branches.
    pub fn rows(&self) -> usize {
        self.tail.len() + self.gamma.saturating_sub(1)
    }

    /// The wanted number of branches.
    pub fn branches(&self) -> usize {
        self.branching.map_or(0, |branching| branching.branches)
    }
}

/// The draft's work of one step or prefill chunk.
pub(super) struct DraftJob {
    pub items: Vec<DraftItem>,
    /// The longest chunk among the items.
    pub gamma: usize,
    /// Whether the target runs at the same time.
    pub co_running: bool,
    /// The maximum number of pages of all caches together, with those of the prefix cache.
    pub pages: usize,
    /// Whether there is a prefix cache.
    pub prefix_cache: bool,
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
    /// The branches considered, by slot: the prepared ones first, in the order of
    /// [`DraftItem::taken`].
    pub branches: HashMap<u64, Vec<Branch>>,
    /// Rows computed by slot, at most.
    pub rows: HashMap<u64, usize>,
    /// Seconds of the whole job.
    pub seconds: f64,
    /// Seconds of drafting, without the catch-up prefill.
    pub drafting: f64,
    /// Of these, the seconds of the rounds that draft branches too.
    pub forked: Option<ForkedRounds>,
}

/// The rounds of a job in which branches are drafted.
#[derive(Clone, Copy, Debug)]
pub(super) struct ForkedRounds {
    /// Rows of a round, at most: one for each text and branch.
    pub rows: usize,
    pub rounds: usize,
    pub seconds: f64,
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
                taken: None,
                branching: None,
            };
            let (items, co_running) = (vec![item], false);
            DraftJob { items, gamma: 2, co_running, pages: 100, prefix_cache: false }
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
            let item = DraftItem {
                slot,
                planned_len: 1,
                keep,
                tail,
                gamma: 6,
                sampler,
                constraint: None,
                taken: None,
                branching: None,
            };
            if forget {
                worker.forget(slot);
            }
            let (items, co_running) = (vec![item], false);
            worker.send(DraftJob { items, gamma: 6, co_running, pages: 100, prefix_cache: false });
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
