//! Tables of a run for libraries that read Arrow, and Arrow tables as rows of a data set
//! (<https://arrow.apache.org/docs/format/CDataInterface/PyCapsuleInterface.html>).

use std::ffi::CStr;

use arrow_array::cast::AsArray;
use arrow_array::ffi_stream::{ArrowArrayStreamReader, FFI_ArrowArrayStream};
use arrow_array::types::{ArrowPrimitiveType, Float32Type, UInt32Type, UInt64Type};
use arrow_array::{Array, ArrayRef, RecordBatch, RecordBatchIterator};
use arrow_json::LineDelimitedWriter;
use arrow_schema::ffi::FFI_ArrowSchema;
use arrow_schema::{ArrowError, DataType, SchemaRef};
use fathom_lm::Error;
use numpy::{Element, PyArray1};
use pyo3::exceptions::PyKeyError;
use pyo3::prelude::*;
use pyo3::types::{PyCapsule, PyList};

use crate::arrays::read_only;
use crate::errors;

const STREAM: &CStr = c"arrow_array_stream";
const SCHEMA: &CStr = c"arrow_schema";

/// One table of a run, in memory.
#[pyclass(frozen, name = "Table", module = "fathom_lm._native")]
pub struct NativeTable {
    schema: SchemaRef,
    batches: Vec<RecordBatch>,
}

/// A column: its values; for a column of lists, the offsets of each list; and which rows are not
/// null, if some are null.
type PyColumn<'py> =
    (Bound<'py, PyAny>, Option<Bound<'py, PyArray1<i64>>>, Option<Bound<'py, PyArray1<bool>>>);

impl NativeTable {
    pub fn new(schema: SchemaRef, batches: Vec<RecordBatch>) -> NativeTable {
        NativeTable { schema, batches }
    }
}

#[pymethods]
impl NativeTable {
    fn __len__(&self) -> usize {
        self.batches.iter().map(RecordBatch::num_rows).sum()
    }

    /// Names of the columns.
    fn columns(&self) -> Vec<String> {
        self.schema.fields().iter().map(|field| field.name().clone()).collect()
    }

    /// Bytes of all columns.
    #[getter]
    fn nbytes(&self) -> usize {
        self.batches.iter().map(RecordBatch::get_array_memory_size).sum()
    }

    /// The rows as a capsule with an `ArrowArrayStream`. The memory is shared, not copied, and
    /// freed when nothing refers to it any more.
    fn stream<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyCapsule>> {
        let batches = self.batches.clone().into_iter().map(Ok);
        let reader = RecordBatchIterator::new(batches, self.schema.clone());
        PyCapsule::new_with_value(py, FFI_ArrowArrayStream::new(Box::new(reader)), STREAM)
    }

    /// The columns' names and types as a capsule with an `ArrowSchema`.
    fn schema<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyCapsule>> {
        let schema = FFI_ArrowSchema::try_from(self.schema.as_ref());
        let schema = schema.map_err(|error| arrow_error(py, &error))?;
        PyCapsule::new_with_value(py, schema, SCHEMA)
    }

    /// The first `rows` rows of a column: an array of numbers, or a list of texts.
    #[pyo3(signature = (name, rows=None))]
    fn column<'py>(
        &self,
        py: Python<'py>,
        name: &str,
        rows: Option<usize>,
    ) -> PyResult<PyColumn<'py>> {
        let Ok(index) = self.schema.index_of(name) else {
            let columns = self.columns().join(", ");
            let sentence = format!("there is no column `{name}`: the columns are {columns}");
            return Err(PyKeyError::new_err(sentence));
        };
        let mut left = rows.unwrap_or(usize::MAX);
        let mut parts: Vec<ArrayRef> = Vec::new();
        for batch in &self.batches {
            let rows = batch.num_rows().min(left);
            parts.push(batch.column(index).slice(0, rows));
            left -= rows;
        }
        let valid = parts.iter().any(|part| part.null_count() > 0).then(|| {
            let valid = parts.iter().flat_map(|part| (0..part.len()).map(|row| part.is_valid(row)));
            read_only(py, valid.collect())
        });
        let kind = self.schema.field(index).data_type();
        if let DataType::List(item) = kind {
            let mut ends: Vec<i64> = vec![0];
            let mut items: Vec<ArrayRef> = Vec::new();
            for lists in parts.iter().filter_map(|part| part.as_list_opt::<i32>()) {
                for row in 0..lists.len() {
                    let length = if lists.is_valid(row) { lists.value_length(row) } else { 0 };
                    ends.push(ends.last().copied().unwrap_or(0) + i64::from(length));
                    if length > 0 {
                        items.push(lists.value(row));
                    }
                }
            }
            let values = values(py, item.data_type(), &items)?;
            return Ok((values, Some(read_only(py, ends)), valid));
        }
        Ok((values(py, kind, &parts)?, None, valid))
    }
}

