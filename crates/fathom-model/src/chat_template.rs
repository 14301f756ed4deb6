//! Chat templates, which render a conversation to the prompt of a particular model.
//!
//! A template is a Jinja program shipped with the checkpoint. Rendering follows HuggingFace's
//! `apply_chat_template`. Templates are untrusted input, so work, memory and recursion are limited.

mod budget;
mod engine;
mod environment;
mod find;
mod instrument;
mod python;

use std::path::Path;

use serde_json::{Map, Value};

use self::find::{TemplateSource, TemplateSources};
use crate::message::Message;
use crate::special_tokens::SpecialTokens;
use crate::{Error, Remark, Result};

/// The date that `strftime_now` returns unless [`RenderOptions::date`] is set. It is the default
/// date of the Llama 3.x templates. A fixed date keeps prompts and sink positions reproducible.
pub const PINNED_DATE: jiff::civil::Date = jiff::civil::date(2024, 7, 26);

/// Options and variables for rendering a template.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RenderOptions {
    /// Whether to end with the generation prompt; `None` leaves the variable undefined.
    pub add_generation_prompt: Option<bool>,
    /// Qwen3's variable; `None` leaves it undefined, which Qwen3 treats differently from false.
    pub enable_thinking: Option<bool>,
    /// The date whose midnight `strftime_now` returns; `None` is [`PINNED_DATE`].
    pub date: Option<jiff::civil::Date>,
    /// Further variables such as `tools` or `documents`: the `**kwargs` of `apply_chat_template`.
    pub variables: Map<String, Value>,
}

/// A checkpoint's chat template.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    sources: TemplateSources,
    special: SpecialTokens,
}

impl ChatTemplate {
    /// Finds the template of a checkpoint as transformers 5 does for a tokenizer. `None` if there
    /// is none.
    ///
    /// The template is `chat_template.jinja` and `additional_chat_templates/NAME.jinja`, or else
    /// `chat_template` of `tokenizer_config.json` (a string, or a list of `name` and `template`).
    /// If there are several, `tool_use` is rendered when tools are given and `default` otherwise.
    ///
    /// # Errors
    /// A file cannot be read, or a template has the wrong type or is empty.
    pub fn from_dir(dir: &Path) -> Result<Option<ChatTemplate>> {
        let Some(sources) = find::find(dir)? else { return Ok(None) };
        Ok(Some(ChatTemplate { sources, special: SpecialTokens::from_dir(dir)? }))
    }

    /// Remarks for a directory in which [`ChatTemplate::from_dir`] finds no template: files that
    /// contain a template but are not read.
    pub fn unread(dir: &Path) -> Vec<Remark> {
        find::unread(dir)
    }

    /// A template from its source text. `path` is only for messages.
    pub fn new(path: &Path, source: impl Into<String>, special: SpecialTokens) -> ChatTemplate {
        let source = TemplateSource { path: path.to_owned(), text: source.into() };
        let sources =
            TemplateSources { default: Some(source), tool_use: None, remarks: Vec::new() };
        ChatTemplate { sources, special }
    }

    /// The file of the template, or of the `default` one if there are two.
    pub fn path(&self) -> &Path {
        let TemplateSources { default, tool_use, .. } = &self.sources;
        default.as_ref().or(tool_use.as_ref()).map_or(Path::new(""), |source| &source.path)
    }

    /// Whether both have the same template texts.
    pub(crate) fn has_text_of(&self, other: &ChatTemplate) -> bool {
        let texts = |template: &ChatTemplate| {
            let TemplateSources { default, tool_use, .. } = &template.sources;
            [default, tool_use].map(|source| source.as_ref().map(|source| source.text.clone()))
        };
        texts(self) == texts(other)
    }

    /// Findings about unused or suspicious template files.
    pub fn remarks(&self) -> &[Remark] {
        &self.sources.remarks
    }

    /// Whether the template's source contains `name` as a whole word. If not, the template is taken
    /// not to read a variable or field of that name.
    pub fn mentions(&self, name: &str) -> bool {
        let TemplateSources { default, tool_use, .. } = &self.sources;
        [default, tool_use].into_iter().flatten().any(|source| has_word(&source.text, name))
    }

    /// Whether the template's source contains `text`.
    pub fn contains(&self, text: &str) -> bool {
        let TemplateSources { default, tool_use, .. } = &self.sources;
        [default, tool_use].into_iter().flatten().any(|source| source.text.contains(text))
    }

    /// Renders a conversation.
    ///
    /// The result contains all special tokens, so encode it without adding any. The template
    /// `tool_use`, if there is one, is used when the variable `tools` is not null.
    ///
    /// # Errors
    /// The template is invalid, raises an exception (its message is passed on), or exceeds a limit;
    /// or there are no tools and no `default` template.
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

    /// The template to render with these options.
    fn source(&self, options: &RenderOptions) -> Result<&TemplateSource> {
        let tools = options.variables.get("tools").is_some_and(|tools| !tools.is_null());
        let TemplateSources { default, tool_use, .. } = &self.sources;
        tool_use.as_ref().filter(|_| tools).or(default.as_ref()).ok_or_else(|| {
            let problem = "has only a chat template for tools, called `tool_use`, and none called \
                           `default`";
            Error::file(self.path(), problem)
        })
    }
}

fn has_word(text: &str, word: &str) -> bool {
    let in_word = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word).any(|(at, _)| {
        let (before, after) = (&text[..at], &text[at + word.len()..]);
        !word.is_empty() && !before.ends_with(in_word) && !after.starts_with(in_word)
    })
}
