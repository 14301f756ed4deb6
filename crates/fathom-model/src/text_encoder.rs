//! From a prompt, a conversation or a trace to the ids a model is given.

use std::path::Path;

use serde_json::{Map, Value};

use crate::chat_template::{ChatTemplate, RenderOptions};
use crate::conversation::Conversation;
use crate::message::Message;
use crate::prompts::PromptContent;
use crate::template_fields::fit;
use crate::tokenizer::{NO_TOKENIZER, check_bos};
use crate::traces::Answer;
use crate::written_twice::{may_be_written_twice, written_twice};
use crate::{Error, Remark, Result, Tokenizer};

/// Everything that decides which ids a text becomes.
pub struct TextEncoder<'a> {
    /// The checkpoint's tokenizer; `None` suffices for traces of explicit ids.
    pub tokenizer: Option<&'a Tokenizer>,
    /// The checkpoint's chat template; `None` takes prompts as bare text.
    pub template: Option<&'a ChatTemplate>,
    /// What the template is given beside the messages; a line's own variables come before these.
    /// The generation prompt is always added.
    pub render: RenderOptions,
    /// Rows of the model's embedding: ids from here on cannot be looked up.
    pub vocab_size: usize,
}

/// The ids of a text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Encoded {
    /// All of them.
    pub ids: Vec<u32>,
    /// How many of them are the prompt.
    pub prompt_len: usize,
    /// What was encoded: the prompt as the chat template wrote it down, or bare text, and the
    /// answer behind it. The special tokens of bare text are in `ids` only. `None` where ids were
    /// given.
    pub text: Option<String>,
    /// What was remarkable about it.
    pub remarks: Vec<Remark>,
}

impl From<Vec<u32>> for Encoded {
    /// Of a prompt without an answer.
    fn from(ids: Vec<u32>) -> Encoded {
        Encoded { prompt_len: ids.len(), ids, text: None, remarks: Vec::new() }
    }
}

impl Encoded {
    /// Of a line of a file, which its remarks are then about.
    pub(crate) fn at(mut self, path: &Path, line: usize) -> Encoded {
        for remark in &mut self.remarks {
            (remark.file, remark.line) = (Some(path.to_owned()), Some(line));
        }
        self
    }
}

/// What stands in for an answer, to see how a template ends one. No template changes it.
const STAND_IN: &str = "fathom-answer-stands-here";

