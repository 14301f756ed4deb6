//! Traces: recorded prompts and answers of a model, one JSON object per line.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::conversation::Conversation;
use crate::jsonl::{Record, TokenId, standard_json};
use crate::message::Message;
use crate::rows::{Row, Rows};
use crate::shapes::{self, Reading, RowFields};
use crate::text_encoder::{Encoded, TextEncoder, locate};
use crate::{Error, Remark, Remarks, Result};

/// Maximum number of distinct writers recorded per file.
const MAX_WRITERS: usize = 8;

/// One line of a trace file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// The file it came from.
    pub path: PathBuf,
    /// 1-based line number in that file.
    pub line: usize,
    /// The sample index of the line (`index`, `sample_idx` or `id`), or else its 0-based number.
    pub index: u64,
    /// Ids, text or messages.
    pub content: TraceContent,
}

/// The content of a trace: token ids, or the text to encode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TraceContent {
    /// `input_ids`, without the padding marked by an `attention_mask`.
    Ids {
        /// The ids of prompt and answer.
        input_ids: Vec<u32>,
        /// How many of the ids belong to the prompt; 0 if the line does not state it.
        prompt_len: usize,
    },
    /// `prompt` and `output`.
    Text {
        /// The prompt.
        prompt: String,
        /// The answer; may be empty.
        output: String,
    },
    /// A conversation (`messages`, or a prompt with variables such as `tools`) and its answer.
    Messages {
        /// The turns before the answer.
        conversation: Conversation,
        /// The answer.
        answer: Answer,
    },
}

/// The answer to a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The text as the model wrote it.
    Text(String),
    /// An assistant message with fields besides its text, to be rendered by the chat template.
    Turn(Message),
    /// Thinking and answer from separate fields of the data set.
    Thought {
        /// The thinking, which precedes the answer.
        thinking: String,
        /// The answer.
        answer: String,
    },
}

/// A trace as token ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenizedTrace {
    /// See [`Trace::index`].
    pub index: u64,
    /// 1-based line number in the trace file.
    pub line: usize,
    /// The ids of prompt and answer: never empty, all below the model's vocabulary size, at most
    /// one leading BOS.
    pub ids: Vec<u32>,
    /// How many of `ids` belong to the prompt, chat-template tokens included; 0 if unknown.
    pub prompt_len: usize,
    /// Findings of the encoding that a user should know.
    pub remarks: Vec<Remark>,
}

impl Trace {
    /// Reads a row with exactly one trace, discarding remarks.
    ///
    /// # Errors
    /// As [`Trace::read`]; or the row has several traces.
    pub fn parse(path: &Path, line: usize, text: &str) -> Result<Trace> {
        let fields = RowFields::default();
        let mut traces = Trace::read(path, line, text, &fields, &mut Remarks::new())?;
        match (traces.pop(), traces.len()) {
            (Some(trace), 0) => Ok(trace),
            (_, others) => {
                let problem = format!("holds {} traces, expected one", others + 1);
                Err(Error::line(path, line, problem))
            }
        }
    }

    /// Reads the traces of one row.
    ///
    /// The row is an object with `input_ids` (and `prompt_len`, `attention_mask`), or has one of
    /// the published shapes, or the fields that `fields` names. `tools`, `documents` and
    /// `chat_template_kwargs` are read too; other keys are ignored. A row with a batch of ids or a
    /// list of answers has several traces.
    ///
    /// # Errors
    /// The row has no known shape, or it matches two shapes with different contents. The message
    /// names the file and the line.
    pub fn read(
        path: &Path,
        line: usize,
        text: &str,
        fields: &RowFields,
        remarks: &mut Remarks,
    ) -> Result<Vec<Trace>> {
        let (text, repaired) = standard_json(path, line, text);
        let (traces, _) = Trace::of(&Record::parse(path, line, &text)?, fields, remarks)?;
        remarks.extend(repaired);
        Ok(traces)
    }

