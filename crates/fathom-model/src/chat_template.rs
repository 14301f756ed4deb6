//! Chat templates: how a conversation is written down for a particular model.
//!
//! A template is a Jinja program shipped with the checkpoint. It is rendered as HuggingFace's
//! `apply_chat_template` renders it, inside bounds on work, memory and recursion: it comes from a stranger.

mod budget;
mod engine;
mod environment;
mod instrument;
mod python;

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::message::Message;
use crate::special_tokens::{SpecialTokens, read_json_object};
use crate::text_file::read_text;
use crate::{Error, Result};

/// The day templates are told it is unless [`RenderOptions::date`] says otherwise: the date Llama 3.x
/// templates themselves fall back on. A fixed day keeps prompts, and so sink positions, reproducible.
pub const PINNED_DATE: jiff::civil::Date = jiff::civil::date(2024, 7, 26);

/// What a template is given beside the messages.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RenderOptions {
    /// Whether to end with the tokens that begin an answer; `None` leaves it undefined.
    pub add_generation_prompt: Option<bool>,
    /// Qwen3's switch; `None` leaves it undefined, which is not the same as false.
    pub enable_thinking: Option<bool>,
    /// What `strftime_now` tells the time as; `None` is midnight of [`PINNED_DATE`].
    pub date: Option<jiff::civil::Date>,
    /// Further variables, such as `tools` or `documents`, as `apply_chat_template(**kwargs)`.
    pub variables: Map<String, Value>,
}

/// A checkpoint's chat template.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    path: PathBuf,
    source: String,
    special: SpecialTokens,
}

impl ChatTemplate {
    /// Finds the template of a checkpoint: `chat_template.jinja`, else `chat_template` of
    /// `tokenizer_config.json` (a string, or a list of `name` and `template` from which `default`
    /// or the only one is taken), else `chat_template.json`. `None` when there is none.
    ///
    /// # Errors
    /// A file that cannot be read, or a template of another kind.
    pub fn from_dir(dir: &Path) -> Result<Option<ChatTemplate>> {
        let Some((path, source)) = find(dir)? else { return Ok(None) };
        Ok(Some(ChatTemplate { path, source, special: SpecialTokens::from_dir(dir)? }))
    }

    /// A template from its source; `path` is named in messages.
    pub fn new(path: &Path, source: impl Into<String>, special: SpecialTokens) -> ChatTemplate {
        ChatTemplate { path: path.to_owned(), source: source.into(), special }
    }

    /// The file the template was found in.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the template's source has this name in it, as a word of its own. One that does not cannot
    /// look at a variable or a field so called.
    pub fn mentions(&self, name: &str) -> bool {
        let of_word = |c: char| c.is_alphanumeric() || c == '_';
        self.source.match_indices(name).any(|(at, _)| {
            let (before, after) = (&self.source[..at], &self.source[at + name.len()..]);
            !before.ends_with(of_word) && !after.starts_with(of_word) && !name.is_empty()
        })
    }

    /// Writes a conversation down. The result holds every special token there is to be: tokenise it
    /// without adding any.
    ///
    /// # Errors
    /// A template that is not valid, refuses the conversation (its own message is told), or goes
    /// beyond the bounds.
    pub fn render(&self, messages: &[Message], options: &RenderOptions) -> Result<String> {
        let mut variables = options.variables.clone();
        let mut set = |name: &str, value: Value| drop(variables.insert(name.to_owned(), value));
        for (name, token) in [
            ("bos_token", &self.special.bos),
            ("eos_token", &self.special.eos),
            ("unk_token", &self.special.unk),
            ("pad_token", &self.special.pad),
        ] {
            if let Some(token) = token {
                set(name, Value::from(token.as_str()));
            }
        }
        for (name, flag) in [
            ("add_generation_prompt", options.add_generation_prompt),
            ("enable_thinking", options.enable_thinking),
        ] {
            if let Some(flag) = flag {
                set(name, Value::from(flag));
            }
        }
        set("messages", messages.iter().map(Message::to_json).collect());
        engine::run(&self.source, &variables, options.date.unwrap_or(PINNED_DATE))
            .map_err(|problem| Error::file(&self.path, format!("the chat template {problem}")))
    }
}

/// The template of a directory and the file it is in.
fn find(dir: &Path) -> Result<Option<(PathBuf, String)>> {
    let path = dir.join("chat_template.jinja");
    if let Some(source) = read_text(&path)? {
        return Ok(Some((path, source)));
    }
    for name in ["tokenizer_config.json", "chat_template.json"] {
        let path = dir.join(name);
        let Some(object) = read_json_object(&path)? else { continue };
        match object.get("chat_template") {
            None | Some(Value::Null) => {}
            Some(Value::String(source)) => return Ok(Some((path, source.clone()))),
            Some(Value::Array(list)) => {
                let source = default_of(list).ok_or_else(|| {
                    Error::field(
                        &path,
                        "chat_template",
                        "is a list in which one `{\"name\": \"default\", \"template\": ...}`, or a \
                         single template, was expected",
                    )
                })?;
                return Ok(Some((path, source)));
            }
            Some(_) => {
                let problem = "must be a string or a list of `name` and `template`";
                return Err(Error::field(&path, "chat_template", problem));
            }
        }
    }
    Ok(None)
}

/// The template called `default`, or the only one.
fn default_of(list: &[Value]) -> Option<String> {
    let is_default = |entry: &&Value| entry.get("name").and_then(Value::as_str) == Some("default");
    let entry = match list {
        [only] => only,
        _ => list.iter().find(is_default)?,
    };
    entry.get("template")?.as_str().map(str::to_owned)
}
