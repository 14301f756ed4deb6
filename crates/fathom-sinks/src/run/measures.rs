//! The table `measures`: its columns, writing and reading.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow_array::builder::{Float32Builder, ListBuilder, UInt32Builder};
use arrow_array::cast::AsArray;
use arrow_array::types::{ArrowPrimitiveType, Float32Type, UInt32Type};
use arrow_array::{Array, ArrayRef, BooleanArray, Float32Array, ListArray, StringArray};
use arrow_array::{PrimitiveArray, UInt32Array};
use arrow_schema::{DataType, Field};
use fathom_backend::Massive;
use fathom_model::{Error, Result};

use super::read::{Batch, index};
use super::rows::{TableWriter, TraceId, field, list, nullable, number, numbers};
use super::{RunDir, RunTable};
use crate::{Measure, TokenMeasures, TokenScores};

/// A row of the table `measures`.
#[derive(Clone, Debug, PartialEq)]
pub struct MeasureRow {
    /// 0-based number of the trace in the run.
    pub trace: usize,
    /// The token.
    pub token_id: u32,
    /// The token's text, if a tokenizer was available.
    pub token_text: Option<String>,
    /// What was measured.
    pub measures: TokenMeasures,
}

/// The columns after those that identify the trace. Scores are null if attention was not measured.
pub(super) fn columns() -> Vec<Field> {
    vec![
        field("position", DataType::UInt32),
        field("token_id", DataType::UInt32),
        nullable("token_text", DataType::Utf8),
        field("layer", DataType::UInt32),
        field(Measure::Alignment.name(), DataType::Boolean),
        nullable(Measure::Attention.name(), DataType::Boolean),
        field(Measure::Massive.name(), DataType::Boolean),
        field(Measure::Norm.name(), DataType::Boolean),
        nullable("mean_score", DataType::Float32),
        nullable("max_score", DataType::Float32),
        nullable("max_head", DataType::UInt32),
        nullable("heads_above", list(DataType::UInt32)),
        field("massive_count", DataType::UInt32),
        field("massive_dims", list(DataType::UInt32)),
        field("massive_values", list(DataType::Float32)),
        field("norm_ratio", DataType::Float32),
    ]
}

impl TableWriter<'_> {
    /// The measures of a trace whose tokens are `ids`.
    pub fn measures(
        &mut self,
        id: TraceId,
        rows: &[TokenMeasures],
        ids: &[u32],
        texts: &BTreeMap<u32, String>,
    ) -> Result<()> {
        let token = |row: &TokenMeasures| ids.get(row.position);
        let text = |row| token(row).and_then(|id| texts.get(id)).map(String::as_str);
        let holds = |measure| -> ArrayRef {
            let holds = rows.iter().map(|row| match measure {
                Measure::Attention if row.scores.is_none() => None,
                measure => Some(row.holds().contains(measure)),
            });
            Arc::new(holds.collect::<BooleanArray>())
        };
        let scores = || rows.iter().map(|row| row.scores.as_ref());
        let score = |read: fn(&TokenScores) -> f32| -> ArrayRef {
            Arc::new(scores().map(|scores| scores.map(read)).collect::<Float32Array>())
        };
        let heads = scores().map(|scores| scores.map(|scores| number(scores.max_head)));
        let mut above = ListBuilder::new(UInt32Builder::new());
        let mut dims = ListBuilder::new(UInt32Builder::new());
        let mut values = ListBuilder::new(Float32Builder::new());
        for TokenMeasures { scores, massive, .. } in rows {
            above.append_option(
                scores.as_ref().map(|s| s.heads_above.iter().map(|head| Some(number(*head)))),
            );
            dims.append_value(massive.largest.iter().map(|(dim, _)| Some(number(*dim))));
            values.append_value(massive.largest.iter().map(|(_, value)| Some(*value)));
        }
        let columns = vec![
            numbers(rows.iter().map(|row| row.position)),
            Arc::new(rows.iter().map(|row| token(row).copied()).collect::<UInt32Array>()),
            Arc::new(rows.iter().map(text).collect::<StringArray>()),
            numbers(rows.iter().map(|row| row.layer)),
            holds(Measure::Alignment),
            holds(Measure::Attention),
            holds(Measure::Massive),
            holds(Measure::Norm),
            score(|scores| scores.mean),
            score(|scores| scores.max),
            Arc::new(heads.collect::<UInt32Array>()),
            Arc::new(above.finish()),
            numbers(rows.iter().map(|row| row.massive.count)),
            Arc::new(dims.finish()),
            Arc::new(values.finish()),
            Arc::new(Float32Array::from_iter_values(rows.iter().map(|row| row.norm_ratio))),
        ];
        self.columns(id, rows.len(), columns)
    }
}