fn values<'py>(
    py: Python<'py>,
    kind: &DataType,
    parts: &[ArrayRef],
) -> PyResult<Bound<'py, PyAny>> {
    match kind {
        DataType::UInt32 => Ok(numbers::<UInt32Type>(py, parts).into_any()),
        DataType::UInt64 => Ok(numbers::<UInt64Type>(py, parts).into_any()),
        DataType::Float32 => Ok(numbers::<Float32Type>(py, parts).into_any()),
        DataType::Boolean => {
            let parts = parts.iter().filter_map(|part| part.as_boolean_opt());
            let values = parts.flat_map(|part| part.values().iter().collect::<Vec<bool>>());
            Ok(read_only(py, values.collect::<Vec<bool>>()).into_any())
        }
        DataType::Utf8 => {
            let texts = parts.iter().filter_map(|part| part.as_string_opt::<i32>());
            let texts: Vec<Option<&str>> = texts.flat_map(|part| part.iter()).collect();
            Ok(PyList::new(py, texts)?.into_any())
        }
        other => {
            let sentence =
                format!("the table has a column of type {other}, which tables of runs do not have");
            Err(errors::raise(py, "CheckpointError", sentence))
        }
    }
}

fn numbers<'py, T: ArrowPrimitiveType>(
    py: Python<'py>,
    parts: &[ArrayRef],
) -> Bound<'py, PyArray1<T::Native>>
where
    T::Native: Element,
{
    let parts = parts.iter().filter_map(|part| part.as_primitive_opt::<T>());
    let numbers: Vec<T::Native> = parts.flat_map(|part| part.values().iter().copied()).collect();
    read_only(py, numbers)
}

/// The first `limit` rows of an Arrow table, batch or reader of any library, each as a JSON object
/// without its nulls.
#[pyfunction]
#[pyo3(signature = (table, limit=None))]
pub fn arrow_rows(
    py: Python<'_>,
    table: &Bound<'_, PyAny>,
    limit: Option<usize>,
) -> PyResult<Vec<String>> {
    let capsule = table.call_method0("__arrow_c_stream__")?.cast_into::<PyCapsule>()?;
    let stream = capsule.pointer_checked(Some(STREAM))?.cast::<FFI_ArrowArrayStream>();
    // SAFETY: a capsule of this name holds an `ArrowArrayStream`. `from_raw` moves it out and marks
    // the capsule's as released, so that it is released once.
    let stream = unsafe { FFI_ArrowArrayStream::from_raw(stream.as_ptr()) };
    let mut reader =
        ArrowArrayStreamReader::try_new(stream).map_err(|error| arrow_error(py, &error))?;
    let limit = limit.unwrap_or(usize::MAX);
    let mut rows = Vec::new();
    while rows.len() < limit {
        py.check_signals()?;
        let Some(batch) = reader.next() else { break };
        let batch = batch.map_err(|error| arrow_error(py, &error))?;
        let batch = batch.slice(0, batch.num_rows().min(limit - rows.len()));
        rows.extend(json_rows(&batch).map_err(|error| arrow_error(py, &error))?);
    }
    Ok(rows)
}

fn json_rows(batch: &RecordBatch) -> Result<Vec<String>, ArrowError> {
    let mut writer = LineDelimitedWriter::new(Vec::new());
    writer.write(batch)?;
    writer.finish()?;
    let text = String::from_utf8(writer.into_inner());
    let text = text.map_err(|_| ArrowError::JsonError("texts that are not UTF-8".to_owned()))?;
    Ok(text.lines().map(str::to_owned).collect())
}

fn arrow_error(py: Python<'_>, error: &ArrowError) -> PyErr {
    errors::to_python(py, &Error::Request(format!("the Arrow table cannot be read: {error}")))
}
