//! A trace file as token ids, with what was remarkable about it.

use std::path::Path;

use fathom_model::{
    Error, ModelConfig, Remark, Remarks, Result, RowFields, TokenizedTrace, Trace, TraceReader,
    Writer,
};
use fathom_sinks::{ReadNote, Skipped, ids_sha256};

use crate::model_args::TextFiles;
use crate::model_source::ModelSource;

/// Traces of a data set as token ids.
pub struct Traces {
    pub traces: Vec<TokenizedTrace>,
    /// The models that wrote their ids.
    pub writers: Vec<Writer>,
    /// What was read of the file.
    pub note: ReadNote,
}

/// How rows are to be read.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    pub fields: RowFields,
    /// Take so many traces.
    pub limit: Option<usize>,
    /// Pass over rows that cannot be read.
    pub skip_bad_lines: bool,
}

/// The first traces of a data set; what is remarkable about them is added to `remarks`.
///
/// # Errors
/// A file that cannot be read or holds no traces; a row that is none, or that cannot become ids,
/// unless such rows are passed over.
pub fn read_traces(
    path: &Path,
    text: &TextFiles,
    config: &ModelConfig,
    reading: &Reading,
    remarks: &mut Remarks,
) -> Result<Traces> {
    let Reading { fields, limit, skip_bad_lines } = reading;
    let mut reader = TraceReader::open_with(path, fields.clone())?;
    let mut traces = Vec::new();
    let mut skipped = Skipped::default();
    while traces.len() < limit.unwrap_or(usize::MAX) {
        let Some(trace) = reader.next() else { break };
        match trace.and_then(|trace| tokenize(trace, text, config, remarks)) {
            Ok(trace) => traces.push(trace),
            Err(error @ Error::Line { .. }) if *skip_bad_lines => skipped.add(error.to_string()),
            Err(error) => return Err(error),
        }
    }
    remarks.extend(reader.remarks().iter().cloned());
    if let Some(first) = skipped.lines.first() {
        let text = format!("passed over {} rows, the first because: {first}", skipped.count);
        remarks.add(Remark::advice("skipped-rows", text));
    }
    if traces.is_empty() {
        return Err(Error::file(path, "holds no traces"));
    }
    let note = ReadNote {
        traces: traces.len(),
        ids_sha256: ids_sha256(&traces),
        fields: reader.shapes().clone(),
        named: fields.clone(),
        skipped,
    };
    Ok(Traces { traces, writers: reader.writers().to_vec(), note })
}

/// As [`read_traces`], one trace, counted from 0, or from -1 at the end. The others are read, but
/// not tokenised.
///
/// # Errors
/// As [`read_traces`]; fewer traces than that.
pub fn read_trace(
    path: &Path,
    text: &TextFiles,
    config: &ModelConfig,
    fields: &RowFields,
    index: i64,
    remarks: &mut Remarks,
) -> Result<(TokenizedTrace, Vec<Writer>)> {
    let absent = || Error::file(path, format!("has no trace {index}, counted from 0"));
    let open = || TraceReader::open_with(path, fields.clone());
    let from_start = match index {
        0.. => index,
        from_end => open()?.count() as i64 + from_end,
    };
    let index = usize::try_from(from_start).map_err(|_| absent())?;
    let mut reader = open()?;
    if let Some(before) = index.checked_sub(1) {
        reader.nth(before);
    }
    reader.forget(); // what was remarkable about the rows before
    let trace = tokenize(reader.next().ok_or_else(absent)??, text, config, remarks)?;
    remarks.extend(reader.remarks().iter().cloned());
    Ok((trace, reader.writers().to_vec()))
}

fn tokenize(
    trace: Trace,
    text: &TextFiles,
    config: &ModelConfig,
    remarks: &mut Remarks,
) -> Result<TokenizedTrace> {
    let trace = match &text.options.system {
        Some(system) => trace.with_system(system),
        None => trace,
    };
    let mut trace = trace.token_ids(&text.encoder(config.vocab))?;
    remarks.extend(std::mem::take(&mut trace.remarks));
    Ok(trace)
}

/// Remarks on ids that another model than this one wrote: they may mean something else here.
///
/// # Errors
/// Weights that cannot be read.
pub fn of_other_writers(
    path: &Path,
    writers: &[Writer],
    source: &ModelSource,
    config: &ModelConfig,
) -> Result<Vec<Remark>> {
    if writers.is_empty() {
        return Ok(Vec::new()); // the weights need not be looked at
    }
    let here = source.checkpoint(config)?.fingerprint();
    let others = writers.iter().filter(|writer| writer.weights != here);
    Ok(others
        .map(|writer| {
            let text = format!(
                "the ids were written by `{}`, another model than this one; they stand for the same text \
                 only where both have the same tokenizer",
                writer.model
            );
            let remark = Remark::line("ids-of-another-model", path, writer.line, text);
            Remark { count: writer.lines, ..remark }
        })
        .collect())
}
