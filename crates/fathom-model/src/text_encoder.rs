//! Turns a prompt, a conversation or a trace into the token ids of a model's input.

use std::path::Path;

use serde_json::{Map, Value};

use crate::chat_template::{ChatTemplate, RenderOptions};
use crate::conversation::Conversation;
use crate::message::Message;
use crate::prompts::PromptContent;
use crate::repeated_tags::{may_repeat_tags, repeated_tags};
use crate::template_fields::render_checked;
use crate::tokenizer::{NO_TOKENIZER, check_bos};
use crate::traces::Answer;
use crate::{Error, Remark, Result, Tokenizer};

/// Everything that determines the token ids of a text.
pub struct TextEncoder<'a> {
    /// The checkpoint's tokenizer. Traces of explicit ids need none.
    pub tokenizer: Option<&'a Tokenizer>,
    /// The checkpoint's chat template. With `None`, prompts are encoded as bare text.
    pub template: Option<&'a ChatTemplate>,
    /// Options and variables for the template. Variables of a line override these, and
    /// `add_generation_prompt` is ignored.
    pub render: RenderOptions,
    /// Rows of the model's embedding; ids must be below this.
    pub vocab_size: usize,
}

/// An encoded prompt, with the answer if there is one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Encoded {
    /// The ids of prompt and answer.
    pub ids: Vec<u32>,
    /// How many of the ids belong to the prompt.
    pub prompt_len: usize,
    /// The text that was encoded: the rendered chat template or the bare text, then the answer.
    /// Special tokens added to bare text appear in `ids` only. `None` if the input was ids.
    pub text: Option<String>,
    /// Findings that a user should know.
    pub remarks: Vec<Remark>,
}

impl From<Vec<u32>> for Encoded {
    /// The ids of a prompt without an answer.
    fn from(ids: Vec<u32>) -> Encoded {
        Encoded { prompt_len: ids.len(), ids, text: None, remarks: Vec::new() }
    }
}

impl Encoded {
    /// Sets the file and line that the remarks refer to.
    pub(crate) fn at(mut self, path: &Path, line: usize) -> Encoded {
        for remark in &mut self.remarks {
            (remark.file, remark.line) = (Some(path.to_owned()), Some(line));
        }
        self
    }
}

/// An answer that is rendered only to see what a template writes after an answer. Templates leave
/// such a word unchanged.
const PLACEHOLDER: &str = "fathom-answer-stands-here";