impl RunDir {
    /// Calls `each` with the measures of the first `traces` traces, trace by trace, by position,
    /// then layer. `false` if the run has none: it was scanned by an earlier version.
    ///
    /// # Errors
    /// A file is not such a table.
    pub fn measures(&self, traces: usize, each: &mut dyn FnMut(MeasureRow)) -> Result<bool> {
        let files = self.table_files(RunTable::Measures, traces);
        if !files.iter().all(|path| path.exists()) {
            return Ok(false);
        }
        let model = &self.manifest.model;
        let names = columns();
        let names: Vec<&str> =
            ["trace"].into_iter().chain(names.iter().map(|f| f.name().as_str())).collect();
        self.batches(RunTable::Measures, traces, &names, &mut |batch| {
            let columns = Columns::of(batch)?;
            for i in 0..columns.trace.len() {
                let row = columns.row(i)?;
                if row.trace >= traces || !row.measures.are_within(model.layers, model.heads) {
                    let problem = "names a trace, layer or head that the run does not have";
                    return Err(Error::file(batch.path, problem));
                }
                each(row);
            }
            Ok(())
        })?;
        Ok(true)
    }
}

/// The columns of a batch.
struct Columns<'a> {
    batch: &'a Batch<'a>,
    trace: &'a UInt32Array,
    position: &'a UInt32Array,
    token_id: &'a UInt32Array,
    token_text: &'a StringArray,
    layer: &'a UInt32Array,
    aligned: &'a BooleanArray,
    large_norm: &'a BooleanArray,
    mean_score: &'a Float32Array,
    max_score: &'a Float32Array,
    max_head: &'a UInt32Array,
    heads_above: &'a ListArray,
    massive_count: &'a UInt32Array,
    massive_dims: &'a ListArray,
    massive_values: &'a ListArray,
    norm_ratio: &'a Float32Array,
}

impl<'a> Columns<'a> {
    fn of(batch: &'a Batch<'a>) -> Result<Columns<'a>> {
        Ok(Columns {
            batch,
            trace: batch.column("trace")?,
            position: batch.column("position")?,
            token_id: batch.column("token_id")?,
            token_text: batch.strings("token_text")?,
            layer: batch.column("layer")?,
            aligned: batch.booleans(Measure::Alignment.name())?,
            large_norm: batch.booleans(Measure::Norm.name())?,
            mean_score: batch.column("mean_score")?,
            max_score: batch.column("max_score")?,
            max_head: batch.column("max_head")?,
            heads_above: batch.lists("heads_above")?,
            massive_count: batch.column("massive_count")?,
            massive_dims: batch.lists("massive_dims")?,
            massive_values: batch.lists("massive_values")?,
            norm_ratio: batch.column("norm_ratio")?,
        })
    }

    fn row(&self, i: usize) -> Result<MeasureRow> {
        let scores = self.heads_above.is_valid(i).then(|| -> Result<TokenScores> {
            let heads = self.items::<UInt32Type>(self.heads_above, "heads_above", i)?;
            Ok(TokenScores {
                mean: self.mean_score.value(i),
                max: self.max_score.value(i),
                max_head: index(self.max_head.value(i)),
                heads_above: heads.values().iter().copied().map(index).collect(),
            })
        });
        let dims = self.items::<UInt32Type>(self.massive_dims, "massive_dims", i)?;
        let values = self.items::<Float32Type>(self.massive_values, "massive_values", i)?;
        let dims = dims.values().iter().copied().map(index);
        let text = self.token_text;
        Ok(MeasureRow {
            trace: index(self.trace.value(i)),
            token_id: self.token_id.value(i),
            token_text: text.is_valid(i).then(|| text.value(i).to_owned()),
            measures: TokenMeasures {
                position: index(self.position.value(i)),
                layer: index(self.layer.value(i)),
                aligned: self.aligned.value(i),
                scores: scores.transpose()?,
                massive: Massive {
                    count: index(self.massive_count.value(i)),
                    largest: dims.zip(values.values().iter().copied()).collect(),
                },
                norm_ratio: self.norm_ratio.value(i),
                large_norm: self.large_norm.value(i),
            },
        })
    }

    /// The items of a list.
    fn items<T: ArrowPrimitiveType>(
        &self,
        lists: &ListArray,
        name: &str,
        i: usize,
    ) -> Result<PrimitiveArray<T>> {
        let items = lists.value(i);
        items.as_primitive_opt::<T>().cloned().ok_or_else(|| self.batch.lacks(name))
    }
}
