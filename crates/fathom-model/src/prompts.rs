//! Prompts to generate from, read from published benchmark files and plain text.

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
    /// The text or conversation.
    pub content: PromptContent,
}

/// The content of a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PromptContent {
    /// One text; a chat template renders it as a user message.
    Text(String),
    /// A conversation, which needs a chat template.
    Messages(Conversation),
}

const ACCEPTED: &str =
    "`prompt`, `problem`, `question`, `turns`, `messages`, `conversations` or `instruction`";

impl PromptContent {
    /// Adds a system message at the start unless there is one.
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
    /// Like [`Prompt::read`] with default options, discarding remarks.
    ///
    /// # Errors
    /// As [`Prompt::read`].
    pub fn parse(path: &Path, line: usize, text: &str) -> Result<Prompt> {
        Prompt::read(path, line, text, &RowFields::default(), &mut Remarks::new())
    }

    /// Reads one JSONL line.
    ///
    /// The prompt is the first field present of `prompt`, `problem`, `question` (strings), `turns`
    /// (the first of a list of strings), `messages` (a list of `role` and `content`),
    /// `conversations` and `instruction`, or else a list of messages in `input`. `tools`,
    /// `documents` and `chat_template_kwargs` are read too. An answer at the end of a conversation
    /// is left out, with a remark.
    ///
    /// # Errors
    /// The line is not such an object. The message names the file and the line.
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

    /// The ids of the model's input, including the generation prompt.
    ///
    /// # Errors
    /// There is no tokenizer; there are messages but no chat template; the template fails or does
    /// not use a field of the conversation; [`TextEncoder::check_ids`] rejects the ids.
    pub fn token_ids(&self, encoder: &TextEncoder) -> Result<Vec<u32>> {
        Ok(self.encode(encoder)?.ids)
    }

    /// Like [`Prompt::token_ids`], with text and remarks.
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
        // Llama-Nemotron has its conversation in `input`.
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

/// The text or conversation of a field. An answer at its end is left out, with a remark.
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

/// Like [`read_prompts_with`] with default options, discarding remarks.
///
/// # Errors
/// As [`read_prompts_with`].
pub fn read_prompts(path: &Path) -> Result<Vec<Prompt>> {
    read_prompts_with(path, &RowFields::default(), &mut Remarks::new())
}

/// Reads the prompts of a data set (see [`crate::TraceReader::open`]). Each line of a `*.txt` file
/// is a prompt.
///
/// # Errors
/// A file cannot be read or has no prompts, or a line is not a prompt.
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
