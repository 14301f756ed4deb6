//! Prompts to generate from: benchmark files as published, and plain text.

use std::path::{Path, PathBuf};

use crate::conversation::{Conversation, answer_left_out};
use crate::jsonl::{Record, standard_json};
use crate::rows::{Row, Rows};
use crate::shapes::{RowFields, conversation_of};
use crate::text_encoder::{Encoded, TextEncoder, locate};
use crate::{Error, Remarks, Result};

/// One prompt of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// The file it came from.
    pub path: PathBuf,
    /// 1-based line number in that file.
    pub line: usize,
    /// What is asked.
    pub content: PromptContent,
}

/// What a prompt asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PromptContent {
    /// One text, which a chat template takes as a user message.
    Text(String),
    /// A conversation, which needs a chat template.
    Messages(Conversation),
}

const ACCEPTED: &str =
    "`prompt`, `problem`, `question`, `turns`, `messages`, `conversations` or `instruction`";

impl PromptContent {
    /// Puts a system message in front, unless there is one.
    pub fn with_system(self, text: &str) -> PromptContent {
        let mut conversation = match self {
            PromptContent::Text(prompt) => vec![crate::Message::user(prompt)].into(),
            PromptContent::Messages(conversation) => conversation,
        };
        conversation.add_system(text);
        PromptContent::Messages(conversation)
    }
}

impl Prompt {
    /// As [`Prompt::read`], remarks left aside.
    ///
    /// # Errors
    /// As [`Prompt::read`].
    pub fn parse(path: &Path, line: usize, text: &str) -> Result<Prompt> {
        Prompt::read(path, line, text, &RowFields::default(), &mut Remarks::new())
    }

    /// Reads one JSONL line: the first of `prompt`, `problem`, `question` (strings), `turns` (the
    /// first of a list of strings) and `messages` (a list of `role` and `content`) that is there,
    /// with `tools`, `documents` and `chat_template_kwargs`. An answer at the end of `messages` is
    /// left out, with a remark.
    ///
    /// # Errors
    /// A line that is not such an object, with the file and the line in the message.
    pub fn read(
        path: &Path,
        line: usize,
        text: &str,
        fields: &RowFields,
        remarks: &mut Remarks,
    ) -> Result<Prompt> {
        let (text, repaired) = standard_json(path, line, text);
        let record = Record::parse(path, line, &text)?;
        let content = content(&record, fields, remarks)?;
        remarks.extend(repaired);
        Ok(Prompt { path: path.to_owned(), line, content })
    }

    /// The ids the model is given, generation prompt included.
    ///
    /// # Errors
    /// No tokenizer; messages without a chat template; a template that fails, or that has no use
    /// for a field of the conversation; ids the model cannot be given.
    pub fn token_ids(&self, encoder: &TextEncoder) -> Result<Vec<u32>> {
        Ok(self.encode(encoder)?.ids)
    }

    /// As [`Prompt::token_ids`], with what was remarkable about it.
    ///
    /// # Errors
    /// As [`Prompt::token_ids`].
    pub fn encode(&self, encoder: &TextEncoder) -> Result<Encoded> {
        encoder
            .prompt(&self.content)
            .and_then(|encoded| encoder.check_ids(&encoded.ids).map(|()| encoded))
            .map(|encoded| encoded.at(&self.path, self.line))
            .map_err(|error| locate(error, &self.path, self.line))
    }
}

fn content(record: &Record, fields: &RowFields, remarks: &mut Remarks) -> Result<PromptContent> {
    const NAMES: [&str; 7] =
        ["prompt", "problem", "question", "turns", "messages", "conversations", "instruction"];
    let chosen = fields.prompt.as_deref();
    let Some(field) = chosen.or_else(|| NAMES.into_iter().find(|name| record.has(name))) else {
        // Llama-Nemotron calls its conversation so.
        let is_list = record.value("input").is_some_and(|input| input.is_array());
        return match is_list {
            true => conversation(record, "input", remarks),
            false => Err(record.error(format!("has none of {ACCEPTED}"))),
        };
    };
    if field == "turns" && chosen.is_none() {
        let turns: Vec<String> = record.get("turns", "a list of strings")?.unwrap_or_default();
        return first_turn(record, turns.into_iter().next().unwrap_or_default());
    }
    conversation(record, field, remarks)
}

fn first_turn(record: &Record, text: String) -> Result<PromptContent> {
    match text.is_empty() {
        true => Err(record.error("`turns` is empty")),
        false => Ok(PromptContent::Text(text)),
    }
}

/// The text or the conversation of a field, without the answer that it may end with.
fn conversation(record: &Record, field: &str, remarks: &mut Remarks) -> Result<PromptContent> {
    let (conversation, answer) = conversation_of(record, field)?.split_answer();
    if answer.is_some() {
        remarks.add(answer_left_out(record, field));
    }
    match conversation.first() {
        None => Err(record.error(format!("`{field}` holds only an answer of the assistant"))),
        Some(only) if conversation.is_plain() && only.content.as_str().is_empty() => {
            Err(record.error(format!("`{field}` is empty")))
        }
        Some(only) if conversation.is_plain() && field != "messages" => {
            Ok(PromptContent::Text(only.content.as_str().to_owned()))
        }
        Some(_) => Ok(PromptContent::Messages(conversation)),
    }
}

/// As [`read_prompts_with`], remarks left aside.
///
/// # Errors
/// As [`read_prompts_with`].
pub fn read_prompts(path: &Path) -> Result<Vec<Prompt>> {
    read_prompts_with(path, &RowFields::default(), &mut Remarks::new())
}

/// The prompts of a data set (see [`crate::TraceReader::open`]), or of a file named `*.txt`, a line
/// each.
///
/// # Errors
/// A file that cannot be read or holds no prompts; a line that is none.
pub fn read_prompts_with(
    path: &Path,
    fields: &RowFields,
    remarks: &mut Remarks,
) -> Result<Vec<Prompt>> {
    let plain = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("txt"));
    let mut rows = Rows::open(path)?;
    let mut prompts = Vec::new();
    while let Some(Row { file, line, text }) = rows.next_row()? {
        prompts.push(match plain {
            true => Prompt { path: file.to_path_buf(), line, content: PromptContent::Text(text) },
            false => Prompt::read(&file, line, &text, fields, remarks)?,
        });
    }
    match prompts.is_empty() {
        true => Err(Error::file(path, "holds no prompts")),
        false => Ok(prompts),
    }
}
