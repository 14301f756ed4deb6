//! Traces from files and from memory.

use fathom_lm::fathom_model::RowFields;
use fathom_lm::{Error, ReadOptions, Result, Traces};
use pyo3::prelude::*;

use crate::errors;
use crate::model::NativeModel;
use crate::remarks::{self, PyRemark};

/// Traces as token ids of a model.
#[pyclass(frozen, name = "Traces", module = "fathom_lm._native")]
pub struct NativeTraces {
    pub traces: Traces,
}

#[pymethods]
impl NativeTraces {
    /// Reads a data set's files.
    #[staticmethod]
    #[pyo3(signature = (
        model, path, *, limit=None, skip_bad_lines=false, prompt_field=None, output_field=None
    ))]
    fn read(
        py: Python<'_>,
        model: &NativeModel,
        path: &str,
        limit: Option<usize>,
        skip_bad_lines: bool,
        prompt_field: Option<String>,
        output_field: Option<String>,
    ) -> PyResult<NativeTraces> {
        let fields = RowFields { prompt: prompt_field, output: output_field };
        let options = ReadOptions { fields, limit, skip_bad_lines };
        let model = &*model.model;
        let traces = py.detach(|| Traces::read_with(path, model, &options));
        let traces = traces.map_err(|error| errors::to_python(py, &error))?;
        Ok(NativeTraces { traces })
    }

    /// From rows, each a JSON object.
    #[staticmethod]
    fn from_rows(py: Python<'_>, model: &NativeModel, rows: Vec<String>) -> PyResult<NativeTraces> {
        let model = &*model.model;
        let parse = |(index, row): (usize, &String)| {
            serde_json::from_str(row)
                .map_err(|error| Error::Request(format!("trace {index} is not JSON: {error}")))
        };
        let traces = py.detach(|| {
            let rows = rows.iter().enumerate().map(parse).collect::<Result<Vec<_>>>()?;
            Traces::from_rows(rows, model)
        });
        let traces = traces.map_err(|error| errors::to_python(py, &error))?;
        Ok(NativeTraces { traces })
    }

    fn __len__(&self) -> usize {
        self.traces.len()
    }

    /// Remarks about the rows.
    fn remarks(&self) -> Vec<PyRemark> {
        remarks::to_python(self.traces.remarks())
    }
}
