//! Generation of text from prompts.

use std::mem::ManuallyDrop;
use std::process;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fathom_lm::fathom_decode::GammaLimits;
use fathom_lm::{
    Error, Finish, Gamma, GenerateOptions, Input, Mode, ModeChoice, Pair, Result, RowWatcher, Site,
    TextEngine, TextRequest, TextsInProgress, TextsUpdate, available_cores, placement,
};
use numpy::{PyArray1, PyArrayDyn, PyReadonlyArray1};
use pyo3::prelude::*;
use serde_json::{Value, json};

use crate::encode::{self, PyEncoded};
use crate::model::NativeModel;
use crate::options::LoadOptions;
use crate::progress::Reporter;
use crate::remarks::{self, PyRemark};
use crate::sampling::parse_params;
use crate::signals::Signals;
use crate::{arrays, errors};

/// How long to wait for an update before signals are checked.
const PAUSE: Duration = Duration::from_millis(25);

/// An engine with a thread of its own, and the process that has that thread.
#[pyclass(frozen, name = "Generator", module = "fathom_lm._native")]
pub struct NativeGenerator {
    /// `None` once closed.
    engine: ManuallyDrop<Mutex<Option<TextEngine>>>,
    process: u32,
}

/// A prompt's ids, its sampling parameters as JSON, and the number of the sample.
type PyRequest<'py> = (PyReadonlyArray1<'py, i64>, String, u64);
/// Number of the request, new text, new ids, finish reason and MAT of a finished text, and the
/// settled positions (start, end) with their rows, `[positions, width]` for each place.
type PyUpdate<'py> = (
    usize,
    String,
    Bound<'py, PyArray1<i64>>,
    Option<(&'static str, f64)>,
    (usize, usize),
    Vec<Bound<'py, PyArrayDyn<f32>>>,
);

/// The engine's options from Python's arguments.
fn options(
    mode: &str,
    gamma: Option<usize>,
    batch_size: usize,
    kv_pages: Option<usize>,
    threads: (Option<usize>, Option<usize>),
    drafts: bool,
) -> Result<GenerateOptions> {
    let mode = match mode {
        "auto" if drafts => ModeChoice::Auto,
        "auto" => ModeChoice::Always(Mode::Ar),
        name => ModeChoice::Always(name.parse().map_err(|_| {
            Error::Request(format!(
                "mode is `{name}`; expected `auto`, `ar`, `sd`, `pearl` or \
                 `suffix`"
            ))
        })?),
    };
    Ok(GenerateOptions {
        mode: Some(mode),
        gamma: gamma.map_or(Gamma::Adaptive(GammaLimits::default()), Gamma::Fixed),
        batch_size,
        kv_pages,
        prefix_cache: false,
        placement: placement(available_cores(), threads.0, threads.1, false),
    })
}

/// Starts an engine, with the remarks about the pair's files.
fn start(
    pair: Pair,
    options: &GenerateOptions,
    reporter: &mut Reporter,
) -> Result<(TextEngine, Vec<fathom_lm::Remark>)> {
    pair.engine_options(options).validate()?;
    let remarks = pair.remarks().collect();
    Ok((pair.spawn(options, reporter)?, remarks))
}

#[pymethods]
impl NativeGenerator {
    /// A generator of loaded models.
    #[staticmethod]
    #[pyo3(signature = (target, draft, *, mode, gamma, batch_size, kv_pages))]
    fn of_models(
        py: Python<'_>,
        target: &NativeModel,
        draft: Option<&NativeModel>,
        mode: &str,
        gamma: Option<usize>,
        batch_size: usize,
        kv_pages: Option<usize>,
    ) -> PyResult<NativeGenerator> {
        target.refuse_in_fork(py)?;
        draft.map_or(Ok(()), |draft| draft.refuse_in_fork(py))?;
        let (target, draft) = (&*target.model, draft.map(|draft| &*draft.model));
        let mut reporter = Reporter::new(None);
        let started = py.detach(|| {
            let options =
                options(mode, gamma, batch_size, kv_pages, (None, None), draft.is_some())?;
            start(Pair::of(target, draft)?, &options, &mut reporter)
        });
        reporter.result(py, started).map(|(engine, _)| Self::new(engine))
    }

