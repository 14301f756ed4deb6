//! Reads the rows of a Parquet file, including nested lists and structs.

use std::collections::VecDeque;
use std::fs::File;
use std::path::{Path, PathBuf};

use arrow_json::LineDelimitedWriter;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};

use super::MAX_ROW_BYTES;
use crate::guarded::guarded;
use crate::{Error, Result};

/// Rows decoded at a time. A row group's columns are decoded page by page.
const BATCH_ROWS: usize = 32;
/// A row group may claim at most `FREE_BYTES` plus `MAX_RATIO` times the size of the file.
const MAX_RATIO: u64 = 1000;
const FREE_BYTES: u64 = 256 << 20;

/// Converts each row to a JSON object. Nulls are left out.
pub(super) struct ParquetRows {
    path: PathBuf,
    batches: ParquetRecordBatchReader,
    ready: VecDeque<String>,
    /// Number of rows returned so far.
    count: usize,
}

impl ParquetRows {
    pub(super) fn open(path: &Path, file: File) -> Result<ParquetRows> {
        let size = file.metadata().map_err(Error::io(path, "cannot be read"))?.len();
        let builder = read_guarded(path, || ParquetRecordBatchReaderBuilder::try_new(file))?;
        let most = FREE_BYTES.saturating_add(MAX_RATIO.saturating_mul(size));
        for (number, group) in builder.metadata().row_groups().iter().enumerate() {
            let claimed = u64::try_from(group.total_byte_size()).unwrap_or(u64::MAX);
            let rows = u64::try_from(group.num_rows()).unwrap_or(u64::MAX);
            if claimed.max(rows) > most {
                let problem = format!(
                    "row group {number} claims {rows} rows of {claimed} bytes, which a file of \
                     {size} bytes cannot hold"
                );
                return Err(Error::file(path, problem));
            }
        }
        let batches = read_guarded(path, || builder.with_batch_size(BATCH_ROWS).build())?;
        Ok(ParquetRows { path: path.to_owned(), batches, ready: VecDeque::new(), count: 0 })
    }

    /// The next row and its 1-based number.
    pub(super) fn next_row(&mut self) -> Result<Option<(usize, String)>> {
        while self.ready.is_empty() {
            let batches = &mut self.batches;
            let Some(batch) = read_guarded(&self.path, || batches.next().transpose())? else {
                return Ok(None);
            };
            let json = read_guarded(&self.path, || {
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

/// Calls the `parquet` crate; see [`guarded`].
fn read_guarded<T, E: std::fmt::Display>(
    path: &Path,
    call: impl FnOnce() -> Result<T, E>,
) -> Result<T> {
    guarded(call)
        .map_err(|problem| Error::file(path, format!("cannot be read as Parquet: {problem}")))
}
