//! The rows of a run's tables and their Parquet encoding.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow_array::builder::{Float32Builder, ListBuilder, UInt32Builder};
use arrow_array::{
    ArrayRef, Float32Array, ListArray, RecordBatch, StringArray, UInt32Array, UInt64Array,
};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use fathom_model::{Error, Result};
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;

use super::{RunTable, measures};
use crate::{Measure, NormCurves, Sink, TraceDetection};

/// Maximum rows per row group, which bounds the writer's memory.
const ROW_GROUP_ROWS: usize = 1 << 17;

/// Sink scores of a trace, reduced per layer: Sink score (docs/definitions.md).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TraceScores {
    /// One entry per layer.
    pub layers: Vec<LayerScores>,
}

/// Sink scores of one layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerScores {
    /// Mean over heads, `[T]`.
    pub mean: Vec<f32>,
    /// Maximum over heads, `[T]`.
    pub max: Vec<f32>,
    /// The head of the maximum, ties going to the lowest, `[T]`.
    pub max_head: Vec<u32>,
    /// (position, score of every head) for the requested positions, ascending.
    pub heads: Vec<(usize, Vec<f32>)>,
    /// (position, heads) of the tokens whose score is above [`Measure::SCORE_ABOVE`] at some heads,
    /// both ascending.
    pub above: Vec<(usize, Vec<usize>)>,
}

impl LayerScores {
    /// Reduces the scores of a layer, `[heads, T]`, and stores the score of every head at the
    /// positions `keep`.
    pub fn new(scores: &[f32], heads: usize, keep: impl Iterator<Item = usize>) -> LayerScores {
        let tokens = scores.len() / heads.max(1);
        let (mut mean, mut max) = (vec![0.0; tokens], vec![f32::NEG_INFINITY; tokens]);
        let mut max_head = vec![0; tokens];
        for (head, row) in (0u32..).zip(scores.chunks_exact(tokens.max(1))) {
            for (t, score) in row.iter().enumerate() {
                mean[t] += score / heads as f32;
                if *score > max[t] {
                    (max[t], max_head[t]) = (*score, head);
                }
            }
        }
        let score = |t: usize, head: usize| scores[head * tokens + t];
        let of_heads = |t: usize| (0..heads).map(|head| score(t, head)).collect();
        let is_above = |score: f32| score > Measure::SCORE_ABOVE;
        let heads_above = |t| (0..heads).filter(|head| is_above(score(t, *head))).collect();
        let above = (0..tokens).filter(|t| is_above(max[*t])).map(|t| (t, heads_above(t)));
        let above = above.collect();
        let heads = keep.map(|t| (t, of_heads(t))).collect();
        LayerScores { mean, max, max_head, heads, above }
    }
}

/// The columns that identify a trace in every table.
#[derive(Clone, Copy)]
pub(super) struct TraceId {
    /// 0-based number in the run.
    pub trace: u32,
    pub sample_index: u64,
}

impl TraceId {
    fn columns(self, rows: usize) -> [ArrayRef; 2] {
        [
            Arc::new(UInt32Array::from_value(self.trace, rows)),
            Arc::new(UInt64Array::from_value(self.sample_index, rows)),
        ]
    }
}

