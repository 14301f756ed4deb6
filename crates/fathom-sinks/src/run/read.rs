//! Reading a run's tables, including those of an unfinished run.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{ArrowPrimitiveType, Float32Type, UInt32Type};
use arrow_array::{Array, BooleanArray, ListArray, PrimitiveArray, RecordBatch, StringArray};
use arrow_schema::SchemaRef;
use fathom_model::{Error, Result, TraceReader};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::fingerprint::file_sha256;
use super::merge::part;
use super::rows::parquet_error;
use super::{RunDir, RunTable};
use crate::TraceDetection;

/// Rows per batch: large enough that readers rarely have to concatenate batches.
const BATCH_ROWS: usize = 1 << 16;

/// Norms of one token at one layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormRow {
    /// 0-based number of the trace in the run.
    pub trace: usize,
    /// Position in the trace; `None` for the mean over the non-sink tokens.
    pub position: Option<usize>,
    /// The layer.
    pub layer: usize,
    /// ‖h‖.
    pub hidden: f32,
    /// Key norm.
    pub key: f32,
    /// Value norm.
    pub value: f32,
}

/// The tokens of a run's traces.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TraceText {
    /// Token ids of each trace.
    pub ids: Vec<Vec<u32>>,
    /// Text of each token id, if a tokenizer was available.
    pub texts: BTreeMap<u32, String>,
}

impl RunDir {
    /// The traces that an unfinished run has recorded: its complete lines. A partial line after
    /// them, left by an interruption, is ignored.
    pub(super) fn recorded_detections(&self, path: &Path) -> Result<Vec<TraceDetection>> {
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::io(path, "cannot be read")(error)),
        };
        let whole = bytes.split_inclusive(|byte| *byte == b'\n').enumerate();
        let whole = whole.take_while(|(_, line)| line.ends_with(b"\n"));
        whole
            .map(|(index, line)| {
                let text = std::str::from_utf8(line)
                    .map_err(|_| Error::line(path, index + 1, "is not UTF-8 text"))?;
                TraceDetection::parse(path, index + 1, text)
            })
            .collect()
    }

    /// The number of traces the run will have when it is finished: those of the traces file, if it
    /// still exists unchanged, up to the scan's limit; otherwise the limit. `None` if there is
    /// neither.
    pub fn planned_traces(&self) -> Option<usize> {
        let note = &self.manifest.traces;
        let path = Path::new(&note.file);
        let same = path.exists() && file_sha256(path).is_ok_and(|sha256| sha256 == note.sha256);
        let in_file = same.then(|| TraceReader::open(path).map(Iterator::count).ok()).flatten();
        let limit = self.manifest.options.limit;
        in_file.map(|n| n.min(limit.unwrap_or(n))).or(limit)
    }

    /// SHA-256 of the run's detections, by which a stored explanation identifies its run.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn detections_sha256(&self) -> Result<String> {
        file_sha256(&self.dir.join(super::DETECTIONS))
    }

    /// A table of a finished run as Arrow record batches, with columns in schema order. `None` for
    /// the scores of a run without attention.
    ///
    /// # Errors
    /// The file is missing or is not a Parquet file.
    pub fn record_batches(&self, table: RunTable) -> Result<Option<(SchemaRef, Vec<RecordBatch>)>> {
        let Some(path) = self.table(table) else { return Ok(None) };
        let file = File::open(&path).map_err(Error::io(&path, "cannot be opened"))?;
        let builder = ParquetRecordBatchReaderBuilder::try_new(file)
            .map_err(|error| parquet_error(&path, error))?;
        let schema = Arc::clone(builder.schema());
        let batches = builder.with_batch_size(BATCH_ROWS).build();
        let batches = batches.map_err(|error| parquet_error(&path, error))?;
        let unreadable = |error| Error::file(&path, format!("cannot be read: {error}"));
        let batches = batches.map(|batch| batch.map_err(unreadable)).collect::<Result<_>>()?;
        Ok(Some((schema, batches)))
    }

    /// The files of a table: one, or a part file per trace while the scan is running.
    pub(super) fn table_files(&self, table: RunTable, traces: usize) -> Vec<PathBuf> {
        if self.is_complete() {
            return self.table(table).into_iter().collect();
        }
        (0..traces).map(|trace| part(&self.dir, table, trace)).collect()
    }

    /// Calls `each` with every batch of the given columns of a table.
    pub(super) fn batches(
        &self,
        table: RunTable,
        traces: usize,
        columns: &[&str],
        each: &mut dyn FnMut(&Batch<'_>) -> Result<()>,
    ) -> Result<()> {
        for path in self.table_files(table, traces) {
            let file = File::open(&path).map_err(Error::io(&path, "cannot be opened"))?;
            let builder = ParquetRecordBatchReaderBuilder::try_new(file)
                .map_err(|error| parquet_error(&path, error))?;
            let mask = ProjectionMask::columns(builder.parquet_schema(), columns.iter().copied());
            let batches = builder.with_projection(mask).build();
            for batch in batches.map_err(|error| parquet_error(&path, error))? {
                let unreadable = |error| Error::file(&path, format!("cannot be read: {error}"));
                each(&Batch { batch: batch.map_err(unreadable)?, path: &path })?;
            }
        }
        Ok(())
    }

    /// The norm curves of the first `traces` traces, restricted to those whose number `wanted`
    /// accepts.
    ///
    /// # Errors
    /// A file is missing or is not such a table.
    pub fn norms(&self, traces: usize, wanted: &dyn Fn(usize) -> bool) -> Result<Vec<NormRow>> {
        const COLUMNS: [&str; 6] =
            ["trace", "position", "layer", "hidden_norm", "key_norm", "value_norm"];
        let mut rows = Vec::new();
        self.batches(RunTable::Norms, traces, &COLUMNS, &mut |batch| {
            let [trace, position, layer] =
                [COLUMNS[0], COLUMNS[1], COLUMNS[2]].map(|name| batch.column::<UInt32Type>(name));
            let (trace, position, layer) = (trace?, position?, layer?);
            let [hidden, key, value] =
                [COLUMNS[3], COLUMNS[4], COLUMNS[5]].map(|name| batch.column::<Float32Type>(name));
            let (hidden, key, value) = (hidden?, key?, value?);
            for i in (0..trace.len()).filter(|i| wanted(index(trace.value(*i)))) {
                rows.push(NormRow {
                    trace: index(trace.value(i)),
                    position: position.is_valid(i).then(|| index(position.value(i))),
                    layer: index(layer.value(i)),
                    hidden: hidden.value(i),
                    key: key.value(i),
                    value: value.value(i),
                });
            }
            Ok(())
        })?;
        Ok(rows)
    }

    /// The tokens of the first `traces` traces; `None` if the run does not have them.
    ///
    /// # Errors
    /// A file is not such a table.
    pub fn text(&self, traces: usize) -> Result<Option<TraceText>> {
        let files = self.table_files(RunTable::Tokens, traces);
        if files.is_empty() || !files.iter().all(|path| path.exists()) {
            return Ok(None);
        }
        let mut text = TraceText { ids: vec![Vec::new(); traces], texts: BTreeMap::new() };
        let columns = ["trace", "position", "token_id", "token_text"];
        self.batches(RunTable::Tokens, traces, &columns, &mut |batch| {
            let trace = batch.column::<UInt32Type>("trace")?;
            let position = batch.column::<UInt32Type>("position")?;
            let id = batch.column::<UInt32Type>("token_id")?;
            let texts = batch.strings("token_text")?;
            for i in 0..trace.len() {
                let Some(ids) = text.ids.get_mut(index(trace.value(i))) else { continue };
                if ids.len() != index(position.value(i)) {
                    return Err(Error::file(batch.path, "does not hold the tokens in order"));
                }
                ids.push(id.value(i));
                if texts.is_valid(i) && !text.texts.contains_key(&id.value(i)) {
                    text.texts.insert(id.value(i), texts.value(i).to_owned());
                }
            }
            Ok(())
        })?;
        Ok(Some(text))
    }

    /// The attention that every token receives: its sink score, averaged over heads and layers, for
    /// the traces with the given numbers of tokens. `None` if attention was not measured.
    ///
    /// # Errors
    /// A file is missing or is not such a table.
    pub fn attention_received(&self, tokens: &[usize]) -> Result<Option<Vec<Vec<f32>>>> {
        if !self.manifest.options.attention {
            return Ok(None);
        }
        let mut drawn: Vec<Vec<f32>> = tokens.iter().map(|tokens| vec![0.0; *tokens]).collect();
        let share = 1.0 / self.manifest.model.layers.max(1) as f32;
        let columns = ["trace", "position", "mean"];
        self.batches(RunTable::Scores, tokens.len(), &columns, &mut |batch| {
            let trace = batch.column::<UInt32Type>("trace")?;
            let position = batch.column::<UInt32Type>("position")?;
            let mean = batch.column::<Float32Type>("mean")?;
            for i in 0..trace.len() {
                let of_trace = drawn.get_mut(index(trace.value(i)));
                if let Some(sum) =
                    of_trace.and_then(|trace| trace.get_mut(index(position.value(i))))
                {
                    *sum += share * mean.value(i);
                }
            }
            Ok(())
        })?;
        Ok(Some(drawn))
    }
}

