//! Prompts to generate from: benchmark files as published, and plain text.

use std::path::{Path, PathBuf};

use crate::conversation::{Conversation, answer_left_out};
use crate::jsonl::{Lines, Record, standard_json};
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

const ACCEPTED: &str = "`prompt`, `problem`, `question`, `turns` or `messages`";

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
        Prompt::read(path, line, text, &mut Remarks::new())
    }

    /// Reads one JSONL line: the first of `prompt`, `problem`, `question` (strings), `turns` (the
    /// first of a list of strings) and `messages` (a list of `role` and `content`) that is there, with
    /// `tools`, `documents` and `chat_template_kwargs`. An answer at the end of `messages` is left out,
    /// with a remark.
    ///
    /// # Errors
    /// A line that is not such an object, with the file and the line in the message.
    pub fn read(path: &Path, line: usize, text: &str, remarks: &mut Remarks) -> Result<Prompt> {
        let (text, repaired) = standard_json(path, line, text);
        let record = Record::parse(path, line, &text)?;
        let content = content(&record, remarks)?;
        remarks.extend(repaired);
        Ok(Prompt { path: path.to_owned(), line, content })
    }

    /// The ids the model is given, generation prompt included.
    ///
    /// # Errors
    /// No tokenizer; messages without a chat template; a template that fails, or that has no use for a
    /// field of the conversation; ids the model cannot be given.
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

fn content(record: &Record, remarks: &mut Remarks) -> Result<PromptContent> {
    for field in ["prompt", "problem", "question"] {
        if let Some(text) = record.get::<String>(field, "a string")? {
            return prompt_text(record, field, text);
        }
    }
    if let Some(turns) = record.get::<Vec<String>>("turns", "a list of strings")? {
        let first = turns.into_iter().next().unwrap_or_default();
        return prompt_text(record, "turns", first);
    }
    let Some(conversation) = Conversation::read(record)? else {
        return Err(record.error(format!("has none of {ACCEPTED}")));
    };
    let (conversation, answer) = conversation.split_answer();
    if answer.is_some() {
        remarks.add(answer_left_out(record));
    }
    match conversation.is_empty() {
        true => Err(record.error("`messages` holds only an answer of the assistant")),
        false => Ok(PromptContent::Messages(conversation)),
    }
}

/// A text, or a conversation of that text where the line has more for the template.
fn prompt_text(record: &Record, field: &str, text: String) -> Result<PromptContent> {
    if text.is_empty() {
        return Err(record.error(format!("`{field}` is empty")));
    }
    let conversation = Conversation::of_prompt(record, &text)?;
    Ok(match conversation.is_plain() {
        true => PromptContent::Text(text),
        false => PromptContent::Messages(conversation),
    })
}

/// As [`read_prompts_with`], remarks left aside.
///
/// # Errors
/// As [`read_prompts_with`].
pub fn read_prompts(path: &Path) -> Result<Vec<Prompt>> {
    read_prompts_with(path, &mut Remarks::new())
}

/// The prompts of a file: one a line, as JSONL or, in a file named `*.txt`, as plain text.
///
/// # Errors
/// A file that cannot be read or holds no prompts; a line that is none.
pub fn read_prompts_with(path: &Path, remarks: &mut Remarks) -> Result<Vec<Prompt>> {
    let plain = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("txt"));
    let mut lines = Lines::open(path)?;
    let mut prompts = Vec::new();
    while let Some((line, text)) = lines.next_line()? {
        prompts.push(match plain {
            true => Prompt { path: path.to_owned(), line, content: PromptContent::Text(text) },
            false => Prompt::read(path, line, &text, remarks)?,
        });
    }
    match prompts.is_empty() {
        true => Err(Error::file(path, "holds no prompts")),
        false => Ok(prompts),
    }
}