/// Columns of a table.
pub(super) fn schema(table: RunTable) -> SchemaRef {
    let id = [field("trace", DataType::UInt32), field("sample_index", DataType::UInt64)];
    let own = match table {
        RunTable::Sinks => vec![
            field("position", DataType::UInt32),
            field("token_id", DataType::UInt32),
            nullable("token_text", DataType::Utf8),
            field("class", DataType::Utf8),
            field("l_start", DataType::UInt32),
            field("lifetime", DataType::UInt32),
            field("layers", list(DataType::UInt32)),
            nullable("min_cosine", DataType::Float32),
            nullable("mean_cosine", DataType::Float32),
            nullable("hidden_norm", DataType::Float32),
            nullable("mlp_out_norm", DataType::Float32),
            nullable("key_norm", DataType::Float32),
            nullable("value_norm", DataType::Float32),
        ],
        RunTable::Norms => vec![
            nullable("position", DataType::UInt32), // null: the average non-sink token
            field("layer", DataType::UInt32),
            field("hidden_norm", DataType::Float32),
            field("key_norm", DataType::Float32),
            field("value_norm", DataType::Float32),
        ],
        RunTable::Tokens => vec![
            field("position", DataType::UInt32),
            field("token_id", DataType::UInt32),
            nullable("token_text", DataType::Utf8),
        ],
        RunTable::Measures => measures::columns(),
        RunTable::Scores => vec![
            field("layer", DataType::UInt32),
            field("position", DataType::UInt32),
            field("mean", DataType::Float32),
            field("max", DataType::Float32),
            field("max_head", DataType::UInt32),
            nullable("heads", list(DataType::Float32)),
        ],
    };
    Arc::new(Schema::new(id.into_iter().chain(own).collect::<Vec<_>>()))
}

pub(super) fn field(name: &str, kind: DataType) -> Field {
    Field::new(name, kind, false)
}

pub(super) fn nullable(name: &str, kind: DataType) -> Field {
    Field::new(name, kind, true)
}

pub(super) fn list(item: DataType) -> DataType {
    DataType::List(Arc::new(Field::new("item", item, true)))
}

/// A writer of one table to `file`, which error messages call `path`.
pub(super) struct TableWriter<'a> {
    writer: ArrowWriter<&'a File>,
    schema: SchemaRef,
    path: &'a Path,
}