    /// A generator of checkpoints, which share the cores, and the remarks about their files.
    #[staticmethod]
    #[pyo3(signature = (
        target, draft, *, mode, gamma, batch_size, kv_pages, options, adapter, draft_adapter,
        target_threads, draft_threads
    ))]
    #[expect(clippy::too_many_arguments, reason = "they are keywords in Python")]
    fn of_paths(
        py: Python<'_>,
        target: &str,
        draft: Option<&str>,
        mode: &str,
        gamma: Option<usize>,
        batch_size: usize,
        kv_pages: Option<usize>,
        options: LoadOptions,
        adapter: Option<&str>,
        draft_adapter: Option<&str>,
        target_threads: Option<usize>,
        draft_threads: Option<usize>,
    ) -> PyResult<(NativeGenerator, Vec<PyRemark>)> {
        let mut reporter = Reporter::new(None);
        let started = py.detach(|| {
            let threads = (target_threads, draft_threads);
            let engine =
                self::options(mode, gamma, batch_size, kv_pages, threads, draft.is_some())?;
            let draft = draft.map(|draft| options.model(draft, draft_adapter)).transpose()?;
            let pair = Pair::open(options.model(target, adapter)?, draft)?;
            start(pair, &engine, &mut reporter)
        });
        let (engine, found) = reporter.result(py, started)?;
        Ok((Self::new(engine), remarks::to_python(&found)))
    }

    /// Whether prompts are rendered by a chat template.
    fn has_chat_template(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.engine(py)?.pair().target().text().template.is_some())
    }

    /// The target's number of layers.
    fn layers(&self, py: Python<'_>) -> PyResult<usize> {
        Ok(self.engine(py)?.pair().target().config().layers)
    }

    /// The width of each place's rows and, for rows of heads, the number of heads.
    fn widths(&self, py: Python<'_>, places: Vec<String>) -> PyResult<Vec<(usize, Option<usize>)>> {
        let engine = self.engine(py)?;
        let config = engine.pair().target().config();
        let width = |name: &String| {
            let (site, _) = Site::parse(name)?;
            Ok(match site.layout(config) {
                fathom_lm::fathom_model::Layout::Rows { width } => (width, None),
                fathom_lm::fathom_model::Layout::Heads { heads, head_dim } => {
                    (heads * head_dim, Some(heads))
                }
                _ => (0, None),
            })
        };
        let widths = places.iter().map(width).collect::<Result<_>>();
        widths.map_err(|error| errors::to_python(py, &error))
    }

    /// The ids of a text, rendered by the chat template unless `bare`.
    fn encode_text<'py>(
        &self,
        py: Python<'py>,
        text: String,
        bare: bool,
    ) -> PyResult<PyEncoded<'py>> {
        self.encode(py, || Ok(if bare { Input::Bare(text) } else { Input::from(text) }))
    }

    /// The ids of messages, which are JSON, as are the template's variables.
    #[pyo3(signature = (messages, variables=None))]
    fn encode_messages<'py>(
        &self,
        py: Python<'py>,
        messages: &str,
        variables: Option<&str>,
    ) -> PyResult<PyEncoded<'py>> {
        self.encode(py, || encode::conversation(messages, variables))
    }

    /// Token ids, after checking them.
    fn encode_ids<'py>(
        &self,
        py: Python<'py>,
        ids: PyReadonlyArray1<'py, i64>,
    ) -> PyResult<PyEncoded<'py>> {
        let ids = encode::ids(&ids).map_err(|error| errors::to_python(py, &error))?;
        self.encode(py, || Ok(Input::from(ids)))
    }

    /// The text of each token.
    fn tokens(&self, py: Python<'_>, ids: PyReadonlyArray1<'_, i64>) -> PyResult<Vec<String>> {
        let ids = encode::ids(&ids).map_err(|error| errors::to_python(py, &error))?;
        let engine = self.engine(py)?;
        let text = engine.pair().target().text();
        let token = |id| text.token_text(id).unwrap_or_else(|| format!("<id {id}>"));
        Ok(ids.into_iter().map(token).collect())
    }

    /// Starts to generate texts; their updates include the rows at `places`.
    fn stream(
        &self,
        py: Python<'_>,
        requests: Vec<PyRequest<'_>>,
        places: Vec<String>,
    ) -> PyResult<NativeTexts> {
        let engine = self.engine(py)?;
        let requests = || -> Result<Vec<TextRequest>> {
            let place = |name: &String| {
                let (site, layer) = Site::parse(name)?;
                Ok((site, layer.unwrap_or(0)))
            };
            let places = places.iter().map(place).collect::<Result<Vec<_>>>()?;
            let request = |(ids, params, sample): &PyRequest<'_>| {
                let params = parse_params(params)?;
                params.validate()?;
                params.validate_ids(engine.pair().vocab())?;
                let watcher = (!places.is_empty()).then(|| RowWatcher::new(&places));
                let (ids, watcher) = (encode::ids(ids)?, watcher.transpose()?);
                Ok(TextRequest { ids, params, sample: *sample, watcher })
            };
            requests.iter().map(request).collect()
        };
        let requests = requests().map_err(|error| errors::to_python(py, &error))?;
        let texts = py.detach(|| engine.submit_all(requests));
        // Without the GIL: dropping the last handle waits for the engine's thread.
        py.detach(|| drop(engine));
        let texts = texts.map_err(|error| errors::to_python(py, &error))?;
        Ok(NativeTexts { texts: Mutex::new(Some(texts)), process: self.process })
    }

    /// Counts and seconds of the engine, as JSON.
    fn metrics(&self, py: Python<'_>) -> PyResult<String> {
        let metrics = self.engine(py)?.handle().metrics();
        let engine = &metrics.engine;
        let steps = engine.steps.iter().map(|(mode, steps)| (mode.to_string(), json!(steps)));
        let json = json!({
            "submitted": metrics.submitted,
            "waiting": metrics.waiting,
            "prefilling": metrics.prefilling,
            "running": metrics.running,
            "finished": metrics.finished,
            "cancelled": metrics.cancelled,
            "failed": metrics.failed,
            "tokens": engine.tokens,
            "steps": Value::Object(steps.collect()),
            "wasted_drafts": engine.wasted,
            "bubbles": engine.bubbles,
            "rejections": engine.branches.rejections,
            "branches_taken": engine.branches.taken,
            "acceptance": engine.acceptance.rate(),
            "acceptance_by_position": engine.acceptance.by_position(),
            "gamma": engine.gamma,
            "preemptions": engine.preemptions,
            "kv_pages": engine.kv_pages,
            "prefill_seconds": engine.prefill_seconds,
            "target_seconds": engine.verify_seconds,
            "draft_seconds": engine.draft_seconds,
            "wait_seconds": engine.wait_seconds,
            "judge_seconds": engine.judge_seconds,
        });
        Ok(json.to_string())
    }

    /// Cancels unfinished texts and ends the engine's threads.
    fn close(&self, py: Python<'_>) {
        if process::id() == self.process {
            py.detach(|| {
                // Taken before it is dropped, so that the lock is not held while threads end.
                let engine = lock(&self.engine).take();
                drop(engine);
            });
        }
    }
}