/// A batch of a table whose column types have not been validated.
pub(super) struct Batch<'a> {
    batch: RecordBatch,
    pub path: &'a Path,
}

impl Batch<'_> {
    pub fn column<T: ArrowPrimitiveType>(&self, name: &str) -> Result<&PrimitiveArray<T>> {
        let column = self.batch.column_by_name(name);
        column.and_then(|column| column.as_primitive_opt::<T>()).ok_or_else(|| self.lacks(name))
    }

    pub fn booleans(&self, name: &str) -> Result<&BooleanArray> {
        let column = self.batch.column_by_name(name);
        column.and_then(|column| column.as_boolean_opt()).ok_or_else(|| self.lacks(name))
    }

    pub fn lists(&self, name: &str) -> Result<&ListArray> {
        let column = self.batch.column_by_name(name);
        column.and_then(|column| column.as_list_opt::<i32>()).ok_or_else(|| self.lacks(name))
    }

    pub fn strings(&self, name: &str) -> Result<&StringArray> {
        let column = self.batch.column_by_name(name);
        column.and_then(|column| column.as_string_opt::<i32>()).ok_or_else(|| self.lacks(name))
    }

    pub fn lacks(&self, name: &str) -> Error {
        Error::file(self.path, format!("has no column `{name}` of the expected type"))
    }
}

/// `u32` always fits.
pub(super) fn index(n: u32) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}