impl<'a> TableWriter<'a> {
    pub fn new(table: RunTable, file: &'a File, path: &'a Path) -> Result<TableWriter<'a>> {
        let properties = WriterProperties::builder()
            .set_compression(Compression::SNAPPY)
            .set_created_by("fathom".to_owned()) // not the parquet version: bytes are compared
            .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
            .build();
        let schema = schema(table);
        let writer = ArrowWriter::try_new(file, Arc::clone(&schema), Some(properties))
            .map_err(|error| parquet_error(path, error))?;
        Ok(TableWriter { writer, schema, path })
    }

    pub fn batch(&mut self, batch: &RecordBatch) -> Result<()> {
        self.writer.write(batch).map_err(|error| parquet_error(self.path, error))
    }

    pub fn finish(self) -> Result<()> {
        self.writer.close().map(|_| ()).map_err(|error| parquet_error(self.path, error))
    }

    pub fn columns(&mut self, id: TraceId, rows: usize, own: Vec<ArrayRef>) -> Result<()> {
        let columns = id.columns(rows).into_iter().chain(own).collect();
        let batch = RecordBatch::try_new(Arc::clone(&self.schema), columns)
            .map_err(|error| Error::file(self.path, format!("cannot be written: {error}")))?;
        self.batch(&batch)
    }

    /// The sinks of a trace.
    pub fn sinks(&mut self, id: TraceId, detection: &TraceDetection) -> Result<()> {
        let sinks = &detection.sinks;
        let mut layers = ListBuilder::new(UInt32Builder::new());
        for sink in sinks {
            layers.append_value(sink.layers.iter().map(|l| Some(number(*l))));
        }
        let text = |read: &dyn Fn(&Sink) -> Option<String>| -> ArrayRef {
            Arc::new(sinks.iter().map(read).collect::<StringArray>())
        };
        let measure = |read: &dyn Fn(&crate::Measures) -> Option<f32>| -> ArrayRef {
            let values = sinks.iter().map(|sink| sink.measures.as_ref().and_then(read));
            Arc::new(values.collect::<Float32Array>())
        };
        let columns = vec![
            numbers(sinks.iter().map(|sink| sink.position)),
            Arc::new(sinks.iter().map(|sink| Some(sink.token_id)).collect::<UInt32Array>()),
            text(&|sink| sink.token_text.clone()),
            text(&|sink| Some(sink.class.name().to_owned())),
            numbers(sinks.iter().map(Sink::l_start)),
            numbers(sinks.iter().map(Sink::lifetime)),
            Arc::new(layers.finish()),
            measure(&|m| Some(m.min_cosine)),
            measure(&|m| Some(m.mean_cosine)),
            measure(&|m| Some(m.hidden_norm)),
            measure(&|m| Some(m.mlp_out_norm)),
            measure(&|m| m.key_norm),
            measure(&|m| m.value_norm),
        ];
        self.columns(id, sinks.len(), columns)
    }

    /// The norm curves of a trace.
    pub fn norms(&mut self, id: TraceId, curves: &NormCurves) -> Result<()> {
        let tokens = curves.tokens.iter().map(|(position, curve)| (Some(number(*position)), curve));
        for (position, curve) in tokens.chain(curves.average.iter().map(|curve| (None, curve))) {
            let layers = curve.hidden.len();
            let columns: Vec<ArrayRef> = vec![
                Arc::new(UInt32Array::from(vec![position; layers])),
                numbers(0..layers),
                floats(&curve.hidden),
                floats(&curve.key),
                floats(&curve.value),
            ];
            self.columns(id, layers, columns)?;
        }
        Ok(())
    }

    /// The tokens of a trace.
    pub fn tokens(
        &mut self,
        id: TraceId,
        ids: &[u32],
        texts: &BTreeMap<u32, String>,
    ) -> Result<()> {
        let text = |id: &u32| texts.get(id).map(String::as_str);
        let columns: Vec<ArrayRef> = vec![
            numbers(0..ids.len()),
            Arc::new(UInt32Array::from(ids.to_vec())),
            Arc::new(ids.iter().map(text).collect::<StringArray>()),
        ];
        self.columns(id, ids.len(), columns)
    }

    /// The sink scores of a trace.
    pub fn scores(&mut self, id: TraceId, scores: &TraceScores) -> Result<()> {
        for (l, layer) in scores.layers.iter().enumerate() {
            let tokens = layer.mean.len();
            let columns: Vec<ArrayRef> = vec![
                Arc::new(UInt32Array::from_value(number(l), tokens)),
                numbers(0..tokens),
                floats(&layer.mean),
                floats(&layer.max),
                Arc::new(UInt32Array::from(layer.max_head.clone())),
                Arc::new(head_lists(layer)),
            ];
            self.columns(id, tokens, columns)?;
        }
        Ok(())
    }
}

/// The scores of every head where they were kept, null elsewhere; length T.
fn head_lists(layer: &LayerScores) -> ListArray {
    let mut lists = ListBuilder::new(Float32Builder::new());
    let mut kept = layer.heads.iter().peekable();
    for t in 0..layer.mean.len() {
        match kept.next_if(|(position, _)| *position == t) {
            Some((_, heads)) => lists.append_value(heads.iter().copied().map(Some)),
            None => lists.append_null(),
        }
    }
    lists.finish()
}

/// Saturating conversion; positions and layers are far below 2³².
pub(super) fn number(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

pub(super) fn numbers(values: impl Iterator<Item = usize>) -> ArrayRef {
    Arc::new(UInt32Array::from_iter_values(values.map(number)))
}

fn floats(values: &[f32]) -> ArrayRef {
    Arc::new(Float32Array::from(values.to_vec()))
}

/// Converts an error of the parquet library.
pub(super) fn parquet_error(path: &Path, error: ParquetError) -> Error {
    match error {
        ParquetError::External(source) => match source.downcast::<std::io::Error>() {
            Ok(source) => Error::io(path, "cannot be read or written")(*source),
            Err(source) => Error::file(path, format!("cannot be read or written: {source}")),
        },
        error => Error::file(path, format!("cannot be read or written: {error}")),
    }
}