impl TextEncoder<'_> {
    /// The ids of a prompt, including the generation prompt.
    ///
    /// With a chat template the prompt is rendered as one user message. Otherwise it is bare text
    /// with its special tokens.
    ///
    /// # Errors
    /// There is no tokenizer, or the template fails.
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

    /// The encoded content of a prompt, including the generation prompt.
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

    /// The ids of messages, including the generation prompt.
    ///
    /// # Errors
    /// As [`TextEncoder::conversation_ids`].
    pub fn chat_ids(&self, messages: &[Message]) -> Result<Vec<u32>> {
        Ok(self.conversation_ids(&messages.to_vec().into())?.ids)
    }

    /// The encoded conversation, including the generation prompt.
    ///
    /// # Errors
    /// There is no tokenizer or no chat template; the template fails or does not use a field of the
    /// conversation.
    pub fn conversation_ids(&self, conversation: &Conversation) -> Result<Encoded> {
        let (text, remarks) = self.render_prompt(conversation)?;
        // The template has written all special tokens already.
        let ids = self.tokenizer()?.encode(&text, false)?;
        Ok(Encoded { remarks, text: Some(text), ..Encoded::from(ids) })
    }

    /// The encoded prompt followed by the output.
    ///
    /// # Errors
    /// There is no tokenizer, or the template fails.
    pub fn prompt_with_output(&self, prompt: &str, output: &str) -> Result<Encoded> {
        if self.template.is_some() {
            let conversation = vec![Message::user(prompt)].into();
            return self.conversation_with_output(&conversation, output);
        }
        let mut encoded = self.bare_text(prompt)?;
        self.append_answer(&mut encoded, output)?;
        if let Some(repeated) = repeated_tags(prompt, output) {
            let tags = repeated.quoted();
            let text = format!("`prompt` ends with {tags}, and `output` begins with it");
            encoded.remarks.push(Remark::input("written-twice", text));
        }
        Ok(encoded)
    }

    /// The encoded conversation followed by its answer.
    ///
    /// # Errors
    /// As [`TextEncoder::conversation_ids`]; the template does not render the answer as a
    /// continuation of its generation prompt.
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

    /// Appends an output given as text. If the output repeats tags that end the template's
    /// generation prompt, such as `<think>`, they are written once.
    fn conversation_with_output(
        &self,
        conversation: &Conversation,
        output: &str,
    ) -> Result<Encoded> {
        let (text, remarks) = self.render_prompt(conversation)?;
        let prompt = self.tokenizer()?.encode(&text, false)?;
        let generation_prompt = match may_repeat_tags(output) {
            true => self.generation_prompt(conversation, &text)?,
            false => "",
        };
        let repeated = repeated_tags(generation_prompt, output);
        let output = repeated.as_ref().map_or(output, |repeated| &output[repeated.bytes..]);
        let remark = repeated.map(|repeated| {
            let text = format!(
                "the answer begins with {}, but the chat template's generation prompt already ends \
                 with it: it is written once",
                repeated.quoted()
            );
            Remark::input("written-twice", text)
        });
        let mut encoded = Encoded { remarks, text: Some(text), ..Encoded::from(prompt) };
        self.append_answer(&mut encoded, output)?;
        encoded.remarks.extend(remark);
        Ok(encoded)
    }

    /// Appends thinking and answer. The template renders the thinking as `reasoning_content` if it
    /// mentions that field; otherwise it is put between `<think>` tags as DeepSeek-R1 writes it.
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
        let text = "thinking and answer are in separate fields, but the chat template does not \
                    use `reasoning_content`: the thinking is put between `<think>` tags before \
                    the answer";
        encoded.remarks.push(Remark::input("think-tags", text));
        Ok(encoded)
    }

    /// Appends an answer that has fields besides its text, as the template renders it, but without
    /// the text that ends a turn.
    ///
    /// The text that ends a turn is what follows [`PLACEHOLDER`] when that is rendered as the
    /// answer.
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
        let (prompt, _) = self.render_prompt(conversation)?;
        let (whole, remarks) = self.render_turns(&with(turn.clone()))?;
        let (sample, _) = self.render_turns(&with(Message::new("assistant", PLACEHOLDER)))?;
        let end = sample.rfind(PLACEHOLDER).map_or("", |at| &sample[at + PLACEHOLDER.len()..]);
        let Some(answer) = whole.strip_prefix(prompt.as_str()) else {
            return Err(Error::Request(format!(
                "the chat template does not render the answer (`messages[{}]`) as a continuation \
                 of its generation prompt; give the answer as a text, `output`",
                conversation.len()
            )));
        };
        let answer = answer.strip_suffix(end).unwrap_or(answer);
        let ids = self.tokenizer()?.encode(&prompt, false)?;
        let mut encoded = Encoded { remarks, text: Some(prompt), ..Encoded::from(ids) };
        self.append_answer(&mut encoded, answer)?;
        Ok(encoded)
    }

    /// Appends the ids and the text of an answer to its prompt.
    fn append_answer(&self, encoded: &mut Encoded, output: &str) -> Result<()> {
        encoded.ids.extend(self.output_ids(output)?);
        if let Some(text) = &mut encoded.text {
            text.push_str(output);
        }
        Ok(())
    }

    /// The ids of an answer, to be appended to those of its prompt: without BOS, and without the
    /// `▁` or space that some tokenizers put before the first word of a text.
    ///
    /// # Errors
    /// There is no tokenizer.
    pub fn output_ids(&self, output: &str) -> Result<Vec<u32>> {
        self.tokenizer()?.encode_continuation(output)
    }

    /// Id of BOS, if there is a tokenizer that names one.
    pub fn bos_id(&self) -> Option<u32> {
        self.tokenizer?.bos_id()
    }

    /// Rejects ids that cannot be a model's input.
    ///
    /// # Errors
    /// There are no ids, the first two are BOS, or one is outside the vocabulary.
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

    /// The rendered conversation, including the generation prompt.
    fn render_prompt(&self, conversation: &Conversation) -> Result<(String, Vec<Remark>)> {
        let (text, remarks) = self.render(conversation, true)?;
        match (text.is_empty(), self.template) {
            (true, Some(template)) => {
                let problem = "the chat template renders this conversation as an empty text";
                Err(Error::file(template.path(), problem))
            }
            _ => Ok((text, remarks)),
        }
    }

    /// The generation prompt at the end of the rendered prompt `text`: what `add_generation_prompt`
    /// adds, or, if it adds nothing, the text after the last message.
    fn generation_prompt<'t>(&self, conversation: &Conversation, text: &'t str) -> Result<&'t str> {
        let (turns, _) = self.render_turns(conversation)?;
        let same = text.chars().zip(turns.chars()).take_while(|(a, b)| a == b);
        let same: usize = same.map(|(c, _)| c.len_utf8()).sum();
        let last = conversation.last().map_or("", |last| last.content.last_text().trim());
        let start = match same == text.len() {
            true => text.rfind(last).map_or(0, |at| at + last.len()),
            false => same,
        };
        Ok(&text[start..])
    }

    /// The rendered conversation without a generation prompt.
    fn render_turns(&self, conversation: &Conversation) -> Result<(String, Vec<Remark>)> {
        self.render(conversation, false)
    }

    fn render(
        &self,
        conversation: &Conversation,
        add_generation_prompt: bool,
    ) -> Result<(String, Vec<Remark>)> {
        let Some(template) = self.template else {
            return Err(Error::Request(
                "messages need a chat template, and the model directory has none".to_owned(),
            ));
        };
        let render = |messages: &[Message], variables: &Map<String, Value>| {
            let mut options = self.render.clone();
            options.add_generation_prompt = Some(add_generation_prompt);
            for (name, value) in variables {
                options.variables.insert(name.clone(), value.clone());
            }
            // `apply_chat_template` always defines these, as None if they are not given.
            for name in ["tools", "documents"] {
                options.variables.entry(name).or_insert(Value::Null);
            }
            // The setting of the line overrides the setting for all lines.
            if variables.contains_key("enable_thinking") {
                options.enable_thinking = None;
            }
            template.render(messages, &options)
        };
        render_checked(template, conversation, &render)
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

/// Adds the file and number of a line to an error. If a template or tokenizer failed, its file is
/// appended in parentheses.
pub(crate) fn locate(error: Error, path: &Path, line: usize) -> Error {
    match error {
        Error::Request(problem) => Error::line(path, line, problem),
        Error::File { path: failed, problem } => {
            Error::line(path, line, format!("{problem} ({})", failed.display()))
        }
        other => other,
    }
}
