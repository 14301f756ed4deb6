//! Scans and the runs they write.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use fathom_lm::fathom_report::{Report, summary};
use fathom_lm::fathom_sinks::RunTable;
use fathom_lm::tables::{self, Detections};
use fathom_lm::{
    Analysis, Class, Error, Format, Phases, Preset, ReportOptions, Result, Run, ScanOptions,
    TraceDetection, write_report,
};
use numpy::PyArray1;
use pyo3::prelude::*;

use crate::model::NativeModel;
use crate::progress::Reporter;
use crate::remarks::{self, PyRemark};
use crate::tables::NativeTable;
use crate::traces::NativeTraces;
use crate::{arrays, errors};

/// A finished run.
#[pyclass(frozen, name = "Run", module = "fathom_lm._native")]
pub struct NativeRun {
    pub run: Run,
    detections: OnceLock<Vec<TraceDetection>>,
}

impl NativeRun {
    fn new(run: Run) -> NativeRun {
        NativeRun { run, detections: OnceLock::new() }
    }

    /// The detections, which are read from the run's file once.
    fn traces(&self) -> Result<&[TraceDetection]> {
        if let Some(detections) = self.detections.get() {
            return Ok(detections);
        }
        let detections = self.run.detections()?;
        Ok(self.detections.get_or_init(|| detections))
    }
}

/// The value with a name, of all values of `what`.
fn named<T: Copy>(what: &str, name: &str, all: &[T], name_of: fn(T) -> &'static str) -> Result<T> {
    all.iter().copied().find(|value| name_of(*value) == name).ok_or_else(|| {
        let names: Vec<&str> = all.iter().map(|value| name_of(*value)).collect();
        let expected = match names[..] {
            [one, other] => format!("`{one}` or `{other}`"),
            _ => format!("one of {}", names.join(", ")),
        };
        Error::Request(format!("{what} `{name}` is unknown: expected {expected}"))
    })
}

fn phases(name: &str) -> Result<Phases> {
    named("phases", name, &[Phases::Largest, Phases::All], Phases::name)
}

fn preset(name: &str) -> Result<Preset> {
    named("preset", name, &[Preset::Paper, Preset::Upstream], Preset::name)
}

/// The analysis of a name.
pub fn analysis(name: &str) -> Result<Analysis> {
    named("analysis", name, &Analysis::ALL, Analysis::name)
}

fn class(name: &str) -> Result<Class> {
    named("class", name, &Class::ALL, Class::name)
}

/// Scans traces into a run. Before the scan, `report_remarks` is called with the remarks about it
/// that the model did not have already. During the scan, `progress` is called with (step, unit,
/// done, total).
#[pyfunction]
#[pyo3(signature = (
    model, traces, *, preset, phases, threshold, rise, reference, attention, all_heads,
    max_tokens, limit, out, resume, report_remarks, progress
))]
#[expect(clippy::too_many_arguments, reason = "they are keywords in Python")]
pub fn scan(
    py: Python<'_>,
    model: &NativeModel,
    traces: &NativeTraces,
    preset: &str,
    phases: &str,
    threshold: Option<f32>,
    rise: Option<f32>,
    reference: Vec<usize>,
    attention: bool,
    all_heads: bool,
    max_tokens: Option<usize>,
    limit: Option<usize>,
    out: Option<PathBuf>,
    resume: bool,
    report_remarks: &Bound<'_, PyAny>,
    progress: Option<Py<PyAny>>,
) -> PyResult<NativeRun> {
    model.refuse_in_fork(py)?;
    let model = &*model.model;
    let known = self::preset(preset).and_then(|preset| {
        Ok(ScanOptions { phases: self::phases(phases)?, ..ScanOptions::new(preset) })
    });
    let known = known.map_err(|error| errors::to_python(py, &error))?;
    let options = ScanOptions {
        threshold: threshold.unwrap_or(known.threshold),
        rise_factor: rise.unwrap_or(known.rise_factor),
        reference,
        attention,
        all_heads,
        max_tokens,
        limit,
        ..known
    };
    let remarks = model.files().scan_remarks(&traces.traces, &options);
    let remarks = remarks.map_err(|error| errors::to_python(py, &error))?;
    let own = |remark: &fathom_lm::Remark| !model.remarks().contains(remark);
    let remarks: Vec<_> = remarks.into_iter().filter(own).collect();
    report_remarks.call1((remarks::to_python(&remarks),))?;
    let mut reporter = Reporter::new(progress);
    let run = py.detach(|| {
        let mut scan = model.scan(&traces.traces, options).resume(resume).progress(&mut reporter);
        if let Some(out) = out {
            scan = scan.out(out);
        }
        scan.run()
    });
    reporter.result(py, run).map(NativeRun::new)
}

