//! Analyses of the sinks of a run.

use std::path::PathBuf;

use fathom_lm::{
    Error, Explain, ExplainOptions, Explained, KeyOptions, KnockoutBy, Result, RunInputs,
};
use pyo3::prelude::*;

use crate::model::NativeModel;
use crate::progress::Reporter;
use crate::run::{NativeRun, analysis};
use crate::traces::NativeTraces;

/// Name, file and finding of an analysis.
type PyExplained = (&'static str, PathBuf, String);

/// Runs those of the analyses that have no current result, with the run's model and traces unless
/// others are passed. `progress` is called with (step, unit, done, total).
#[pyfunction]
#[pyo3(signature = (
    run, analyses, *, max_sinks, seed, knockout_by, knockout_layers, draws, budgets, model, traces,
    model_path, adapter, traces_path, threads, progress
))]
#[expect(clippy::too_many_arguments, reason = "they are keywords in Python")]
pub fn explain(
    py: Python<'_>,
    run: &NativeRun,
    analyses: Vec<String>,
    max_sinks: usize,
    seed: u64,
    knockout_by: &str,
    knockout_layers: Vec<usize>,
    draws: usize,
    budgets: Vec<usize>,
    model: Option<&NativeModel>,
    traces: Option<&NativeTraces>,
    model_path: Option<String>,
    adapter: Option<String>,
    traces_path: Option<PathBuf>,
    threads: Option<usize>,
    progress: Option<Py<PyAny>>,
) -> PyResult<Vec<PyExplained>> {
    if let Some(model) = model {
        model.refuse_in_fork(py)?;
    }
    let model = model.map(|model| &*model.model);
    let knockout_by = match knockout_by {
        "hide" => Ok(KnockoutBy::Hide),
        "zero" => Ok(KnockoutBy::Zero),
        other => Err(Error::Request(format!("knockout_by={other:?}: expected hide or zero"))),
    };
    let mut reporter = Reporter::new(progress);
    let explained = py.detach(|| -> Result<Vec<Explained>> {
        let asked = analyses.iter().map(|name| analysis(name)).collect::<Result<Vec<_>>>()?;
        let knockout_by = knockout_by?;
        let keys = KeyOptions { knockout_by, knockout_layers, draws, budgets };
        let explain = Explain::new(&run.run, &asked, ExplainOptions { seed, max_sinks, keys })?;
        let inputs = RunInputs { model: model_path, adapter, traces: traces_path, threads };
        match (model, traces) {
            _ if explain.remaining().is_empty() => {}
            (Some(model), Some(traces)) => {
                explain.with_model(model, &traces.traces, &mut reporter)?
            }
            (Some(model), None) => explain.run_on(model, &inputs, &mut reporter)?,
            (None, _) => explain.run(&inputs, &mut reporter)?,
        }
        explain.findings()
    });
    let explained = reporter.result(py, explained)?;
    let one = |Explained { analysis, file, finding }| (analysis.name(), file, finding);
    Ok(explained.into_iter().map(one).collect())
}