    /// The traces of a row, and the names of the fields they were read from.
    fn of(
        record: &Record,
        fields: &RowFields,
        remarks: &mut Remarks,
    ) -> Result<(Vec<Trace>, String)> {
        let (path, line) = (record.path(), record.line());
        let index = record
            .first_integer(&["index", "sample_idx", "id"])
            .unwrap_or(line.saturating_sub(1) as u64);
        let trace = |content| Trace { path: path.to_owned(), line, index, content };
        if record.has("input_ids") && *fields == RowFields::default() {
            let contents = ids(record, remarks)?;
            if record.has("suppress") && record.has("weights") {
                let text = "sinks were suppressed while this text was generated (`suppress`): it \
                            is read as it stands, and the model is run without the suppression";
                remarks.add(Remark::line(Remark::SUPPRESSED_TEXT, path, line, text));
            }
            return Ok((contents.into_iter().map(trace).collect(), "`input_ids`".to_owned()));
        }
        let Some(Reading { fields: read_from, conversation, answers }) =
            shapes::read(record, fields)?
        else {
            return Err(no_trace(record));
        };
        let content = |answer| match (conversation.first(), answer) {
            (Some(only), Answer::Text(output)) if conversation.is_plain() => {
                TraceContent::Text { prompt: only.content.as_str().to_owned(), output }
            }
            (_, answer) => TraceContent::Messages { conversation: conversation.clone(), answer },
        };
        let contents: Vec<TraceContent> = answers.into_iter().map(content).collect();
        let is_empty = |content: &TraceContent| match content {
            TraceContent::Text { prompt, output } => prompt.is_empty() && output.is_empty(),
            TraceContent::Ids { .. } | TraceContent::Messages { .. } => false,
        };
        match contents.iter().any(is_empty) {
            true => Err(record.error(format!("{read_from} are both empty"))),
            false => Ok((contents.into_iter().map(trace).collect(), read_from)),
        }
    }

    /// The token ids of the trace.
    ///
    /// With a chat template, the prompt (as one user message) or the conversation is rendered up to
    /// the generation prompt. Without one, the prompt is encoded as bare text with its special
    /// tokens. The output follows without further special tokens.
    ///
    /// # Errors
    /// There is text but no tokenizer; the template fails or does not use a field of the
    /// conversation; there are no ids; the first two ids are BOS; an id is outside the vocabulary.
    pub fn token_ids(&self, encoder: &TextEncoder) -> Result<TokenizedTrace> {
        self.tokenize(encoder).map_err(|error| locate(error, &self.path, self.line))
    }

    fn tokenize(&self, encoder: &TextEncoder) -> Result<TokenizedTrace> {
        let encoded = match &self.content {
            TraceContent::Ids { input_ids, prompt_len } => {
                Encoded { prompt_len: *prompt_len, ..Encoded::from(input_ids.clone()) }
            }
            TraceContent::Text { prompt, output } => encoder.prompt_with_output(prompt, output)?,
            TraceContent::Messages { conversation, answer } => {
                encoder.conversation_with_answer(conversation, answer)?
            }
        };
        encoder.check_ids(&encoded.ids)?;
        let Encoded { ids, prompt_len, remarks, .. } = encoded.at(&self.path, self.line);
        Ok(TokenizedTrace { index: self.index, line: self.line, ids, prompt_len, remarks })
    }

    /// Adds a system message to the prompt unless there is one. Traces of ids are unchanged.
    pub fn with_system(mut self, text: &str) -> Trace {
        self.content = match self.content {
            TraceContent::Text { prompt, output } => {
                let mut conversation = Conversation::from(vec![Message::user(prompt)]);
                conversation.add_system(text);
                TraceContent::Messages { conversation, answer: Answer::Text(output) }
            }
            TraceContent::Messages { mut conversation, answer } => {
                conversation.add_system(text);
                TraceContent::Messages { conversation, answer }
            }
            ids @ TraceContent::Ids { .. } => ids,
        };
        self
    }
}

