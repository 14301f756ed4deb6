//! Prompts to generate from: benchmark files as published, and plain text.

use std::path::{Path, PathBuf};

use crate::chat_template::Message;
use crate::jsonl::{Lines, Record};
use crate::text_encoder::TextEncoder;
use crate::{Error, Result};

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
    Messages(Vec<Message>),
}

const ACCEPTED: &str = "`prompt`, `problem`, `question`, `turns` or `messages`";

impl Prompt {
    /// Reads one JSONL line: the first of `prompt`, `problem`, `question` (strings), `turns` (the
    /// first of a list of strings) and `messages` (a list of `role` and `content`) that is there.
    ///
    /// # Errors
    /// A line that is not such an object, with the file and the line in the message.
    pub fn parse(path: &Path, line: usize, text: &str) -> Result<Prompt> {
        let record = Record::parse(path, line, text)?;
        let content = content(&record)?;
        Ok(Prompt { path: path.to_owned(), line, content })
    }

    /// The ids the model is given, generation prompt included.
    ///
    /// # Errors
    /// No tokenizer; messages without a chat template; a template that fails; ids the model cannot
    /// be given.
    pub fn token_ids(&self, encoder: &TextEncoder) -> Result<Vec<u32>> {
        let ids = match &self.content {
            PromptContent::Text(text) => encoder.prompt_ids(text),
            PromptContent::Messages(messages) => encoder.chat_ids(messages),
        };
        ids.and_then(|ids| encoder.check_ids(&ids).map(|()| ids)).map_err(|error| match error {
            Error::Request(problem) => Error::line(&self.path, self.line, problem),
            other => other,
        })
    }
}

fn content(record: &Record) -> Result<PromptContent> {
    for field in ["prompt", "problem", "question"] {
        if let Some(text) = record.get::<String>(field, "a string")? {
            return non_empty(record, field, text);
        }
    }
    if let Some(turns) = record.get::<Vec<String>>("turns", "a list of strings")? {
        let first = turns.into_iter().next().unwrap_or_default();
        return non_empty(record, "turns", first);
    }
    let messages: Option<Vec<Message>> =
        record.get("messages", "a list of objects with the strings `role` and `content`")?;
    match messages {
        Some(messages) if messages.is_empty() => Err(record.error("`messages` is empty")),
        Some(messages) => Ok(PromptContent::Messages(messages)),
        None => Err(record.error(format!("has none of {ACCEPTED}"))),
    }
}

fn non_empty(record: &Record, field: &str, text: String) -> Result<PromptContent> {
    match text.is_empty() {
        true => Err(record.error(format!("`{field}` is empty"))),
        false => Ok(PromptContent::Text(text)),
    }
}

/// The prompts of a file: one a line, as JSONL or, in a file named `*.txt`, as plain text.
///
/// # Errors
/// A file that cannot be read or holds no prompts; a line that is none.
pub fn read_prompts(path: &Path) -> Result<Vec<Prompt>> {
    let plain = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("txt"));
    let mut lines = Lines::open(path)?;
    let mut prompts = Vec::new();
    while let Some((line, text)) = lines.next_line()? {
        prompts.push(match plain {
            true => Prompt { path: path.to_owned(), line, content: PromptContent::Text(text) },
            false => Prompt::parse(path, line, &text)?,
        });
    }
    match prompts.is_empty() {
        true => Err(Error::file(path, "holds no prompts")),
        false => Ok(prompts),
    }
}
