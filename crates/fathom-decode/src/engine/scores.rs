//! The target's pass of a step, and the scores of a pass: argmax tokens and, if needed, logits.

use fathom_backend::Backend;
use fathom_model::{LogitRows, Logits, Probe, Result, Step, Transformer};

use super::Engine;
use super::slot::Slot;
use super::watch::Watching;
use crate::{Mode, Proposal};

/// The scores of a pass.
pub(super) struct PassScores<B: Backend> {
    /// The most likely token of each row of each sequence: `[sequences][rows]`.
    pub best: Vec<Vec<u32>>,
    /// The logits, unless the most likely tokens are enough.
    pub logits: Option<Logits<B>>,
}

impl<B: Backend> PassScores<B> {
    /// Runs `steps` through `model`. With `argmax_only` no logits are kept. Ids ≥ `limit` are
    /// ignored.
    ///
    /// # Errors
    /// See [`Transformer::forward`].
    pub fn of(
        model: &Transformer<B>,
        steps: &mut [Step<'_, B>],
        probe: Option<&mut dyn Probe>,
        argmax_only: bool,
        limit: usize,
    ) -> Result<PassScores<B>> {
        if argmax_only {
            let best = model.forward_argmax(steps, limit, probe)?;
            return Ok(PassScores { best, logits: None });
        }
        let logits = model.forward(steps, probe)?;
        Ok(PassScores { best: logits.argmax(model.backend(), limit)?, logits: Some(logits) })
    }
}

impl<B: Backend> Engine<B> {
    /// Runs the target over the last committed token and the following drafts and guesses of every
    /// running request. Returns the scores and the seconds of the pass.
    pub(super) fn score(
        &mut self,
        mode: Mode,
        chunks: Option<&[Proposal]>,
    ) -> Result<(PassScores<B>, f64)> {
        let backend = self.target.backend();
        let start = backend.mark()?;
        let argmax_only = !self.running.iter().any(Slot::reads_logits);
        let feeds: Vec<Vec<u32>> = match chunks {
            Some(chunks) => {
                self.running.iter().zip(chunks).map(|(slot, chunk)| slot.feed(chunk)).collect()
            }
            None => self.running.iter().map(Slot::feed_pending).collect(),
        };
        let (mut steps, mut watchers) = (Vec::new(), Vec::new());
        let mut failures = Vec::new();
        for (slot, tokens) in self.running.iter_mut().zip(&feeds) {
            let Slot { sequence, watcher, failure, .. } = slot;
            let Some(sequence) = sequence else { continue };
            steps.push(Step { sequence, tokens, logits: LogitRows::All });
            watchers.push(watcher.as_deref_mut());
            failures.push(failure);
        }
        let mut watching = Watching::new(watchers);
        let probe = watching.is_wanted().then_some(&mut watching as &mut dyn Probe);
        let vocab = self.options.vocab;
        let scores = PassScores::of(&self.target, &mut steps, probe, argmax_only, vocab)?;
        for (failure, error) in failures.into_iter().zip(watching.errors) {
            *failure = failure.take().or(error);
        }
        let seconds = backend.seconds_between(&start, &backend.mark()?)?;
        let rows = feeds.iter().map(Vec::len).sum::<usize>();
        for (slot, tokens) in self.running.iter_mut().zip(&feeds) {
            slot.target_seconds += seconds * tokens.len() as f64 / rows as f64;
        }
        self.metrics.target_rows += rows;
        self.metrics.verify_seconds += seconds;
        self.metrics.pass_cost.record(rows as f64, seconds);
        self.metrics.kv_pages = self.metrics.kv_pages.max(self.pages_held());
        self.planner.speeds.record_target(feeds.len(), mode.is_parallel(), rows, seconds);
        Ok((scores, seconds))
    }
}