impl NativeGenerator {
    fn new(engine: TextEngine) -> NativeGenerator {
        let engine = ManuallyDrop::new(Mutex::new(Some(engine)));
        NativeGenerator { engine, process: process::id() }
    }

    /// A handle on the engine.
    fn engine(&self, py: Python<'_>) -> PyResult<TextEngine> {
        refuse_in_fork(py, self.process)?;
        let closed = || errors::raise(py, "EngineError", "the generator was closed".to_owned());
        lock(&self.engine).clone().ok_or_else(closed)
    }

    fn encode<'py>(
        &self,
        py: Python<'py>,
        input: impl FnOnce() -> Result<Input> + Send,
    ) -> PyResult<PyEncoded<'py>> {
        let engine = self.engine(py)?;
        let encoded = py.detach(|| engine.encode(input()?));
        let encoded = encoded.map_err(|error| errors::to_python(py, &error))?;
        Ok(encode::to_python(py, encoded))
    }
}

impl Drop for NativeGenerator {
    fn drop(&mut self) {
        // A forked child has none of the threads that dropping the engine waits for.
        if process::id() == self.process {
            // SAFETY: dropped only here, and not used afterwards.
            let engine = unsafe { ManuallyDrop::take(&mut self.engine) };
            Python::attach(|py| py.detach(|| drop(engine)));
        }
    }
}

/// Texts in progress.
#[pyclass(frozen, name = "Texts", module = "fathom_lm._native")]
pub struct NativeTexts {
    /// `None` once cancelled.
    texts: Mutex<Option<TextsInProgress>>,
    process: u32,
}

#[pymethods]
impl NativeTexts {
    /// Waits for the next update; `None` after the last.
    fn next<'py>(&self, py: Python<'py>) -> PyResult<Option<PyUpdate<'py>>> {
        refuse_in_fork(py, self.process)?;
        let mut signals = Signals::new();
        loop {
            let waited = py.detach(|| match &mut *lock(&self.texts) {
                Some(texts) if texts.pending() > 0 => texts.next_timeout(PAUSE).map(Some),
                _ => Ok(None),
            });
            match waited.map_err(|error| errors::to_python(py, &error))? {
                None => return Ok(None),
                Some(Some(update)) => return to_python(py, update).map(Some),
                Some(None) => signals.check()?,
            }
        }
    }

    /// Cancels the unfinished texts.
    fn cancel(&self, py: Python<'_>) {
        py.detach(|| drop(lock(&self.texts).take()));
    }
}

fn refuse_in_fork(py: Python<'_>, process: u32) -> PyResult<()> {
    errors::refuse_in_fork(py, process, "the generator was made", "make one here")
}

fn to_python(py: Python<'_>, update: TextsUpdate) -> PyResult<PyUpdate<'_>> {
    let TextsUpdate { request, text, settled, rows } = update;
    let done = text.done.map(|done| {
        let reason = match done.finish {
            Finish::Eos => "eos",
            Finish::Stop | Finish::StopToken => "stop",
            Finish::Length => "length",
        };
        (reason, done.mat)
    });
    let rows = rows.into_iter().map(|values| {
        let width = values.len().checked_div(settled.len()).unwrap_or(0);
        arrays::to_numpy(py, fathom_lm::Array { shape: vec![settled.len(), width], values })
    });
    let ids = arrays::ids_to_numpy(py, &text.tokens);
    let rows = rows.collect::<PyResult<_>>()?;
    Ok((request, text.text, ids, done, (settled.start, settled.end), rows))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while the lock was held left no half-changed value.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
