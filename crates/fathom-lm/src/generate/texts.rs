//! Several texts at once, each as it comes.

use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use fathom_decode::engine::{Canceller, Request, RowWatcher, Update, WatchedRows};
use fathom_decode::generation::{TextUpdate, UpdateDecoder};
use fathom_decode::{SamplingParams, TextStream};
use fathom_model::{Error, Result};

use super::TextEngine;

/// A text that is asked for.
pub struct TextRequest {
    /// The prompt, as token ids.
    pub ids: Vec<u32>,
    /// How tokens are chosen and where the text ends.
    pub params: SamplingParams,
    /// Which of the texts of this prompt and seed is meant.
    pub sample: u64,
    /// Keeps what the target computes of it.
    pub watcher: Option<RowWatcher>,
}

/// Texts that are under way, and what they get, whoever gets something first. Dropping it cancels
/// those that have not ended.
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
/// assert_eq!(seen[1], engine.encode("What is 6 times 7?")?.ids.len() + 2); // all but the last token
/// # Ok::<(), fathom_lm::Error>(())
/// ```
pub struct TextsUnderWay {
    updates: Receiver<Told>,
    /// `None` for those that have ended.
    open: Vec<Option<Open>>,
}

/// What one of several texts got.
pub struct TextsUpdate {
    /// Which, in the order in which they were asked for.
    pub request: usize,
    /// What it got.
    pub text: TextUpdate,
    /// Positions of prompt and text that the target has computed since the update before; those of
    /// drafts that were rejected are not among them.
    pub settled: std::ops::Range<usize>,
    /// Their rows, `[settled, width]` of each place that is watched.
    pub rows: Vec<Vec<f32>>,
}

/// A text that has not ended.
struct Open {
    decoder: UpdateDecoder,
    canceller: Canceller,
}

/// What the engine's thread says of a request.
struct Told {
    request: usize,
    update: Result<Update>,
    settled: std::ops::Range<usize>,
    rows: Vec<Vec<f32>>,
}

impl TextEngine {
    /// Submits several requests: all of them, or none where one is refused.
    ///
    /// # Errors
    /// As [`TextEngine::submit_ids`], of the first request that is refused.
    pub fn submit_all(&self, requests: Vec<TextRequest>) -> Result<TextsUnderWay> {
        let several = requests.len() > 1;
        let (outbox, updates) = channel();
        let mut texts = TextsUnderWay { updates, open: Vec::with_capacity(requests.len()) };
        for (number, request) in requests.into_iter().enumerate() {
            let TextRequest { ids, params, sample, watcher } = request;
            let tokenizer = self.pair().tokenizer();
            let decoder = UpdateDecoder::new(tokenizer, &params);
            let mut settling = Settling {
                rows: watcher.as_ref().map(RowWatcher::rows),
                known: ids.len(),
                settled: 0,
            };
            let stop = TextStream::of_request(tokenizer, &params).into_stop_check();
            let eos = self.pair().eos().into();
            let watcher = watcher.map(|watcher| Box::new(watcher) as Box<_>);
            let request = Request { id: sample, prompt: ids, params, eos, stop, watcher };
            let outbox = outbox.clone();
            let sink = move |update: Result<Update>| {
                let (settled, rows) = settling.take(update.as_ref().ok());
                outbox.send(Told { request: number, update, settled, rows }).is_ok()
            };
            let canceller = self.handle().submit_with(request, Box::new(sink)).map_err(
                |error| match error {
                    Error::Request(problem) if several => {
                        Error::Request(format!("prompt {number}: {problem}"))
                    }
                    other => other,
                },
            )?;
            texts.open.push(Some(Open { decoder, canceller }));
        }
        Ok(texts)
    }
}

impl TextsUnderWay {
    /// Texts that have not ended.
    pub fn pending(&self) -> usize {
        self.open.iter().flatten().count()
    }

    /// What a text got, if one gets something within `timeout`; `None` if not, and after the last.
    ///
    /// # Errors
    /// What a request failed on, or an engine that has stopped: the others are cancelled then.
    pub fn next_timeout(&mut self, timeout: Duration) -> Result<Option<TextsUpdate>> {
        if self.pending() == 0 {
            return Ok(None);
        }
        let update = match self.updates.recv_timeout(timeout) {
            Ok(told) => self.decode(told),
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

    /// Ends all texts where they are. No update comes any more.
    pub fn cancel(&mut self) {
        self.open.drain(..).flatten().for_each(|open| open.canceller.cancel());
    }

    fn decode(&mut self, told: Told) -> Result<Option<TextsUpdate>> {
        let Told { request, update, settled, rows } = told;
        let Some(Some(open)) = self.open.get_mut(request) else { return Ok(None) };
        let text = open.decoder.take(update?)?;
        if text.done.is_some() {
            self.open[request] = None;
        }
        Ok(Some(TextsUpdate { request, text, settled, rows }))
    }
}

impl Drop for TextsUnderWay {
    fn drop(&mut self) {
        self.cancel();
    }
}

/// Follows what is certain of a watched text.
struct Settling {
    rows: Option<WatchedRows>,
    /// Tokens of prompt and text so far.
    known: usize,
    /// Positions told so far.
    settled: usize,
}

impl Settling {
    /// What has become certain with an update. It is asked for on the engine's thread, between
    /// steps, when no row is of a draft that may yet be rejected.
    fn take(&mut self, update: Option<&Update>) -> (std::ops::Range<usize>, Vec<Vec<f32>>) {
        let from = self.settled;
        let (Some(rows), Some(update)) = (&self.rows, update) else { return (from..from, vec![]) };
        self.known += update.tokens.len();
        // Fewer than before where caches were full and the text is computed once more.
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
