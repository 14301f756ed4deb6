//! Several texts generated at once, each streamed.

use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use fathom_decode::engine::{Canceller, Request, RowWatcher, Update, WatchedRows};
use fathom_decode::generation::{TextUpdate, UpdateDecoder};
use fathom_decode::{SamplingParams, TextStream};
use fathom_model::{Error, Result};

use super::TextEngine;

/// A request for one text.
pub struct TextRequest {
    /// The prompt, as token ids.
    pub ids: Vec<u32>,
    /// How tokens are chosen and where the text ends.
    pub params: SamplingParams,
    /// The number of this text among those of the same prompt and seed.
    pub sample: u64,
    /// Records activations of the target for this text.
    pub watcher: Option<RowWatcher>,
}

/// Texts in progress. Updates come in the order in which the engine produces them. Dropping this
/// cancels the texts that have not ended.
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// # use std::time::Duration;
/// # use fathom_lm::{GenerateOptions, Model, Pair, RowWatcher, SamplingParams, Site, TextRequest};
/// # let models = fathom_lm::demo::trained_pair(dir.path())?;
/// let model = Model::load(models.target.display().to_string())?;
/// let engine = Pair::of(&model, None)?.spawn(&GenerateOptions::default(), &mut |_, _| {})?;
/// let request = |prompt: &str, max_tokens| -> fathom_lm::Result<TextRequest> {
///     let params = SamplingParams { max_tokens, ..SamplingParams::default() };
///     let watcher = Some(RowWatcher::new(&[(Site::ResidPost, 0)])?);
///     Ok(TextRequest { ids: engine.encode(prompt)?.ids, params, sample: 0, watcher })
/// };
/// let requests = vec![request("def is_prime(n):", 5)?, request("What is 6 times 7?", 3)?];
/// let mut texts = engine.submit_all(requests)?;
/// let (mut tokens, mut seen) = ([0, 0], [0, 0]);
/// while texts.pending() > 0 {
///     let Some(update) = texts.next_timeout(Duration::from_secs(60))? else { continue };
///     assert_eq!(update.settled.start, seen[update.request], "each position once");
///     tokens[update.request] += update.text.tokens.len();
///     seen[update.request] = update.settled.end;
/// }
/// assert_eq!(tokens, [5, 3]);
/// // The last token of a text is never an input of the target.
/// assert_eq!(seen[1], engine.encode("What is 6 times 7?")?.ids.len() + 2);
/// # Ok::<(), fathom_lm::Error>(())
/// ```
pub struct TextsInProgress {
    updates: Receiver<EngineUpdate>,
    /// One entry per request; `None` once its text has ended.
    running: Vec<Option<RunningText>>,
}

/// An update of one of several texts.
pub struct TextsUpdate {
    /// The index of the request.
    pub request: usize,
    /// The new tokens and text.
    pub text: TextUpdate,
    /// Positions of prompt and text that the target has computed since the previous update, without
    /// those of rejected drafts.
    pub settled: std::ops::Range<usize>,
    /// The watched rows at these positions: `[settled, width]` for each watched place.
    pub rows: Vec<Vec<f32>>,
}

/// A text that has not ended.
struct RunningText {
    decoder: UpdateDecoder,
    canceller: Canceller,
}

/// An update of a request, sent by the engine's thread.
struct EngineUpdate {
    request: usize,
    update: Result<Update>,
    settled: std::ops::Range<usize>,
    rows: Vec<Vec<f32>>,
}

