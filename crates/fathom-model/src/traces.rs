//! Traces: what a model was asked and what it answered, one JSON object a line.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::conversation::Conversation;
use crate::jsonl::{Lines, Record, TokenId, standard_json};
use crate::message::Message;
use crate::text_encoder::{Encoded, TextEncoder, locate};
use crate::{Remark, Remarks, Result};

/// Most writers that are told apart in one file.
const MAX_WRITERS: usize = 8;

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
    /// What was remarkable about turning it into ids.
    pub remarks: Vec<Remark>,
}

impl Trace {
    /// As [`Trace::read`], remarks left aside.
    ///
    /// # Errors
    /// As [`Trace::read`].
    pub fn parse(path: &Path, line: usize, text: &str) -> Result<Trace> {
        Trace::read(path, line, text, &mut Remarks::new())
    }

    /// Reads one line: an object with `input_ids` (and `prompt_len`, `attention_mask`), with `prompt`
    /// and `output`, or with `messages`, the last of which is the answer unless there is an `output`;
    /// the latter two with `tools`, `documents` and `chat_template_kwargs`. Where several are there the
    /// first of these is used; other keys are ignored.
    ///
    /// # Errors
    /// Anything else, with the file and the line in the message.
    pub fn read(path: &Path, line: usize, text: &str, remarks: &mut Remarks) -> Result<Trace> {
        let (text, repaired) = standard_json(path, line, text);
        let trace = Trace::of(&Record::parse(path, line, &text)?, remarks)?;
        remarks.extend(repaired);
        Ok(trace)
    }

    fn of(record: &Record, remarks: &mut Remarks) -> Result<Trace> {
        let (path, line) = (record.path().to_owned(), record.line());
        let index = record
            .first_integer(&["index", "sample_idx", "id"])
            .unwrap_or(line.saturating_sub(1) as u64);
        let text = record.has("prompt") && record.has("output");
        let content = match record.has("input_ids") {
            true => ids(record, remarks)?,
            false if record.has("messages") && !text => messages(record)?,
            false => prompt_output(record)?,
        };
        Ok(Trace { path, line, index, content })
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
                Encoded { ids: input_ids.clone(), prompt_len: *prompt_len, remarks: Vec::new() }
            }
            TraceContent::Text { prompt, output } => encoder.prompt_with_output(prompt, output)?,
            TraceContent::Messages { conversation, answer } => {
                encoder.conversation_with_answer(conversation, answer)?
            }
        };
        encoder.check_ids(&encoded.ids)?;
        let Encoded { ids, prompt_len, remarks } = encoded.at(&self.path, self.line);
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

fn ids(record: &Record, remarks: &mut Remarks) -> Result<TraceContent> {
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
    let (start, end) = padding(record, ids.len())?;
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
fn padding(record: &Record, tokens: usize) -> Result<(usize, usize)> {
    let Some(mask) = record.get::<Vec<Mask>>("attention_mask", "a list of 0 and 1")? else {
        return Ok((0, 0));
    };
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

fn prompt_output(record: &Record) -> Result<TraceContent> {
    let prompt: Option<String> = record.get("prompt", "a string")?;
    let output: Option<String> = record.get("output", "a string")?;
    match (prompt, output) {
        (Some(prompt), Some(output)) if prompt.is_empty() && output.is_empty() => {
            Err(record.error("`prompt` and `output` are both empty"))
        }
        (Some(prompt), Some(output)) => {
            let conversation = Conversation::of_prompt(record, &prompt)?;
            Ok(match conversation.is_plain() {
                true => TraceContent::Text { prompt, output },
                false => TraceContent::Messages { conversation, answer: Answer::Text(output) },
            })
        }
        (prompt, output) => {
            let missing = match (prompt, output) {
                (None, None) => "neither `input_ids` nor `prompt` and `output`",
                (None, _) => "`output` but no `prompt`",
                _ => "`prompt` but no `output`",
            };
            Err(record.error(format!(
                "has {missing}; a trace is {{\"input_ids\": [...]}}, \
                 {{\"prompt\": \"...\", \"output\": \"...\"}} or {{\"messages\": [...]}}"
            )))
        }
    }
}

/// A conversation that ends with its answer, or whose answer is `output`.
fn messages(record: &Record) -> Result<TraceContent> {
    let (conversation, last) = Conversation::read(record)?.unwrap_or_default().split_answer();
    let output: Option<String> = record.get("output", "a string")?;
    let answer = match (output, last) {
        (Some(_), Some(_)) => {
            return Err(record.error(
                "has two answers: `output`, and the turn of the assistant that `messages` ends with",
            ));
        }
        (Some(output), None) => Answer::Text(output),
        (None, Some(Message { content: crate::Content::Text(text), fields, .. }))
            if fields.values().all(serde_json::Value::is_null) =>
        {
            Answer::Text(text)
        }
        (None, Some(turn)) => Answer::Turn(turn),
        (None, None) => {
            return Err(record.error(
                "has `messages` that do not end with an answer of the assistant, and no `output`",
            ));
        }
    };
    match conversation.is_empty() {
        true => Err(record.error("`messages` holds only an answer of the assistant")),
        false => Ok(TraceContent::Messages { conversation, answer }),
    }
}

/// Reads a trace file line by line; only one line is held at a time.
pub struct TraceReader {
    lines: Lines,
    remarks: Remarks,
    writers: Vec<Writer>,
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
    /// Opens a JSONL file of traces.
    ///
    /// # Errors
    /// A file that cannot be opened.
    pub fn open(path: &Path) -> Result<TraceReader> {
        let lines = Lines::open(path)?;
        Ok(TraceReader { lines, remarks: Remarks::new(), writers: Vec::new() })
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

    fn read(&mut self, line: usize, text: &str) -> Result<Trace> {
        let path = self.lines.path();
        let (text, repaired) = standard_json(path, line, text);
        let record = Record::parse(path, line, &text)?;
        let trace = Trace::of(&record, &mut self.remarks)?;
        self.remarks.extend(repaired);
        if let (true, Some(weights)) = (record.has("input_ids"), record.text("weights")) {
            let model = record.text("model").unwrap_or_default();
            if let Some(writer) = self.writers.iter_mut().find(|writer| writer.weights == weights) {
                writer.lines += 1;
            } else if self.writers.len() < MAX_WRITERS {
                self.writers.push(Writer { model, weights, line, lines: 1 });
            }
        }
        Ok(trace)
    }
}

impl Iterator for TraceReader {
    type Item = Result<Trace>;

    fn next(&mut self) -> Option<Result<Trace>> {
        let next = self.lines.next_line().transpose()?;
        Some(next.and_then(|(line, text)| self.read(line, &text)))
    }
}
