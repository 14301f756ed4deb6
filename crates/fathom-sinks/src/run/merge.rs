//! The end of a run: parts become tables.

use std::fs::File;
use std::path::{Path, PathBuf};

use arrow_array::RecordBatch;
use arrow_array::cast::AsArray;
use arrow_array::types::UInt32Type;
use fathom_model::{Error, Result};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::rows::{TableWriter, parquet_error};
use super::{PARTS, RunTable, durable};

/// Where the rows of one trace lie until then.
pub(super) fn part(dir: &Path, table: RunTable, trace: usize) -> PathBuf {
    dir.join(PARTS).join(format!("{trace:06}.{}.parquet", table.name()))
}

/// The parts that `{table}.parquet` of `traces` traces was made of: rows of one trace follow each
/// other.
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

/// How many rows at the beginning of a batch are of this trace.
fn rows_of(path: &Path, batch: &RecordBatch, trace: usize) -> Result<usize> {
    let column = batch.column_by_name("trace").and_then(|c| c.as_primitive_opt::<UInt32Type>());
    let Some(column) = column else {
        return Err(Error::file(path, "has no column `trace` of whole numbers"));
    };
    let same = |row: &Option<u32>| row.is_some_and(|row| row as usize == trace);
    Ok(column.iter().take_while(same).count())
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
