//! Traces as token ids, read from a file or given in memory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use fathom_model::{
    Error, Remark, Remarks, Result, RowFields, TokenizedTrace, Trace, TraceContent, TraceReader,
    Writer, data_files,
};
use fathom_sinks::{ReadNote, Skipped, TracesNote, ids_sha256};
use serde_json::Value;

use crate::model::ModelFiles;

/// The file name that a run records for traces given in memory.
pub(crate) const IN_MEMORY: &str = "(in memory)";

/// How the rows of a data set are read into traces.
#[derive(Clone, Debug, Default)]
pub struct ReadOptions {
    /// The fields that hold prompt and output. Default: the fields of published data sets.
    pub fields: RowFields,
    /// Read the first `limit` traces only.
    pub limit: Option<usize>,
    /// Skip rows that cannot be read instead of failing.
    pub skip_bad_lines: bool,
}

/// Traces as token ids: prompts with the model's answers.
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// use fathom_lm::{Model, Traces};
/// use serde_json::json;
///
/// fathom_lm::demo::plant(dir.path(), &Default::default())?;
/// let model = Model::load(dir.path().display().to_string())?;
///
/// // A JSONL, JSON or Parquet file, compressed or not; a directory or a glob of such files.
/// let traces = Traces::read(dir.path().join("traces.jsonl"), &model)?;
/// assert_eq!(traces.len(), 6);
/// assert!(traces.remarks().is_empty());
///
/// // Rows like those of a file, or token ids.
/// let rows = [json!({ "prompt": "hello", "output": "hello there" })];
/// let traces = Traces::from_rows(rows, &model)?;
/// let trace = &traces.as_slice()[0];
/// assert_eq!(trace.ids[..trace.prompt_len], model.encode("hello")?.ids[..]);
/// let again = Traces::from_ids([trace.ids.clone()], &model)?;
/// assert_eq!(again.as_slice()[0].ids, trace.ids);
///
/// let error = Traces::from_rows([json!({ "prompt": "hello" })], &model).unwrap_err();
/// assert!(error.to_string().contains("line 1: has `prompt` but no `output`"), "{error}");
/// # Ok::<(), fathom_lm::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Traces {
    traces: Vec<TokenizedTrace>,
    /// The file they were read from; `None` for traces given in memory.
    path: Option<PathBuf>,
    note: ReadNote,
    remarks: Vec<Remark>,
}

impl Traces {
    /// Reads all traces of a data set.
    ///
    /// # Errors
    /// A file that cannot be read or holds no traces; a row that is not a trace or cannot be
    /// encoded.
    pub fn read(path: impl AsRef<Path>, model: &impl AsRef<ModelFiles>) -> Result<Traces> {
        Traces::read_with(path, model, &ReadOptions::default())
    }

