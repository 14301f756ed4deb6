//! A trace file as token ids, with what was remarkable about it.

use std::path::Path;

use fathom_model::{
    Error, ModelConfig, Remark, Remarks, Result, TokenizedTrace, Trace, TraceReader, Writer,
};

use crate::model_args::TextFiles;
use crate::model_source::ModelSource;

/// The first `limit` traces of a file, and the models that wrote their ids; what is remarkable about them
/// is added to `remarks`.
///
/// # Errors
/// A file that cannot be read or holds no traces; a line that is none, or that cannot become ids.
pub fn read_traces(
    path: &Path,
    text: &TextFiles,
    config: &ModelConfig,
    limit: Option<usize>,
    remarks: &mut Remarks,
) -> Result<(Vec<TokenizedTrace>, Vec<Writer>)> {
    let mut reader = TraceReader::open(path)?;
    let traces = reader.by_ref().take(limit.unwrap_or(usize::MAX));
    let traces = traces.map(|trace| tokenize(trace?, text, config, remarks));
    let traces: Vec<TokenizedTrace> = traces.collect::<Result<_>>()?;
    remarks.extend(reader.remarks().iter().cloned());
    match traces.is_empty() {
        true => Err(Error::file(path, "holds no traces")),
        false => Ok((traces, reader.writers().to_vec())),
    }
}

/// As [`read_traces`], one trace, counted from 0, or from -1 at the end. The others are read, but not
/// tokenised.
///
/// # Errors
/// As [`read_traces`]; fewer traces than that.
pub fn read_trace(
    path: &Path,
    text: &TextFiles,
    config: &ModelConfig,
    index: i64,
    remarks: &mut Remarks,
) -> Result<(TokenizedTrace, Vec<Writer>)> {
    let absent = || Error::file(path, format!("has no trace {index}, counted from 0"));
    let from_start = match index {
        0.. => index,
        from_end => TraceReader::open(path)?.count() as i64 + from_end,
    };
    let index = usize::try_from(from_start).map_err(|_| absent())?;
    let mut reader = TraceReader::open(path)?;
    if let Some(before) = index.checked_sub(1) {
        reader.nth(before);
    }
    reader.forget(); // what was remarkable about the lines before
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
