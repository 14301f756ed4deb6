//! One row a row of a Parquet file, as data sets on the hub have them: nested lists and structs
//! included.

use std::collections::VecDeque;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use arrow_json::LineDelimitedWriter;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};

use super::MAX_ROW_BYTES;
use crate::sanitize::sanitize;
use crate::{Error, Result};

/// Rows decoded at a time. A row group's columns are decoded page by page.
const BATCH_ROWS: usize = 32;
/// Bytes that a row group may claim to hold for each byte of the file, beyond a free allowance.
const MAX_RATIO: u64 = 1000;
const FREE_BYTES: u64 = 256 << 20;

/// Reads rows, and writes each as a line of JSON. Nulls are left out.
pub(super) struct ParquetRows {
    path: PathBuf,
    batches: ParquetRecordBatchReader,
    ready: VecDeque<String>,
    /// Rows given out so far.
    count: usize,
}

impl ParquetRows {
    pub(super) fn open(path: &Path, file: File) -> Result<ParquetRows> {
        let size = file.metadata().map_err(Error::io(path, "cannot be read"))?.len();
        let builder = guarded(path, || ParquetRecordBatchReaderBuilder::try_new(file))?;
        let most = FREE_BYTES.saturating_add(MAX_RATIO.saturating_mul(size));
        for (number, group) in builder.metadata().row_groups().iter().enumerate() {
            let claimed = u64::try_from(group.total_byte_size()).unwrap_or(u64::MAX);
            let rows = u64::try_from(group.num_rows()).unwrap_or(u64::MAX);
            if claimed.max(rows) > most {
                let problem = format!(
                    "row group {number} claims {rows} rows of {claimed} bytes, which a file of {size} bytes \
                     cannot hold"
                );
                return Err(Error::file(path, problem));
            }
        }
        let batches = guarded(path, || builder.with_batch_size(BATCH_ROWS).build())?;
        Ok(ParquetRows { path: path.to_owned(), batches, ready: VecDeque::new(), count: 0 })
    }

    /// The next row and its number, counted from 1.
    pub(super) fn next_row(&mut self) -> Result<Option<(usize, String)>> {
        while self.ready.is_empty() {
            let batches = &mut self.batches;
            let Some(batch) = guarded(&self.path, || batches.next().transpose())? else {
                return Ok(None);
            };
            let json = guarded(&self.path, || {
                let mut writer = LineDelimitedWriter::new(Vec::new());
                writer.write(&batch)?;
                writer.finish()?;
                Ok::<_, arrow_schema::ArrowError>(writer.into_inner())
            })?;
            let json = String::from_utf8(json)
                .map_err(|_| Error::file(&self.path, "holds texts that are not UTF-8"))?;
            self.ready.extend(json.lines().map(str::to_owned));
        }
        let Some(row) = self.ready.pop_front() else { return Ok(None) };
        self.count += 1;
        match row.len() as u64 > MAX_ROW_BYTES {
            true => {
                let problem = format!("is longer than {} MiB", MAX_ROW_BYTES >> 20);
                Err(Error::line(&self.path, self.count, problem))
            }
            false => Ok(Some((self.count, row))),
        }
    }
}

/// One call of the library, its error as one line. It panics on some faults of a file.
fn guarded<T, E: std::fmt::Display>(path: &Path, call: impl FnOnce() -> Result<T, E>) -> Result<T> {
    let problem = match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(error)) => sanitize(&error.to_string()),
        Err(_) => "one of its parts is malformed".to_owned(),
    };
    Err(Error::file(path, format!("cannot be read as Parquet: {problem}")))
}