impl TextEngine {
    /// Submits several requests. If one is refused, none runs.
    ///
    /// # Errors
    /// As [`TextEngine::submit_ids`], for the first request that is refused.
    pub fn submit_all(&self, requests: Vec<TextRequest>) -> Result<TextsInProgress> {
        let several = requests.len() > 1;
        let (sender, updates) = channel();
        let mut texts = TextsInProgress { updates, running: Vec::with_capacity(requests.len()) };
        for (number, request) in requests.into_iter().enumerate() {
            let TextRequest { ids, params, sample, watcher } = request;
            let tokenizer = self.pair().tokenizer();
            let decoder = UpdateDecoder::new(tokenizer, &params);
            let mut settled_rows = SettledRows {
                rows: watcher.as_ref().map(RowWatcher::rows),
                known: ids.len(),
                settled: 0,
            };
            let stop = TextStream::of_request(tokenizer, &params).into_stop_check();
            let eos = self.pair().eos().into();
            let watcher = watcher.map(|watcher| Box::new(watcher) as Box<_>);
            let request = Request { stop, watcher, ..Request::new(sample, ids, params, eos) };
            let sender = sender.clone();
            let forward = move |update: Result<Update>| {
                let (settled, rows) = settled_rows.advance(update.as_ref().ok());
                sender.send(EngineUpdate { request: number, update, settled, rows }).is_ok()
            };
            let canceller = self.handle().submit_with(request, Box::new(forward)).map_err(
                |error| match error {
                    Error::Request(problem) if several => {
                        Error::Request(format!("prompt {number}: {problem}"))
                    }
                    other => other,
                },
            )?;
            texts.running.push(Some(RunningText { decoder, canceller }));
        }
        Ok(texts)
    }
}

impl TextsInProgress {
    /// The number of texts that have not ended.
    pub fn pending(&self) -> usize {
        self.running.iter().flatten().count()
    }

    /// The next update of any text. `None` if none comes within `timeout`, or all have ended.
    ///
    /// # Errors
    /// A request that failed, or an engine that has stopped. All other texts are then cancelled.
    pub fn next_timeout(&mut self, timeout: Duration) -> Result<Option<TextsUpdate>> {
        if self.pending() == 0 {
            return Ok(None);
        }
        let update = match self.updates.recv_timeout(timeout) {
            Ok(update) => self.decode(update),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => {
                Err(Error::Stopped("the engine has stopped".to_owned()))
            }
        };
        if update.is_err() {
            self.cancel();
        }
        update
    }

    /// Cancels all texts. No further update comes.
    pub fn cancel(&mut self) {
        self.running.drain(..).flatten().for_each(|text| text.canceller.cancel());
    }

    fn decode(&mut self, update: EngineUpdate) -> Result<Option<TextsUpdate>> {
        let EngineUpdate { request, update, settled, rows } = update;
        let Some(Some(running)) = self.running.get_mut(request) else { return Ok(None) };
        let text = running.decoder.take(update?)?;
        if text.done.is_some() {
            self.running[request] = None;
        }
        Ok(Some(TextsUpdate { request, text, settled, rows }))
    }
}

impl Drop for TextsInProgress {
    fn drop(&mut self) {
        self.cancel();
    }
}

/// Tracks which watched rows of a text are final.
struct SettledRows {
    rows: Option<WatchedRows>,
    /// Tokens of prompt and text so far.
    known: usize,
    /// Positions reported so far.
    settled: usize,
}

impl SettledRows {
    /// The positions that became final with this update, and their rows. Must be called on the
    /// engine's thread between steps, when no row belongs to an unverified draft.
    fn advance(&mut self, update: Option<&Update>) -> (std::ops::Range<usize>, Vec<Vec<f32>>) {
        let from = self.settled;
        let (Some(rows), Some(update)) = (&self.rows, update) else { return (from..from, vec![]) };
        self.known += update.tokens.len();
        // Smaller than before if the text was preempted (caches full) and is being recomputed.
        let positions = rows.positions();
        let end = positions.min(self.known - 1).max(from);
        let values = (0..rows.places().len()).map(|place| {
            let mut values = rows.since(place, from);
            let width = values.len().checked_div(positions.saturating_sub(from)).unwrap_or(0);
            values.truncate((end - from) * width);
            values
        });
        let values = values.collect();
        self.settled = end;
        (from..end, values)
    }
}