impl TextEncoder<'_> {
    /// The ids of a prompt up to where the answer begins: through the chat template as one user
    /// message, or without one as bare text with its special tokens.
    ///
    /// # Errors
    /// No tokenizer; a template that fails.
    pub fn prompt_ids(&self, prompt: &str) -> Result<Vec<u32>> {
        match self.template {
            Some(_) => self.chat_ids(&[Message::user(prompt)]),
            None => Ok(self.bare_text(prompt)?.ids),
        }
    }

    fn bare_text(&self, text: &str) -> Result<Encoded> {
        let ids = self.tokenizer()?.encode(text, true)?;
        Ok(Encoded { text: Some(text.to_owned()), ..Encoded::from(ids) })
    }

    /// The ids of what a prompt asks, up to where the answer begins.
    ///
    /// # Errors
    /// As [`TextEncoder::conversation_ids`].
    pub fn prompt(&self, content: &PromptContent) -> Result<Encoded> {
        match content {
            PromptContent::Text(text) if self.template.is_some() => {
                self.conversation_ids(&vec![Message::user(text)].into())
            }
            PromptContent::Text(text) => self.bare_text(text),
            PromptContent::Messages(conversation) => self.conversation_ids(conversation),
        }
    }

    /// The ids of messages up to where the next answer begins.
    ///
    /// # Errors
    /// As [`TextEncoder::conversation_ids`].
    pub fn chat_ids(&self, messages: &[Message]) -> Result<Vec<u32>> {
        Ok(self.conversation_ids(&messages.to_vec().into())?.ids)
    }

    /// The ids of a conversation up to where the next answer begins.
    ///
    /// # Errors
    /// No tokenizer; no chat template; a template that fails, or that has no use for a field of the
    /// conversation.
    pub fn conversation_ids(&self, conversation: &Conversation) -> Result<Encoded> {
        let (text, remarks) = self.write_prompt(conversation)?;
        // The template has written every special token there is to be.
        let ids = self.tokenizer()?.encode(&text, false)?;
        Ok(Encoded { remarks, text: Some(text), ..Encoded::from(ids) })
    }

    /// The ids of a prompt and of the output that goes on from it.
    ///
    /// # Errors
    /// No tokenizer; a template that fails.
    pub fn prompt_with_output(&self, prompt: &str, output: &str) -> Result<Encoded> {
        if self.template.is_some() {
            let conversation = vec![Message::user(prompt)].into();
            return self.conversation_with_output(&conversation, output);
        }
        let mut encoded = self.bare_text(prompt)?;
        self.answer(&mut encoded, output)?;
        if let Some(twice) = written_twice(prompt, output) {
            let text = format!("`prompt` ends with {}, and `output` begins with it", twice.shown());
            encoded.remarks.push(Remark::input("written-twice", text));
        }
        Ok(encoded)
    }

    /// The ids of a conversation and of the answer it was given.
    ///
    /// # Errors
    /// As [`TextEncoder::conversation_ids`]; an answer that the template does not write down where
    /// its prompt for one ends.
    pub fn conversation_with_answer(
        &self,
        conversation: &Conversation,
        answer: &Answer,
    ) -> Result<Encoded> {
        match answer {
            Answer::Text(output) => self.conversation_with_output(conversation, output),
            Answer::Turn(turn) => self.conversation_with_turn(conversation, turn),
            Answer::Thought { thinking, answer } => {
                self.conversation_with_thought(conversation, thinking, answer)
            }
        }
    }

    /// Where the template's prompt for the answer ends with what the output begins with, such as
    /// `<think>`, that is written once.
    fn conversation_with_output(
        &self,
        conversation: &Conversation,
        output: &str,
    ) -> Result<Encoded> {
        let (text, remarks) = self.write_prompt(conversation)?;
        let prompt = self.tokenizer()?.encode(&text, false)?;
        let own = match may_be_written_twice(output) {
            true => self.generation_prompt(conversation, &text)?,
            false => "",
        };
        let twice = written_twice(own, output);
        let output = twice.as_ref().map_or(output, |twice| &output[twice.bytes..]);
        let repeated = twice.map(|twice| {
            let text = format!(
                "the answer begins with {}, which the chat template's prompt for it ends with: it is \
                 written once",
                twice.shown()
            );
            Remark::input("written-twice", text)
        });
        let mut encoded = Encoded { remarks, text: Some(text), ..Encoded::from(prompt) };
        self.answer(&mut encoded, output)?;
        encoded.remarks.extend(repeated);
        Ok(encoded)
    }

    /// Thinking and answer as the template writes `reasoning_content`, or where it knows none, the
    /// thinking between `<think>` tags as DeepSeek-R1 writes it.
    fn conversation_with_thought(
        &self,
        conversation: &Conversation,
        thinking: &str,
        answer: &str,
    ) -> Result<Encoded> {
        if self.template.is_some_and(|template| template.mentions("reasoning_content")) {
            let mut turn = Message::new("assistant", answer);
            turn.fields.insert("reasoning_content".to_owned(), Value::from(thinking));
            return self.conversation_with_turn(conversation, &turn);
        }
        let output = format!("<think>\n{thinking}\n</think>\n\n{answer}");
        let mut encoded = match (self.template, conversation.messages.as_slice()) {
            (None, [only]) if conversation.is_plain() => {
                self.prompt_with_output(only.content.as_str(), &output)?
            }
            _ => self.conversation_with_output(conversation, &output)?,
        };
        let text = "thinking and answer are in fields of their own, and the chat template knows no \
                    `reasoning_content`: the thinking is put between `<think>` tags in front of the answer";
        encoded.remarks.push(Remark::input("think-tags", text));
        Ok(encoded)
    }

    /// An answer that is more than a text, as the template writes it down: without what ends the
    /// turn.
    fn conversation_with_turn(
        &self,
        conversation: &Conversation,
        turn: &Message,
    ) -> Result<Encoded> {
        let with = |turn: Message| {
            let mut conversation = conversation.clone();
            conversation.messages.push(turn);
            conversation
        };
        let (prompt, _) = self.write_prompt(conversation)?;
        let (whole, remarks) = self.write_turns(&with(turn.clone()))?;
        let (model, _) = self.write_turns(&with(Message::new("assistant", STAND_IN)))?;
        let end = model.rfind(STAND_IN).map_or("", |at| &model[at + STAND_IN.len()..]);
        let Some(answer) = whole.strip_prefix(prompt.as_str()) else {
            return Err(Error::Request(format!(
                "the chat template writes the answer (`messages[{}]`) otherwise than its prompt for one \
                 begins; give the answer as a text, `output`",
                conversation.len()
            )));
        };
        let answer = answer.strip_suffix(end).unwrap_or(answer);
        let ids = self.tokenizer()?.encode(&prompt, false)?;
        let mut encoded = Encoded { remarks, text: Some(prompt), ..Encoded::from(ids) };
        self.answer(&mut encoded, answer)?;
        Ok(encoded)
    }

    /// Puts an answer behind its prompt.
    fn answer(&self, encoded: &mut Encoded, output: &str) -> Result<()> {
        encoded.ids.extend(self.output_ids(output)?);
        if let Some(text) = &mut encoded.text {
            text.push_str(output);
        }
        Ok(())
    }

    /// The ids of an answer, to follow those of its prompt: without BOS, and without the mark that
    /// some tokenizers put before the first word of a text.
    ///
    /// # Errors
    /// No tokenizer.
    pub fn output_ids(&self, output: &str) -> Result<Vec<u32>> {
        self.tokenizer()?.encode_continuation(output)
    }

    /// Id of BOS, where a tokenizer names one.
    pub fn bos_id(&self) -> Option<u32> {
        self.tokenizer?.bos_id()
    }

    /// Refuses ids a model cannot be given: none at all, two leading BOS, or one outside its
    /// vocabulary.
    ///
    /// # Errors
    /// As said, each naming what was found.
    pub fn check_ids(&self, ids: &[u32]) -> Result<()> {
        if ids.is_empty() {
            return Err(Error::Request("holds no tokens".to_owned()));
        }
        if let Some(bos) = self.bos_id() {
            check_bos(ids, bos)?;
        }
        let outside = |id: &u32| usize::try_from(*id).map_or(true, |id| id >= self.vocab_size);
        match ids.iter().position(outside) {
            Some(position) => Err(Error::Request(format!(
                "token id {} at position {position} is outside the model's vocabulary of {}",
                ids[position], self.vocab_size
            ))),
            None => Ok(()),
        }
    }

    /// A conversation as the template writes it down, up to where the next answer begins.
    fn write_prompt(&self, conversation: &Conversation) -> Result<(String, Vec<Remark>)> {
        let (text, remarks) = self.render(conversation, true)?;
        match (text.is_empty(), self.template) {
            (true, Some(template)) => {
                let problem = "the chat template writes nothing for this conversation";
                Err(Error::file(template.path(), problem))
            }
            _ => Ok((text, remarks)),
        }
    }

    /// The part of a written prompt that begins the answer: what is not there without it, or, where
    /// the template makes no difference, what follows the last message.
    fn generation_prompt<'t>(&self, conversation: &Conversation, text: &'t str) -> Result<&'t str> {
        let (turns, _) = self.write_turns(conversation)?;
        let same = text.chars().zip(turns.chars()).take_while(|(a, b)| a == b);
        let same: usize = same.map(|(c, _)| c.len_utf8()).sum();
        let last = conversation.last().map_or("", |last| last.content.last_text().trim());
        let own = match same == text.len() {
            true => text.rfind(last).map_or(0, |at| at + last.len()),
            false => same,
        };
        Ok(&text[own..])
    }

    /// Finished turns as the template writes them down.
    fn write_turns(&self, conversation: &Conversation) -> Result<(String, Vec<Remark>)> {
        self.render(conversation, false)
    }

    fn render(&self, conversation: &Conversation, prompt: bool) -> Result<(String, Vec<Remark>)> {
        let Some(template) = self.template else {
            return Err(Error::Request(
                "messages need a chat template, and the model directory has none".to_owned(),
            ));
        };
        let render = |messages: &[Message], variables: &Map<String, Value>| {
            let mut options =
                RenderOptions { add_generation_prompt: Some(prompt), ..self.render.clone() };
            for (name, value) in variables {
                options.variables.insert(name.clone(), value.clone());
            }
            // `apply_chat_template` gives these to every template.
            for name in ["tools", "documents"] {
                options.variables.entry(name).or_insert(Value::Null);
            }
            // The line's own word comes before the setting for all lines.
            if variables.contains_key("enable_thinking") {
                options.enable_thinking = None;
            }
            template.render(messages, &options)
        };
        fit(template, conversation, &render)
    }

    fn tokenizer(&self) -> Result<&Tokenizer> {
        self.tokenizer.ok_or_else(|| {
            Error::Request(format!(
                "holds text, but the model directory has no tokenizer.json to encode it with; \
                 {NO_TOKENIZER}"
            ))
        })
    }
}

/// Puts the place of a line before a message about it; the template or tokenizer that could not
/// take the line is named behind it.
pub(crate) fn locate(error: Error, path: &Path, line: usize) -> Error {
    match error {
        Error::Request(problem) => Error::line(path, line, problem),
        Error::File { path: by, problem } => {
            Error::line(path, line, format!("{problem} ({})", by.display()))
        }
        other => other,
    }
}