/// Reads `input_ids` of a line: a list of ids, or a batch of such lists.
fn ids(record: &Record, remarks: &mut Remarks) -> Result<Vec<TraceContent>> {
    const EXPECTED: &str = "a list of token ids (whole numbers ≥ 0)";
    let nested =
        record.value("input_ids").is_some_and(|ids| ids.get(0).is_some_and(|row| row.is_array()));
    let prompt_len: usize = record.get("prompt_len", "a whole number ≥ 0")?.unwrap_or(0);
    if !nested {
        let ids: Vec<TokenId> = record.get("input_ids", EXPECTED)?.unwrap_or_default();
        let mask = record.get::<Vec<Mask>>("attention_mask", "a list of 0 and 1")?;
        return Ok(vec![row_of_ids(record, ids, mask, prompt_len, remarks)?]);
    }
    let rows: Vec<Vec<TokenId>> = record.get("input_ids", EXPECTED)?.unwrap_or_default();
    let masks: Option<Vec<Vec<Mask>>> =
        record.get("attention_mask", "a list of lists of 0 and 1")?;
    if let Some(masks) = masks.as_ref().filter(|masks| masks.len() != rows.len()) {
        let (masks, rows) = (masks.len(), rows.len());
        let problem = format!("`attention_mask` has {masks} rows but `input_ids` has {rows}");
        return Err(record.error(problem));
    }
    let masks = masks.map(|masks| masks.into_iter().map(Some).collect());
    let masks: Vec<Option<Vec<Mask>>> =
        masks.unwrap_or_else(|| rows.iter().map(|_| None).collect());
    let rows = rows.into_iter().zip(masks);
    rows.map(|(ids, mask)| row_of_ids(record, ids, mask, prompt_len, remarks)).collect()
}

fn row_of_ids(
    record: &Record,
    ids: Vec<TokenId>,
    mask: Option<Vec<Mask>>,
    prompt_len: usize,
    remarks: &mut Remarks,
) -> Result<TraceContent> {
    if ids.is_empty() {
        return Err(record.error("`input_ids` is empty"));
    }
    if prompt_len > ids.len() {
        return Err(record.error(format!(
            "`prompt_len` is {prompt_len} but there are only {} `input_ids`",
            ids.len()
        )));
    }
    let (start, end) = padding(record, mask, ids.len())?;
    if start + end > 0 {
        let text = format!(
            "`attention_mask` is 0 for {start} tokens at the start and {end} at the end: padding, \
             which was left out"
        );
        remarks.add(Remark::line("padding", record.path(), record.line(), text));
    }
    if prompt_len > 0 && prompt_len <= start {
        return Err(record.error(format!(
            "`prompt_len` is {prompt_len}, but `attention_mask` is 0 for the first {start} \
             `input_ids`"
        )));
    }
    let rest = ids.len() - start - end;
    let real = ids.into_iter().skip(start).take(rest).map(|TokenId(id)| id);
    let prompt_len = prompt_len.saturating_sub(start).min(rest);
    Ok(TraceContent::Ids { input_ids: real.collect(), prompt_len })
}

/// The number of padding tokens at the start and at the end of a row, by its `attention_mask`.
fn padding(record: &Record, mask: Option<Vec<Mask>>, tokens: usize) -> Result<(usize, usize)> {
    let Some(mask) = mask else { return Ok((0, 0)) };
    if mask.len() != tokens {
        let problem = format!(
            "`attention_mask` has {} entries but there are {tokens} `input_ids`",
            mask.len()
        );
        return Err(record.error(problem));
    }
    let is_real = |Mask(real): &Mask| *real;
    let (Some(first), Some(last)) = (mask.iter().position(is_real), mask.iter().rposition(is_real))
    else {
        return Err(record.error("`attention_mask` is 0 for every token"));
    };
    match (first..last).find(|&position| !is_real(&mask[position])) {
        None => Ok((first, tokens - 1 - last)),
        Some(position) => Err(record.error(format!(
            "`attention_mask` is 0 at position {position}, in the middle of the row; expected \
             zeros at its start or end only"
        ))),
    }
}

/// An entry of an attention mask: 0 or 1 as a number, or false or true.
struct Mask(bool);

impl<'de> Deserialize<'de> for Mask {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Mask, D::Error> {
        match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::Bool(real) => Ok(Mask(real)),
            number if number.as_f64() == Some(1.0) => Ok(Mask(true)),
            number if number.as_f64() == Some(0.0) => Ok(Mask(false)),
            _ => Err(serde::de::Error::custom("neither 0 nor 1")),
        }
    }
}

