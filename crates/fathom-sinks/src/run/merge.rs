//! The end of a run: parts become tables.

use std::fs::File;
use std::path::{Path, PathBuf};

use fathom_model::{Error, Result};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::rows::{TableWriter, parquet_error};
use super::{PARTS, RunTable, durable};

/// Where the rows of one trace lie until then.
pub(super) fn part(dir: &Path, table: RunTable, trace: usize) -> PathBuf {
    dir.join(PARTS).join(format!("{trace:06}.{}.parquet", table.name()))
}

/// Writes `{table}.parquet` from the parts of `traces` traces, one batch in memory at a time.
pub(super) fn merge(dir: &Path, table: RunTable, traces: usize) -> Result<()> {
    let path = dir.join(format!("{}.parquet", table.name()));
    durable::replace(&path, |file| {
        let mut writer = TableWriter::new(table, file, &path)?;
        for trace in 0..traces {
            let part = part(dir, table, trace);
            let file = File::open(&part).map_err(Error::io(&part, "cannot be opened"))?;
            let batches = ParquetRecordBatchReaderBuilder::try_new(file)
                .and_then(|builder| builder.build())
                .map_err(|error| parquet_error(&part, error))?;
            for batch in batches {
                let batch = batch
                    .map_err(|error| Error::file(&part, format!("cannot be read: {error}")))?;
                writer.batch(&batch)?;
            }
        }
        writer.finish()
    })
}
