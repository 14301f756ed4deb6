//! Text from prompts.

use std::mem::ManuallyDrop;
use std::process;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fathom_lm::fathom_decode::GammaLimits;
use fathom_lm::fathom_model::{parse_date, parse_template_kwargs};
use fathom_lm::{
    Error, Finish, Gamma, GenerateOptions, Input, Mode, ModeChoice, ModelOptions, Pair,
    PromptOptions, Result, RowWatcher, Site, TextEngine, TextRequest, TextsInProgress, TextsUpdate,
    available_cores, parse_isa, parse_precision, placement,
};
use numpy::{PyArray1, PyArrayDyn, PyReadonlyArray1};
use pyo3::prelude::*;
use serde_json::{Value, json};

use crate::encode::{self, PyEncoded};
use crate::model::NativeModel;
use crate::remarks::{self, PyRemark};
use crate::sampling::parse_params;
use crate::signals::Signals;
use crate::{arrays, errors};

/// How long the GIL is left to others before Python is asked for signals.
const PAUSE: Duration = Duration::from_millis(25);

/// Models at work on a thread of their own, and the process that has that thread.
#[pyclass(frozen, name = "Generator", module = "fathom_lm._native")]
pub struct NativeGenerator {
    /// `None` when closed.
    engine: ManuallyDrop<Mutex<Option<TextEngine>>>,
    process: u32,
}

/// A prompt's ids, its parameters as JSON, and which of the texts of its seed is meant.
type PyRequest<'py> = (PyReadonlyArray1<'py, i64>, String, u64);
/// Which request, text, ids, how it ended (finish reason, MAT), and positions settled with their
/// rows, `[positions, width]` a place.
type PyUpdate<'py> = (
    usize,
    String,
    Bound<'py, PyArray1<i64>>,
    Option<(&'static str, f64)>,
    (usize, usize),
    Vec<Bound<'py, PyArrayDyn<f32>>>,
);

/// How the two decode, as Python says it.
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
            Error::Request(format!("mode is `{name}`; expected `auto`, `ar`, `sd` or `pearl`"))
        })?),
    };
    Ok(GenerateOptions {
        mode: Some(mode),
        gamma: gamma.map_or(Gamma::Adaptive(GammaLimits::default()), Gamma::Fixed),
        batch_size,
        kv_pages,
        placement: placement(available_cores(), threads.0, threads.1, false),
    })
}

fn start(pair: Pair, options: &GenerateOptions) -> Result<(TextEngine, Vec<fathom_lm::Remark>)> {
    pair.engine_options(options).validate()?;
    let remarks = pair.remarks().collect();
    Ok((pair.spawn(options, &mut |_, _| {})?, remarks))
}