    /// Reads traces of a data set with options.
    ///
    /// # Errors
    /// As [`Traces::read`], except for rows that the options skip.
    pub fn read_with(
        path: impl AsRef<Path>,
        model: &impl AsRef<ModelFiles>,
        options: &ReadOptions,
    ) -> Result<Traces> {
        let (path, files) = (path.as_ref(), model.as_ref());
        let ReadOptions { fields, limit, skip_bad_lines } = options;
        let mut reader = TraceReader::open_with(path, fields.clone())?;
        let mut remarks = Remarks::new();
        let mut traces = Vec::new();
        let mut skipped = Skipped::default();
        while traces.len() < limit.unwrap_or(usize::MAX) {
            let Some(trace) = reader.next() else { break };
            match trace.and_then(|trace| tokenize(trace, files, &mut remarks)) {
                Ok(trace) => traces.push(trace),
                Err(error @ Error::Line { .. }) if *skip_bad_lines => {
                    skipped.add(error.to_string());
                }
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
        remarks.extend(other_model_remarks(path, reader.writers(), files)?);
        let note =
            ReadNote { fields: reader.shapes().clone(), skipped, ..note(&traces, fields.clone()) };
        Ok(Traces { traces, path: Some(path.to_owned()), note, remarks: remarks.into_vec() })
    }

    /// Reads one trace of a data set. `index` counts from 0, or from -1 at the end. Other traces
    /// are parsed but not tokenized.
    ///
    /// # Errors
    /// As [`Traces::read`]; an index out of range.
    pub fn read_one(
        path: impl AsRef<Path>,
        model: &impl AsRef<ModelFiles>,
        fields: &RowFields,
        index: i64,
    ) -> Result<Traces> {
        let (path, files) = (path.as_ref(), model.as_ref());
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
        reader.clear_findings(); // remarks about the rows before this one
        let mut remarks = Remarks::new();
        let trace = tokenize(reader.next().ok_or_else(absent)??, files, &mut remarks)?;
        remarks.extend(reader.remarks().iter().cloned());
        remarks.extend(other_model_remarks(path, reader.writers(), files)?);
        let traces = vec![trace];
        let note = note(&traces, fields.clone());
        Ok(Traces { traces, path: Some(path.to_owned()), note, remarks: remarks.into_vec() })
    }

    /// Traces from rows like those of a file, one JSON object each.
    ///
    /// # Errors
    /// No rows; a row that is not a trace or cannot be encoded.
    pub fn from_rows(
        rows: impl IntoIterator<Item = Value>,
        model: &impl AsRef<ModelFiles>,
    ) -> Result<Traces> {
        let (fields, mut remarks) = (RowFields::default(), Remarks::new());
        let mut traces = Vec::new();
        for (index, row) in rows.into_iter().enumerate() {
            let (place, text) = (Path::new(IN_MEMORY), row.to_string());
            traces.extend(Trace::read(place, index + 1, &text, &fields, &mut remarks)?);
        }
        Traces::in_memory(traces, model.as_ref(), remarks)
    }

    /// Traces from token ids.
    ///
    /// # Errors
    /// No traces; a trace without ids, with two leading BOS, or with an id outside the vocabulary.
    pub fn from_ids(
        traces: impl IntoIterator<Item = Vec<u32>>,
        model: &impl AsRef<ModelFiles>,
    ) -> Result<Traces> {
        let trace = |(index, input_ids)| Trace {
            path: PathBuf::from(IN_MEMORY),
            line: index + 1,
            index: index as u64,
            content: TraceContent::Ids { input_ids, prompt_len: 0 },
        };
        let traces = traces.into_iter().enumerate().map(trace).collect();
        Traces::in_memory(traces, model.as_ref(), Remarks::new())
    }

    fn in_memory(traces: Vec<Trace>, files: &ModelFiles, mut remarks: Remarks) -> Result<Traces> {
        if traces.is_empty() {
            let problem = "there are no traces; expected at least one";
            return Err(Error::Request(problem.to_owned()));
        }
        let traces = traces.into_iter().map(|trace| tokenize(trace, files, &mut remarks));
        let traces = traces.collect::<Result<Vec<_>>>()?;
        let note = note(&traces, RowFields::default());
        Ok(Traces { traces, path: None, note, remarks: remarks.into_vec() })
    }

    /// The number of traces, at least one.
    pub fn len(&self) -> usize {
        self.traces.len()
    }

    /// Always `false`: there is at least one trace.
    pub fn is_empty(&self) -> bool {
        self.traces.is_empty()
    }

    /// Iterates over the traces.
    pub fn iter(&self) -> impl Iterator<Item = &TokenizedTrace> {
        self.traces.iter()
    }

    /// The traces as a slice.
    pub fn as_slice(&self) -> &[TokenizedTrace] {
        &self.traces
    }

    /// How the rows were read: the fields used and the rows skipped.
    pub fn note(&self) -> &ReadNote {
        &self.note
    }

    /// Remarks: what was ignored, repaired or is doubtful in the rows. Each kind appears once, with
    /// its first occurrence and a count.
    pub fn remarks(&self) -> &[Remark] {
        &self.remarks
    }

    /// Whether they came from standard input and cannot be read again.
    pub(crate) fn are_piped(&self) -> Result<bool> {
        self.path.as_deref().map_or(Ok(false), is_piped)
    }

    /// The traces' entry in a run's manifest.
    ///
    /// # Errors
    /// The file can no longer be read.
    pub(crate) fn to_note(&self) -> Result<TracesNote> {
        let note = match &self.path {
            Some(path) => TracesNote::new(path)?,
            None => TracesNote {
                file: IN_MEMORY.to_owned(),
                sha256: String::new(),
                read: None,
                grown: Vec::new(),
            },
        };
        Ok(TracesNote { read: Some(self.note.clone()), ..note })
    }
}

/// Whether a path stands for standard input, which can be read only once.
///
/// # Errors
/// A glob or directory without data files.
pub fn is_piped(path: &Path) -> Result<bool> {
    Ok(data_files(path)?.is_none())
}

fn note(traces: &[TokenizedTrace], named: RowFields) -> ReadNote {
    ReadNote {
        traces: traces.len(),
        ids_sha256: ids_sha256(traces),
        fields: BTreeMap::new(),
        named,
        skipped: Skipped::default(),
    }
}

fn tokenize(trace: Trace, files: &ModelFiles, remarks: &mut Remarks) -> Result<TokenizedTrace> {
    let text = files.text();
    let trace = match &text.options.system {
        Some(system) => trace.with_system(system),
        None => trace,
    };
    let mut trace = trace.token_ids(&text.encoder(files.config().vocab))?;
    remarks.extend(std::mem::take(&mut trace.remarks));
    Ok(trace)
}

/// Remarks about token ids generated by a different model: its tokenizer may differ.
fn other_model_remarks(path: &Path, writers: &[Writer], files: &ModelFiles) -> Result<Vec<Remark>> {
    if writers.is_empty() {
        return Ok(Vec::new()); // saves hashing the weights
    }
    let here = files.source().checkpoint(files.config())?.fingerprint();
    let others = writers.iter().filter(|writer| writer.weights != here);
    Ok(others
        .map(|writer| {
            let text = format!(
                "the ids were written by `{}`, another model than this one; they stand for the \
                 same text only if both have the same tokenizer",
                writer.model
            );
            let remark = Remark::line("ids-of-another-model", path, writer.line, text);
            Remark { count: writer.lines, ..remark }
        })
        .collect())
}
