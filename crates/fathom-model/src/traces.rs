//! Traces: what a model was asked and what it answered, one JSON object a line.

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

/// Most writers that are told apart in one file.
const MAX_WRITERS: usize = 8;

/// One line of a trace file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// The file it came from.
    pub path: PathBuf,
    /// 1-based line number in that file.
    pub line: usize,
    /// The sample index published with it (`index`, `sample_idx` or `id`); its 0-based line
    /// otherwise.
    pub index: u64,
    /// What was recorded.
    pub content: TraceContent,
}

/// What a trace records: the ids themselves, or the text to make them from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TraceContent {
    /// `input_ids`: used as they are, without the padding that an `attention_mask` names.
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
    /// `messages`, or a prompt with `tools` and the like, and the answer.
    Messages {
        /// What came before the answer.
        conversation: Conversation,
        /// What the model answered.
        answer: Answer,
    },
}

/// The answer that a conversation was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The text as the model wrote it.
    Text(String),
    /// A turn of the assistant with more than a text, which the chat template writes down.
    Turn(Message),
    /// Thinking and answer, kept apart by the data set.
    Thought {
        /// What comes first.
        thinking: String,
        /// What comes after it.
        answer: String,
    },
}

/// A trace as the model sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenizedTrace {
    /// See [`Trace::index`].
    pub index: u64,
    /// 1-based line number in the trace file.
    pub line: usize,
    /// Prompt and answer; never empty, all below the model's vocabulary size, at most one leading
    /// BOS.
    pub ids: Vec<u32>,
    /// How many of `ids` are the prompt, chat-template tokens included; 0 where that is not known.
    pub prompt_len: usize,
    /// What was remarkable about turning it into ids.
    pub remarks: Vec<Remark>,
}

impl Trace {
    /// The one trace of a row, remarks left aside.
    ///
    /// # Errors
    /// As [`Trace::read`]; a row with several answers.
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

    /// Reads one row: an object with `input_ids` (and `prompt_len`, `attention_mask`), or one of
    /// the shapes in which data sets are published, or as `fields` says; with `tools`, `documents`
    /// and `chat_template_kwargs`. Several rows of ids, and several answers, are several traces;
    /// other keys are ignored.
    ///
    /// # Errors
    /// Anything else, or a row that can be read in two ways, with the file and the line in the
    /// message.
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

    /// The traces of a row, and the fields they were read from.
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
            return Ok((contents.into_iter().map(trace).collect(), "`input_ids`".to_owned()));
        }
        let Some(Reading { how, conversation, answers }) = shapes::read(record, fields)? else {
            return Err(no_trace(record));
        };
        let content = |answer| match (conversation.first(), answer) {
            (Some(only), Answer::Text(output)) if conversation.is_plain() => {
                TraceContent::Text { prompt: only.content.as_str().to_owned(), output }
            }
            (_, answer) => TraceContent::Messages { conversation: conversation.clone(), answer },
        };
        let contents: Vec<TraceContent> = answers.into_iter().map(content).collect();
        let says_nothing = |content: &TraceContent| matches!(content, TraceContent::Text { prompt, output } if prompt.is_empty() && output.is_empty());
        match contents.iter().any(says_nothing) {
            true => Err(record.error(format!("{how} are both empty"))),
            false => Ok((contents.into_iter().map(trace).collect(), how)),
        }
    }

    /// The token ids of the trace.
    ///
    /// Text with a chat template: the template renders the prompt as one user message, or the
    /// conversation, up to where the answer begins, and the output goes on from there. Text without
    /// one: the prompt gets the special tokens a bare text gets, and the output goes on from there.
    ///
    /// # Errors
    /// Text without a tokenizer; a template that fails, or that has no use for a field of the
    /// conversation; no tokens at all; two leading BOS; an id outside the model's vocabulary.
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

    /// Puts a system message in front of its prompt, unless there is one. Ids stay as they are.
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

/// The rows of ids of a line: one, or a list of them.
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
            "`attention_mask` is 0 for {start} tokens at the start and {end} at the end: padding, which was \
             left out"
        );
        remarks.add(Remark::line("padding", record.path(), record.line(), text));
    }
    if prompt_len > 0 && prompt_len <= start {
        return Err(record.error(format!(
            "`prompt_len` is {prompt_len}, but `attention_mask` is 0 for the first {start} `input_ids`"
        )));
    }
    let rest = ids.len() - start - end;
    let real = ids.into_iter().skip(start).take(rest).map(|TokenId(id)| id);
    let prompt_len = prompt_len.saturating_sub(start).min(rest);
    Ok(TraceContent::Ids { input_ids: real.collect(), prompt_len })
}

/// How many tokens of a row `attention_mask` names padding, at its start and at its end.
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
            "`attention_mask` is 0 at position {position}, in the middle of the row; expected zeros at its \
             start or end only"
        ))),
    }
}

/// An entry of an attention mask: 0 or 1, as a number or as false and true.
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

/// Why a row is no trace.
fn no_trace(record: &Record) -> Error {
    let missing = match (record.has("prompt"), record.has("output")) {
        (true, false) => "`prompt` but no `output`",
        (false, true) => "`output` but no `prompt`",
        _ => "neither `input_ids` nor `prompt` and `output`",
    };
    record.error(format!(
        "has {missing}; a trace is {{\"input_ids\": [...]}}, {{\"prompt\": \"...\", \"output\": \"...\"}}, \
         {{\"messages\": [...]}} or another published shape, or say --prompt-field and --output-field"
    ))
}

/// Reads traces row by row; only one row is held at a time.
pub struct TraceReader {
    rows: Rows,
    fields: RowFields,
    /// Traces of the row that was read last.
    ready: VecDeque<Trace>,
    remarks: Remarks,
    writers: Vec<Writer>,
    shapes: BTreeMap<String, usize>,
}

/// A model that wrote lines of a trace file with `fathom generate`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Writer {
    /// What it was called.
    pub model: String,
    /// The fingerprint of its weights, as [`crate::Checkpoint::fingerprint`].
    pub weights: String,
    /// The first line it wrote, counted from 1.
    pub line: usize,
    /// How many lines.
    pub lines: usize,
}

impl TraceReader {
    /// Opens a data set: a JSONL, JSON or Parquet file, several, or standard input.
    ///
    /// # Errors
    /// A file that cannot be opened.
    pub fn open(path: &Path) -> Result<TraceReader> {
        TraceReader::open_with(path, RowFields::default())
    }

    /// As [`TraceReader::open`], with prompt and output where `fields` says.
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

    /// How many rows were read from which fields.
    pub fn shapes(&self) -> &BTreeMap<String, usize> {
        &self.shapes
    }

    /// What was remarkable about the lines read so far.
    pub fn remarks(&self) -> &Remarks {
        &self.remarks
    }

    /// The models that the lines read so far name as the writers of their ids.
    pub fn writers(&self) -> &[Writer] {
        &self.writers
    }

    /// Forgets what was remarkable about the lines read so far, and who wrote them.
    pub fn forget(&mut self) {
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