#[pymethods]
impl NativeGenerator {
    /// Of models that are loaded.
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
        target.refuse_elsewhere(py)?;
        draft.map_or(Ok(()), |draft| draft.refuse_elsewhere(py))?;
        let (target, draft) = (&*target.model, draft.map(|draft| &*draft.model));
        let engine = py.detach(|| {
            let options =
                options(mode, gamma, batch_size, kv_pages, (None, None), draft.is_some())?;
            start(Pair::of(target, draft)?, &options)
        });
        engine.map(|(engine, _)| Self::new(engine)).map_err(|error| errors::to_python(py, &error))
    }

    /// Of checkpoints, which share out the cores; with what is remarkable about them.
    #[staticmethod]
    #[pyo3(signature = (
        target, draft, *, mode, gamma, batch_size, kv_pages, precision, adapter, draft_adapter,
        chat_template, system, template_kwargs, date, bos, isa, target_threads, draft_threads
    ))]
    #[expect(clippy::too_many_arguments, reason = "they are keywords in Python")]
    fn of_paths(
        py: Python<'_>,
        target: String,
        draft: Option<String>,
        mode: &str,
        gamma: Option<usize>,
        batch_size: usize,
        kv_pages: Option<usize>,
        precision: &str,
        adapter: Option<String>,
        draft_adapter: Option<String>,
        chat_template: bool,
        system: Option<String>,
        template_kwargs: Option<&str>,
        date: Option<&str>,
        bos: Option<bool>,
        isa: Option<&str>,
        target_threads: Option<usize>,
        draft_threads: Option<usize>,
    ) -> PyResult<(NativeGenerator, Vec<PyRemark>)> {
        let engine = py.detach(|| {
            let template_kwargs =
                template_kwargs.map(parse_template_kwargs).transpose()?.unwrap_or_default();
            let date = date.map(parse_date).transpose()?;
            let prompts = PromptOptions { system, template_kwargs, date, bos };
            let model = |path: String, adapter: Option<String>| -> Result<ModelOptions> {
                let mut options = ModelOptions::new(path).precision(parse_precision(precision)?);
                if let Some(adapter) = adapter {
                    options = options.adapter(adapter);
                }
                match isa {
                    Some(isa) => Ok(options.isa(parse_isa(isa)?)),
                    None => Ok(options),
                }
            };
            let threads = (target_threads, draft_threads);
            let options = options(mode, gamma, batch_size, kv_pages, threads, draft.is_some())?;
            let target = model(target, adapter)?;
            let target = target.chat_template(chat_template).prompt_options(prompts);
            let draft = draft.map(|draft| model(draft, draft_adapter)).transpose()?;
            start(Pair::open(target, draft)?, &options)
        });
        let (engine, found) = engine.map_err(|error| errors::to_python(py, &error))?;
        Ok((Self::new(engine), remarks::to_python(&found)))
    }

    /// Whether prompts go through a chat template.
    fn has_chat_template(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.engine(py)?.pair().target().text().template.is_some())
    }

    /// Layers of the target.
    fn layers(&self, py: Python<'_>) -> PyResult<usize> {
        Ok(self.engine(py)?.pair().target().config().layers)
    }

    /// For each place the width of its rows and, where they are of heads, how many heads those are.
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

    /// A text as the target is given it; through its chat template, unless `bare`.
    fn encode_text<'py>(
        &self,
        py: Python<'py>,
        text: String,
        bare: bool,
    ) -> PyResult<PyEncoded<'py>> {
        self.encode(py, || Ok(if bare { Input::Bare(text) } else { Input::from(text) }))
    }

    /// Messages, as JSON, with what else the chat template is given.
    #[pyo3(signature = (messages, variables=None))]
    fn encode_messages<'py>(
        &self,
        py: Python<'py>,
        messages: &str,
        variables: Option<&str>,
    ) -> PyResult<PyEncoded<'py>> {
        self.encode(py, || encode::conversation(messages, variables))
    }

    /// Token ids, checked.
    fn encode_ids<'py>(
        &self,
        py: Python<'py>,
        ids: PyReadonlyArray1<'py, i64>,
    ) -> PyResult<PyEncoded<'py>> {
        let ids = encode::ids(&ids).map_err(|error| errors::to_python(py, &error))?;
        self.encode(py, || Ok(Input::from(ids)))
    }

    /// What each token stands for.
    fn tokens(&self, py: Python<'_>, ids: PyReadonlyArray1<'_, i64>) -> PyResult<Vec<String>> {
        let ids = encode::ids(&ids).map_err(|error| errors::to_python(py, &error))?;
        let engine = self.engine(py)?;
        let text = engine.pair().target().text();
        let token = |id| text.token_text(id).unwrap_or_else(|| format!("<id {id}>"));
        Ok(ids.into_iter().map(token).collect())
    }

    /// Begins texts, watched at `places`.
    fn stream(
        &self,
        py: Python<'_>,
        requests: Vec<PyRequest<'_>>,
        places: Vec<String>,
    ) -> PyResult<NativeTexts> {
        let engine = self.engine(py)?;
        let asked = || -> Result<Vec<TextRequest>> {
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
        let asked = asked().map_err(|error| errors::to_python(py, &error))?;
        let texts = py.detach(|| engine.submit_all(asked));
        // It may be the last handle by now, which waits for the engine's thread.
        py.detach(|| drop(engine));
        let texts = texts.map_err(|error| errors::to_python(py, &error))?;
        Ok(NativeTexts { texts: Mutex::new(Some(texts)), process: self.process })
    }

    /// Where the time went and how many requests are where, as JSON.
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

    /// Ends texts that are under way, and the engine's threads.
    fn close(&self, py: Python<'_>) {
        if process::id() == self.process {
            py.detach(|| {
                // Taken first: others need not wait for the threads to end.
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

    /// A handle, where the engine is there.
    fn engine(&self, py: Python<'_>) -> PyResult<TextEngine> {
        refuse_elsewhere(py, self.process)?;
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
        // In a forked child there is no thread to end: waiting for it would be for ever.
        if process::id() == self.process {
            // SAFETY: dropped here only, and not used afterwards.
            let engine = unsafe { ManuallyDrop::take(&mut self.engine) };
            Python::attach(|py| py.detach(|| drop(engine)));
        }
    }
}

/// Texts that are under way.
#[pyclass(frozen, name = "Texts", module = "fathom_lm._native")]
pub struct NativeTexts {
    /// `None` when cancelled.
    texts: Mutex<Option<TextsInProgress>>,
    process: u32,
}

#[pymethods]
impl NativeTexts {
    /// Waits for what a text gets; `None` after the last.
    fn next<'py>(&self, py: Python<'py>) -> PyResult<Option<PyUpdate<'py>>> {
        refuse_elsewhere(py, self.process)?;
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

    /// Ends them where they are.
    fn cancel(&self, py: Python<'_>) {
        py.detach(|| drop(lock(&self.texts).take()));
    }
}

/// A forked child has not the thread that writes: it would wait for ever.
fn refuse_elsewhere(py: Python<'_>, process: u32) -> PyResult<()> {
    if process::id() == process {
        return Ok(());
    }
    let sentence = format!(
        "the generator was made by process {process}, of which this one ({}) is a fork without its \
         threads: make one here, or start processes with multiprocessing's `spawn`",
        process::id()
    );
    Err(errors::raise(py, "EngineError", sentence))
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
    // What is in there is whole whenever the lock is free.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
