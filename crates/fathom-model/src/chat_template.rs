//! Chat templates: how a conversation is written down for a particular model.
//!
//! A template is a Jinja program shipped with the checkpoint. It is rendered as HuggingFace's
//! `apply_chat_template` renders it, inside bounds on work, memory and recursion: it comes from a
//! stranger.

mod budget;
mod engine;
mod environment;
mod find;
mod instrument;
mod python;

use std::path::Path;

use serde_json::{Map, Value};

use self::find::{Source, Sources};
use crate::message::Message;
use crate::special_tokens::SpecialTokens;
use crate::{Error, Remark, Result};

/// The day templates are told it is unless [`RenderOptions::date`] says otherwise: the date Llama
/// 3.x templates themselves fall back on. A fixed day keeps prompts, and so sink positions,
/// reproducible.
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
    sources: Sources,
    special: SpecialTokens,
}

impl ChatTemplate {
    /// Finds the template of a checkpoint as transformers 5 does for a tokenizer:
    /// `chat_template.jinja` and `additional_chat_templates/NAME.jinja`, else `chat_template` of
    /// `tokenizer_config.json` (a string, or a list of `name` and `template`). Of several,
    /// `tool_use` is rendered where tools are given, and `default` otherwise. `None` when there is
    /// none.
    ///
    /// # Errors
    /// A file that cannot be read, a template of another kind, or an empty one.
    pub fn from_dir(dir: &Path) -> Result<Option<ChatTemplate>> {
        let Some(sources) = find::find(dir)? else { return Ok(None) };
        Ok(Some(ChatTemplate { sources, special: SpecialTokens::from_dir(dir)? }))
    }

    /// What is to be said of a directory in which [`ChatTemplate::from_dir`] finds no template:
    /// files that hold one and are not read.
    pub fn unread(dir: &Path) -> Vec<Remark> {
        find::unread(dir)
    }

    /// A template from its source; `path` is named in messages.
    pub fn new(path: &Path, source: impl Into<String>, special: SpecialTokens) -> ChatTemplate {
        let source = Source { path: path.to_owned(), text: source.into() };
        let sources = Sources { default: Some(source), tool_use: None, remarks: Vec::new() };
        ChatTemplate { sources, special }
    }

    /// The file the template was found in: the one rendered without tools, where there are two.
    pub fn path(&self) -> &Path {
        let Sources { default, tool_use, .. } = &self.sources;
        default.as_ref().or(tool_use.as_ref()).map_or(Path::new(""), |source| &source.path)
    }

    /// Whether the other's templates have the same texts.
    pub(crate) fn has_text_of(&self, other: &ChatTemplate) -> bool {
        let texts = |template: &ChatTemplate| {
            let Sources { default, tool_use, .. } = &template.sources;
            [default, tool_use].map(|source| source.as_ref().map(|source| source.text.clone()))
        };
        texts(self) == texts(other)
    }

    /// What was found and not used, or is doubtful.
    pub fn remarks(&self) -> &[Remark] {
        &self.sources.remarks
    }

    /// Whether the template's source has this name in it, as a word of its own. One that does not
    /// cannot look at a variable or a field so called.
    pub fn mentions(&self, name: &str) -> bool {
        let Sources { default, tool_use, .. } = &self.sources;
        [default, tool_use].into_iter().flatten().any(|source| has_word(&source.text, name))
    }

    /// Writes a conversation down. The result holds every special token there is to be: tokenise it
    /// without adding any. `tools` among the variables, unless null, choose the template called
    /// `tool_use` where there is one.
    ///
    /// # Errors
    /// A template that is not valid, refuses the conversation (its own message is told), or goes
    /// beyond the bounds; no template for a conversation without tools.
    pub fn render(&self, messages: &[Message], options: &RenderOptions) -> Result<String> {
        let source = self.source(options)?;
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
        set("messages", messages.iter().map(Message::for_template).collect());
        engine::run(&source.text, &variables, options.date.unwrap_or(PINNED_DATE))
            .map_err(|problem| Error::file(&source.path, format!("the chat template {problem}")))
    }

    /// The template that these options call for.
    fn source(&self, options: &RenderOptions) -> Result<&Source> {
        let tools = options.variables.get("tools").is_some_and(|tools| !tools.is_null());
        let Sources { default, tool_use, .. } = &self.sources;
        tool_use.as_ref().filter(|_| tools).or(default.as_ref()).ok_or_else(|| {
            let problem = "has a chat template for tools only, called `tool_use`, and none called \
                           `default`";
            Error::file(self.path(), problem)
        })
    }
}

fn has_word(text: &str, word: &str) -> bool {
    let of_word = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word).any(|(at, _)| {
        let (before, after) = (&text[..at], &text[at + word.len()..]);
        !word.is_empty() && !before.ends_with(of_word) && !after.starts_with(of_word)
    })
}
