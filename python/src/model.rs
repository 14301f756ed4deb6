//! A model: loading, text, passes.

use std::mem::ManuallyDrop;
use std::process;
use std::sync::Mutex;

use fathom_lm::fathom_model::{Layout, refuse_remarks};
use fathom_lm::{Input, LogitRows, Model, Site};
use numpy::{PyArrayDyn, PyReadonlyArray1};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::encode::{self, PyEncoded};
use crate::options::LoadOptions;
use crate::progress::Reporter;
use crate::remarks::{self, PyRemark};
use crate::signals::{Raised, Signals};
use crate::{arrays, config, errors, hooks};

/// A model of the library, and the process that has its threads.
#[pyclass(frozen, name = "Model", module = "fathom_lm._native")]
pub struct NativeModel {
    pub(crate) model: ManuallyDrop<Model>,
    process: u32,
}

/// Logits, or the residual stream where the pass stopped; and the captured arrays by name.
type PyRan<'py> = (Option<Bound<'py, PyArrayDyn<f32>>>, Vec<(String, Bound<'py, PyArrayDyn<f32>>)>);

#[pymethods]
impl NativeModel {
    #[new]
    #[pyo3(signature = (
        path, *, options, adapter=None, name=None, threads=None, ids_only=false, strict=false
    ))]
    #[expect(clippy::too_many_arguments, reason = "they are keywords in Python")]
    fn new(
        py: Python<'_>,
        path: &str,
        options: LoadOptions,
        adapter: Option<&str>,
        name: Option<&str>,
        threads: Option<usize>,
        ids_only: bool,
        strict: bool,
    ) -> PyResult<NativeModel> {
        let mut reporter = Reporter::new(None);
        let loaded = py.detach(|| {
            let mut options = options.model(path, adapter)?;
            if let Some(name) = name {
                options = options.named(name);
            }
            if let Some(threads) = threads {
                options = options.threads(threads);
            }
            if ids_only {
                options = options.ids_only();
            }
            let files = options.open()?;
            if strict {
                refuse_remarks(files.remarks(), "strict=True")?;
            }
            files.load_with(&mut reporter)
        });
        let model = reporter.result(py, loaded)?;
        Ok(NativeModel { model: ManuallyDrop::new(model), process: process::id() })
    }

    /// Its name in tables.
    #[getter]
    fn name(&self) -> String {
        self.model.name()
    }

    /// `f32` or `bf16`.
    #[getter]
    fn precision(&self) -> &'static str {
        self.model.files().precision()
    }

    /// The kernels it computes with.
    #[getter]
    fn engine(&self) -> String {
        self.model.engine()
    }

    /// Whether prompts are rendered by a chat template.
    #[getter]
    fn has_chat_template(&self) -> bool {
        self.model.files().text().template.is_some()
    }

    /// `config.json` with every default filled in.
    fn config<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        config::to_dict(py, self.model.config())
    }

    /// Remarks about its files.
    fn remarks(&self) -> Vec<PyRemark> {
        remarks::to_python(self.model.remarks())
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

    /// The text of token ids, including special tokens.
    fn decode(&self, py: Python<'_>, ids: PyReadonlyArray1<'_, i64>) -> PyResult<String> {
        let text = encode::ids(&ids).and_then(|ids| self.model.decode(&ids));
        text.map_err(|error| errors::to_python(py, &error))
    }

    /// The text of each token id; `None` without a tokenizer.
    fn tokens(
        &self,
        py: Python<'_>,
        ids: PyReadonlyArray1<'_, i64>,
    ) -> PyResult<Vec<Option<String>>> {
        let ids = encode::ids(&ids).map_err(|error| errors::to_python(py, &error))?;
        let text = self.model.files().text();
        Ok(ids.into_iter().map(|id| text.token_text(id)).collect())
    }

    /// The shape of a site's values in a pass over `tokens` tokens, and whether a hook gets them
    /// as rows `[T, heads · head_dim]` instead.
    fn shape(&self, py: Python<'_>, site: &str, tokens: usize) -> PyResult<(Vec<usize>, bool)> {
        let (site, _) = Site::parse(site).map_err(|error| errors::to_python(py, &error))?;
        Ok(match site.layout(self.model.config()) {
            Layout::Rows { width } => (vec![tokens, width], false),
            Layout::Heads { heads, head_dim } => (vec![heads, tokens, head_dim], true),
            Layout::Weights { heads } => (vec![heads, tokens, tokens], false),
            Layout::Scores { heads } => (vec![heads, tokens], false),
        })
    }

    /// One pass with captures, edits and hooks. `logits` is `all`, `last` or `none`; a hook is a
    /// place and a function of its flat values.
    #[pyo3(signature = (
        ids, *, names=Vec::new(), positions=None, edits=Vec::new(), hooks=Vec::new(),
        stop_at_layer=None, logits="all",
    ))]
    #[expect(clippy::too_many_arguments, reason = "they are keywords in Python")]
    fn run<'py>(
        &self,
        py: Python<'py>,
        ids: PyReadonlyArray1<'py, i64>,
        names: Vec<String>,
        positions: Option<Vec<usize>>,
        edits: Vec<String>,
        hooks: Vec<(String, Py<PyAny>)>,
        stop_at_layer: Option<i64>,
        logits: &str,
    ) -> PyResult<PyRan<'py>> {
        self.refuse_in_fork(py)?;
        let ids = encode::ids(&ids).map_err(|error| errors::to_python(py, &error))?;
        let rows = match logits {
            "all" => LogitRows::All,
            "last" => LogitRows::Last,
            _ => LogitRows::None,
        };
        let raised = Mutex::new(Raised::default());
        let ran = py.detach(|| {
            let store = |exception| match raised.lock() {
                Ok(mut raised) => raised.store(exception),
                Err(poisoned) => poisoned.into_inner().store(exception),
            };
            let mut signals = Signals::new();
            let mut pass = self
                .model
                .pass(&ids)
                .capture(&names)
                .edit(&edits)
                .logits(rows)
                .checked(|| signals.check().map_err(store));
            if let Some(positions) = positions {
                pass = pass.at_positions(positions);
            }
            if let Some(layer) = stop_at_layer {
                pass = pass.stop_at_layer(layer);
            }
            for (name, hook) in &hooks {
                pass = pass
                    .hook(name, move |at, values| hooks::call(hook, at, values).map_err(store))?;
            }
            pass.run()
        });
        let exception = raised.lock().ok().and_then(|mut raised| raised.take());
        let ran = match (ran, exception) {
            (_, Some(exception)) => return Err(exception),
            (Err(error), None) => return Err(errors::to_python(py, &error)),
            (Ok(ran), None) => ran,
        };
        let output = match (ran.residual, rows) {
            (Some(residual), _) => Some(residual),
            (None, LogitRows::None) => None,
            (None, _) => Some(ran.logits),
        };
        let cache = ran.cache.into_arrays();
        Ok((
            output.map(|array| arrays::to_numpy(py, array)).transpose()?,
            cache
                .map(|(name, array)| Ok((name, arrays::to_numpy(py, array)?)))
                .collect::<PyResult<_>>()?,
        ))
    }
}

impl NativeModel {
    fn encode<'py>(
        &self,
        py: Python<'py>,
        input: impl FnOnce() -> fathom_lm::Result<Input> + Send,
    ) -> PyResult<PyEncoded<'py>> {
        let model = &*self.model;
        let encoded = py.detach(|| model.encode(input()?));
        let encoded = encoded.map_err(|error| errors::to_python(py, &error))?;
        Ok(encode::to_python(py, encoded))
    }

    /// Refuses to run in a forked child.
    pub(crate) fn refuse_in_fork(&self, py: Python<'_>) -> PyResult<()> {
        errors::refuse_in_fork(py, self.process, "the model was loaded", "load the model here")
    }
}

impl Drop for NativeModel {
    fn drop(&mut self) {
        // A forked child has none of the threads that dropping the model waits for.
        if process::id() == self.process {
            // SAFETY: dropped only here, and not used afterwards.
            unsafe { ManuallyDrop::drop(&mut self.model) };
        }
    }
}