/// One table of several runs, as Markdown, CSV, LaTeX, JSON and HTML.
#[pyfunction]
#[pyo3(signature = (runs, show, preset=None, phases=None, top=10))]
pub fn table(
    py: Python<'_>,
    runs: Vec<PyRef<'_, NativeRun>>,
    show: &str,
    preset: Option<&str>,
    phases: Option<&str>,
    top: usize,
) -> PyResult<(String, String, String, String, String)> {
    let made = || -> Result<_> {
        let preset = preset.map(self::preset).transpose()?;
        let phases = phases.map(self::phases).transpose()?;
        let found = runs.iter().map(|run| Detections::of_run(&run.run, preset, phases));
        let found = found.collect::<Result<Vec<_>>>()?;
        let table = match show {
            "sinks" => tables::sinks(&found),
            "tokens" => tables::tokens(&found, top),
            "levels" => tables::levels(&found),
            "positions" => tables::positions(&found),
            _ => {
                let expected = "expected one of sinks, tokens, levels, positions";
                return Err(Error::Request(format!("there is no table `{show}`: {expected}")));
            }
        };
        let [markdown, csv, latex, json] =
            [Format::Markdown, Format::Csv, Format::Latex, Format::Json]
                .map(|format| table.render(format));
        Ok((markdown, csv, latex, json, table.to_html()))
    };
    made().map_err(|error| errors::to_python(py, &error))
}

/// Writes a report of runs; returns the paths of the page and of its figures.
#[pyfunction]
#[pyo3(signature = (runs, page, figures=None, texts=30))]
pub fn report(
    py: Python<'_>,
    runs: Vec<PathBuf>,
    page: PathBuf,
    figures: Option<PathBuf>,
    texts: usize,
) -> PyResult<(PathBuf, Vec<PathBuf>)> {
    let options = ReportOptions { figures, texts };
    let files = py.detach(|| write_report(&runs, &page, &options));
    let files = files.map_err(|error| errors::to_python(py, &error))?;
    Ok((files.page, files.figures))
}

#[pymethods]
impl NativeRun {
    /// Opens the run in a directory.
    #[staticmethod]
    fn open(py: Python<'_>, path: PathBuf) -> PyResult<NativeRun> {
        let run = py.detach(|| Run::open(&path));
        run.map(NativeRun::new).map_err(|error| errors::to_python(py, &error))
    }

    /// Its directory.
    #[getter]
    fn path(&self) -> &Path {
        self.run.dir()
    }

    /// Whether the directory is removed with it.
    #[getter]
    fn is_temporary(&self) -> bool {
        self.run.is_temporary()
    }

    /// `run.json`.
    fn manifest(&self) -> String {
        serde_json::to_string(self.run.manifest()).unwrap_or_default()
    }

    /// Remarks about the scan.
    fn remarks(&self) -> Vec<PyRemark> {
        remarks::to_python(&self.run.manifest().remarks)
    }

    /// The lines of `detections.jsonl`.
    fn detections(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        let traces = py.detach(|| self.traces());
        let traces = traces.map_err(|error| errors::to_python(py, &error))?;
        Ok(traces.iter().map(TraceDetection::to_json).collect())
    }

    /// The findings, in sentences.
    fn summary(&self, py: Python<'_>) -> PyResult<String> {
        let traces = self.traces().map_err(|error| errors::to_python(py, &error))?;
        Ok(summary(self.run.manifest(), traces))
    }

    /// Which tokens of a trace are sinks, `bool[T]`; `None` if there is no such trace.
    fn mask<'py>(
        &self,
        py: Python<'py>,
        trace: usize,
        layer: Option<usize>,
        classes: Vec<String>,
    ) -> PyResult<Option<Bound<'py, PyArray1<bool>>>> {
        let mask = || -> Result<_> {
            let classes = classes.iter().map(|name| class(name)).collect::<Result<Vec<_>>>()?;
            Ok(self.traces()?.get(trace).map(|trace| trace.mask(layer, &classes)))
        };
        let mask = mask().map_err(|error| errors::to_python(py, &error))?;
        Ok(mask.map(|mask| arrays::read_only(py, mask)))
    }

    /// The table `sinks`, `norms`, `tokens`, `measures` or `scores`; `None` if it was not measured.
    fn table(&self, py: Python<'_>, name: &str) -> PyResult<Option<NativeTable>> {
        let Some(table) = RunTable::ALL.into_iter().find(|table| table.name() == name) else {
            return Ok(None);
        };
        let batches = py.detach(|| self.run.record_batches(table));
        let batches = batches.map_err(|error| errors::to_python(py, &error))?;
        Ok(batches.map(|(schema, batches)| NativeTable::new(schema, batches)))
    }

    /// Names of all figures, including those that the run lacks the data for.
    fn figure_names(&self, py: Python<'_>) -> PyResult<Vec<&'static str>> {
        let report = py.detach(|| Report::new(&[self.run.dir().to_owned()]));
        Ok(report.map_err(|error| errors::to_python(py, &error))?.figure_names())
    }

    /// A figure as SVG.
    fn figure(&self, py: Python<'_>, name: &str) -> PyResult<String> {
        let svg = py.detach(|| Report::new(&[self.run.dir().to_owned()])?.figure_svg(name));
        svg.map_err(|error| errors::to_python(py, &error))
    }
}
