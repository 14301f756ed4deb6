//! Traces: what a model was asked and what it answered, one JSON object a line.

use std::path::{Path, PathBuf};

use crate::jsonl::{Lines, Record, TokenId};
use crate::text_encoder::TextEncoder;
use crate::{Error, Result};

/// One line of a trace file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// The file it came from.
    pub path: PathBuf,
    /// 1-based line number in that file.
    pub line: usize,
    /// The sample index published with it (`index`, `sample_idx` or `id`); its 0-based line otherwise.
    pub index: u64,
    /// What was recorded.
    pub content: TraceContent,
}

/// What a trace records: the ids themselves, or the text to make them from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TraceContent {
    /// `input_ids`: used as they are.
    Ids {
        /// Prompt and answer.
        input_ids: Vec<u32>,
        /// How many of them are the prompt; 0 where the line does not say.
        prompt_len: usize,
    },
    /// `prompt` and `output`.
    Text {
        /// What the model was asked.
        prompt: String,
        /// What it answered; may be empty.
        output: String,
    },
}

/// A trace as the model sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenizedTrace {
    /// See [`Trace::index`].
    pub index: u64,
    /// 1-based line number in the trace file.
    pub line: usize,
    /// Prompt and answer; never empty, all below the model's vocabulary size, at most one leading BOS.
    pub ids: Vec<u32>,
    /// How many of `ids` are the prompt, chat-template tokens included; 0 where that is not known.
    pub prompt_len: usize,
}

impl Trace {
    /// Reads one line: an object with `input_ids` (and `prompt_len`), or with `prompt` and `output`.
    /// Where both are there the ids are used; other keys are ignored.
    ///
    /// # Errors
    /// Anything else, with the file and the line in the message.
    pub fn parse(path: &Path, line: usize, text: &str) -> Result<Trace> {
        let record = Record::parse(path, line, text)?;
        let index = record
            .first_integer(&["index", "sample_idx", "id"])
            .unwrap_or(line.saturating_sub(1) as u64);
        let content = if record.has("input_ids") { ids(&record)? } else { prompt_output(&record)? };
        Ok(Trace { path: path.to_owned(), line, index, content })
    }

    /// The token ids of the trace.
    ///
    /// Text with a chat template: the template renders the prompt as one user message up to where the
    /// answer begins, and the output follows; no special tokens are added. Text without one: the prompt gets
    /// the special tokens a bare text gets, and the output follows.
    ///
    /// # Errors
    /// Text without a tokenizer; a template that fails; no tokens at all; two leading BOS; an id
    /// outside the model's vocabulary.
    pub fn token_ids(&self, encoder: &TextEncoder) -> Result<TokenizedTrace> {
        let (ids, prompt_len) = match &self.content {
            TraceContent::Ids { input_ids, prompt_len } => (input_ids.clone(), *prompt_len),
            TraceContent::Text { prompt, output } => {
                let mut ids = encoder.prompt_ids(prompt).map_err(|error| self.locate(error))?;
                let prompt_len = ids.len();
                ids.extend(encoder.output_ids(output).map_err(|error| self.locate(error))?);
                (ids, prompt_len)
            }
        };
        encoder.check_ids(&ids).map_err(|error| self.locate(error))?;
        Ok(TokenizedTrace { index: self.index, line: self.line, ids, prompt_len })
    }

    /// Puts the trace's place before a message that has none; one that names a file keeps it.
    fn locate(&self, error: Error) -> Error {
        match error {
            Error::Request(problem) => self.error(problem),
            other => other,
        }
    }

    fn error(&self, problem: impl Into<String>) -> Error {
        Error::line(&self.path, self.line, problem)
    }
}

fn ids(record: &Record) -> Result<TraceContent> {
    let ids: Vec<TokenId> =
        record.get("input_ids", "a list of token ids (whole numbers ≥ 0)")?.unwrap_or_default();
    if ids.is_empty() {
        return Err(record.error("`input_ids` is empty"));
    }
    let prompt_len: usize = record.get("prompt_len", "a whole number ≥ 0")?.unwrap_or(0);
    if prompt_len > ids.len() {
        return Err(record.error(format!(
            "`prompt_len` is {prompt_len} but there are only {} `input_ids`",
            ids.len()
        )));
    }
    Ok(TraceContent::Ids { input_ids: ids.into_iter().map(|TokenId(id)| id).collect(), prompt_len })
}

fn prompt_output(record: &Record) -> Result<TraceContent> {
    let prompt: Option<String> = record.get("prompt", "a string")?;
    let output: Option<String> = record.get("output", "a string")?;
    match (prompt, output) {
        (Some(prompt), Some(output)) if prompt.is_empty() && output.is_empty() => {
            Err(record.error("`prompt` and `output` are both empty"))
        }
        (Some(prompt), Some(output)) => Ok(TraceContent::Text { prompt, output }),
        (prompt, output) => {
            let missing = match (prompt, output) {
                (None, None) => "neither `input_ids` nor `prompt` and `output`",
                (None, _) => "`output` but no `prompt`",
                _ => "`prompt` but no `output`",
            };
            Err(record.error(format!(
                "has {missing}; a trace is {{\"input_ids\": [...]}} or \
                 {{\"prompt\": \"...\", \"output\": \"...\"}}"
            )))
        }
    }
}

/// Reads a trace file line by line; only one line is held at a time.
pub struct TraceReader {
    lines: Lines,
}

impl TraceReader {
    /// Opens a JSONL file of traces.
    ///
    /// # Errors
    /// A file that cannot be opened.
    pub fn open(path: &Path) -> Result<TraceReader> {
        Ok(TraceReader { lines: Lines::open(path)? })
    }
}

impl Iterator for TraceReader {
    type Item = Result<Trace>;

    fn next(&mut self) -> Option<Result<Trace>> {
        let next = self.lines.next_line().transpose()?;
        Some(next.and_then(|(line, text)| Trace::parse(self.lines.path(), line, &text)))
    }
}
