//! Merging part files into tables at the end of a run, and splitting them again.

use std::fs::File;
use std::path::{Path, PathBuf};

use arrow_array::RecordBatch;
use arrow_array::cast::AsArray;
use arrow_array::types::UInt32Type;
use fathom_model::{Error, Result};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::rows::{TableWriter, parquet_error};
use super::{PARTS, RunTable, durable};

/// The part file of one trace and table.
pub(super) fn part(dir: &Path, table: RunTable, trace: usize) -> PathBuf {
    dir.join(PARTS).join(format!("{trace:06}.{}.parquet", table.name()))
}

/// Splits `{table}.parquet` back into the part files of `traces` traces. Rows of one trace are
/// contiguous.
pub(super) fn split(dir: &Path, table: RunTable, traces: usize) -> Result<()> {
    let path = dir.join(format!("{}.parquet", table.name()));
    let file = File::open(&path).map_err(Error::io(&path, "cannot be opened"))?;
    let batches = ParquetRecordBatchReaderBuilder::try_new(file)
        .and_then(|builder| builder.build())
        .map_err(|error| parquet_error(&path, error))?;
    let mut batches = batches
        .map(|batch| batch.map_err(|error| Error::file(&path, format!("cannot be read: {error}"))));
    let mut rest: Option<RecordBatch> = None;
    for trace in 0..traces {
        let part = part(dir, table, trace);
        durable::replace(&part, |file| {
            let mut writer = TableWriter::new(table, file, &part)?;
            loop {
                let batch = match rest.take() {
                    Some(batch) => batch,
                    None => match batches.next().transpose()? {
                        Some(batch) => batch,
                        None => break,
                    },
                };
                let rows = rows_of(&path, &batch, trace)?;
                if rows > 0 {
                    writer.batch(&batch.slice(0, rows))?;
                }
                if rows < batch.num_rows() {
                    rest = Some(batch.slice(rows, batch.num_rows() - rows));
                    break;
                }
            }
            writer.finish()
        })?;
    }
    Ok(())
}

/// Number of rows at the start of a batch that belong to this trace.
fn rows_of(path: &Path, batch: &RecordBatch, trace: usize) -> Result<usize> {
    let column = batch.column_by_name("trace").and_then(|c| c.as_primitive_opt::<UInt32Type>());
    let Some(column) = column else {
        return Err(Error::file(path, "has no integer column `trace`"));
    };
    let same = |row: &Option<u32>| row.is_some_and(|row| row as usize == trace);
    Ok(column.iter().take_while(same).count())
}

/// Merges the part files of `traces` traces into `{table}.parquet`, with one batch in memory at a
/// time.
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