/// The error for a row without a known shape.
fn no_trace(record: &Record) -> Error {
    let missing = match (record.has("prompt"), record.has("output")) {
        (true, false) => "`prompt` but no `output`",
        (false, true) => "`output` but no `prompt`",
        _ => "neither `input_ids` nor `prompt` and `output`",
    };
    record.error(format!(
        "has {missing}; a trace is {{\"input_ids\": [...]}}, \
         {{\"prompt\": \"...\", \"output\": \"...\"}}, {{\"messages\": [...]}} or another \
         published shape, or name its fields with --prompt-field and --output-field"
    ))
}

/// Reads traces row by row, without loading whole files.
pub struct TraceReader {
    rows: Rows,
    fields: RowFields,
    /// Traces of the last row that have not been returned yet.
    ready: VecDeque<Trace>,
    remarks: Remarks,
    writers: Vec<Writer>,
    shapes: BTreeMap<String, usize>,
}

/// A model that wrote lines of a trace file with `fathom generate`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Writer {
    /// Name of the model.
    pub model: String,
    /// Fingerprint of its weights, as [`crate::Checkpoint::fingerprint`].
    pub weights: String,
    /// The first line it wrote, 1-based.
    pub line: usize,
    /// How many lines it wrote.
    pub lines: usize,
}

impl TraceReader {
    /// Opens a data set: a JSONL, JSON or Parquet file, a directory or glob pattern of such files,
    /// or `-` for standard input.
    ///
    /// # Errors
    /// A file cannot be opened.
    pub fn open(path: &Path) -> Result<TraceReader> {
        TraceReader::open_with(path, RowFields::default())
    }

    /// Like [`TraceReader::open`], with prompt and output read from the fields that `fields` names.
    ///
    /// # Errors
    /// As [`TraceReader::open`].
    pub fn open_with(path: &Path, fields: RowFields) -> Result<TraceReader> {
        Ok(TraceReader {
            rows: Rows::open(path)?,
            fields,
            ready: VecDeque::new(),
            remarks: Remarks::new(),
            writers: Vec::new(),
            shapes: BTreeMap::new(),
        })
    }

    /// The number of rows read so far for each combination of fields that they were read from.
    pub fn shapes(&self) -> &BTreeMap<String, usize> {
        &self.shapes
    }

    /// Findings about the lines read so far.
    pub fn remarks(&self) -> &Remarks {
        &self.remarks
    }

    /// The models that wrote the ids of the lines read so far, as stated in those lines.
    pub fn writers(&self) -> &[Writer] {
        &self.writers
    }

    /// Clears the remarks and writers collected so far.
    pub fn clear_findings(&mut self) {
        self.remarks = Remarks::new();
        self.writers.clear();
    }

    fn read(&mut self, Row { file: path, line, text }: &Row) -> Result<()> {
        let (path, line) = (path.as_ref(), *line);
        let (text, repaired) = standard_json(path, line, text);
        let record = Record::parse(path, line, &text)?;
        let (traces, shape) = Trace::of(&record, &self.fields, &mut self.remarks)?;
        self.ready.extend(traces);
        *self.shapes.entry(shape).or_default() += 1;
        self.remarks.extend(repaired);
        if let (true, Some(weights)) = (record.has("input_ids"), record.text("weights")) {
            let model = record.text("model").unwrap_or_default();
            if let Some(writer) = self.writers.iter_mut().find(|writer| writer.weights == weights) {
                writer.lines += 1;
            } else if self.writers.len() < MAX_WRITERS {
                self.writers.push(Writer { model, weights, line, lines: 1 });
            }
        }
        Ok(())
    }
}

impl Iterator for TraceReader {
    type Item = Result<Trace>;

    fn next(&mut self) -> Option<Result<Trace>> {
        while self.ready.is_empty() {
            let row = match self.rows.next_row() {
                Ok(row) => row?,
                Err(error) => return Some(Err(error)),
            };
            if let Err(error) = self.read(&row) {
                return Some(Err(error));
            }
        }
        self.ready.pop_front().map(Ok)
    }
}
