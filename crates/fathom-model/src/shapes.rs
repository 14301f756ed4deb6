//! The shapes of rows in published reasoning data sets. Each is read as a conversation and its
//! answers.
//!
//! A shape is recognised by its field names. Known data sets whose rows have the fields of several
//! shapes are recognised first. Any other row that matches two shapes with different contents is an
//! error.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Result;
use crate::conversation::{Conversation, variables};
use crate::jsonl::Record;
use crate::message::Message;
use crate::traces::Answer;

/// Fields with the prompt as a text. The first one present is used.
const PROMPTS: [&str; 5] = ["prompt", "problem", "question", "query", "instruction"];

/// Fields with one answer or a list of answers.
const OUTPUTS: [&str; 6] =
    ["output", "completion", "response", "generated_solution", "solution", "generations"];

/// Fields with prompt, thinking and answer in data sets that separate thinking from the answer:
/// s1K-1.1, s1K, the Gemini answers of s1K-1.1, OpenThoughts with its metadata. The first entry
/// whose fields are all present is used.
const THOUGHTS: [[&str; 3]; 4] = [
    ["question", "deepseek_thinking_trajectory", "deepseek_attempt"],
    ["question", "thinking_trajectories", "attempt"],
    ["question", "gemini_thinking_trajectory", "gemini_attempt"],
    ["problem", "deepseek_reasoning", "deepseek_solution"],
];

/// The user's choice of the fields with prompt and output, as dotted paths.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowFields {
    /// `--prompt-field`.
    #[serde(rename = "prompt_field", skip_serializing_if = "Option::is_none", default)]
    pub prompt: Option<String>,
    /// `--output-field`.
    #[serde(rename = "output_field", skip_serializing_if = "Option::is_none", default)]
    pub output: Option<String>,
}

/// The content of a row.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Reading {
    /// The names of the fields it was read from, for messages.
    pub fields: String,
    pub conversation: Conversation,
    /// Each answer becomes a trace.
    pub answers: Vec<Answer>,
}

/// Reads a row; `None` if it has no known shape.
///
/// # Errors
/// A field has the wrong type, or the row matches two shapes with different contents.
pub(crate) fn read(record: &Record, fields: &RowFields) -> Result<Option<Reading>> {
    let mut readings = match fields {
        RowFields { prompt: None, output: None } => published(record)?,
        chosen => return chosen_fields(record, chosen).map(Some),
    };
    if readings.is_empty() {
        readings = general(record)?;
    }
    let Some(first) = readings.first() else { return Ok(None) };
    let is_same = |other: &&Reading| {
        other.conversation == first.conversation && other.answers == first.answers
    };
    match readings.iter().find(|other| !is_same(other)) {
        Some(other) => Err(record.error(format!(
            "can be read as {} and as {}, which differ; choose with --prompt-field and \
             --output-field",
            first.fields, other.fields
        ))),
        None => Ok(readings.into_iter().next()),
    }
}

/// Reads rows of known data sets that would be ambiguous by the rules of [`general`]. Empty for any
/// other row.
fn published(record: &Record) -> Result<Vec<Reading>> {
    // The output of `fathom generate` and of the paper's authors.
    if record.text("prompt").is_some() && record.text("output").is_some() {
        return Ok(vec![reading(record, "prompt", "output")?]);
    }
    // OpenR1-Math: the answers in `messages` and `solution` are not the model's.
    if record.has("problem") && record.has("generations") {
        return Ok(vec![reading(record, "problem", "generations")?]);
    }
    // s1K-1.1 has both DeepSeek's answers and the Gemini answers of s1K.
    for [prompt, thinking, answer] in THOUGHTS {
        if [prompt, thinking, answer].iter().all(|name| record.has(name)) {
            return Ok(vec![thought(record, prompt, thinking, answer)?]);
        }
    }
    // Llama-Nemotron: the conversation is in `input` and its system message in `system_prompt`.
    if record.value("input").is_some_and(|input| input.is_array()) && record.has("output") {
        return Ok(vec![reading(record, "input", "output")?]);
    }
    Ok(Vec::new())
}

/// Reads a row by the usual field names: one element for each shape that it matches.
fn general(record: &Record) -> Result<Vec<Reading>> {
    let mut readings = Vec::new();
    let mut outputs: Vec<&str> = OUTPUTS.into_iter().filter(|name| record.has(name)).collect();
    if outputs.is_empty() && record.has("answer") {
        outputs.push("answer"); // in rows with a solution, `answer` is only the final result
    }
    for name in ["messages", "conversations"].into_iter().filter(|name| record.has(name)) {
        let conversation = conversation_of(record, name)?;
        let (asked, answer) = conversation.split_answer();
        match answer {
            Some(_) if asked.is_empty() => {
                return Err(record.error(format!("`{name}` holds only an answer of the assistant")));
            }
            Some(turn) => readings.push(Reading {
                fields: format!("`{name}`"),
                conversation: asked.clone(),
                answers: vec![Answer::of(turn)],
            }),
            None if outputs.is_empty() => {
                return Err(record.error(format!(
                    "has `{name}` that do not end with an answer of the assistant, and no `output`"
                )));
            }
            None => {}
        }
        for output in &outputs {
            readings.push(Reading {
                fields: format!("`{name}` with `{output}`"),
                conversation: asked.clone(),
                answers: answers(record, output)?,
            });
        }
    }
    if let Some(prompt) = PROMPTS.into_iter().find(|name| record.has(name)) {
        for output in &outputs {
            readings.push(reading(record, prompt, output)?);
        }
        for name in ["chosen", "rejected"].into_iter().filter(|name| record.has(name)) {
            readings.push(reading(record, prompt, name)?);
        }
    }
    Ok(readings)
}

/// Reads the fields chosen by the user. A field not chosen is found by the usual names.
fn chosen_fields(record: &Record, fields: &RowFields) -> Result<Reading> {
    let find = |what: &str, flag: &str, names: &[&str]| -> Result<String> {
        let found = names.iter().find(|name| record.has(name)).map(|name| (*name).to_owned());
        found.ok_or_else(|| {
            let names = names.join("`, `");
            record.error(format!("has none of `{names}` for its {what}; name it with {flag}"))
        })
    };
    let prompt = match &fields.prompt {
        Some(prompt) => prompt.clone(),
        None => {
            let names: Vec<&str> =
                PROMPTS.into_iter().chain(["messages", "conversations"]).collect();
            find("prompt", "--prompt-field", &names)?
        }
    };
    let output = match &fields.output {
        Some(output) => output.clone(),
        None => find("output", "--output-field", &OUTPUTS)?,
    };
    reading(record, &prompt, &output)
}

fn reading(record: &Record, prompt: &str, output: &str) -> Result<Reading> {
    let (conversation, _) = conversation_of(record, prompt)?.split_answer();
    let answers = answers(record, output)?;
    Ok(Reading { fields: format!("`{prompt}` and `{output}`"), conversation, answers })
}

/// Reads an answer whose thinking is in a separate field, as a string or a list of strings.
fn thought(record: &Record, prompt: &str, thinking: &str, answer: &str) -> Result<Reading> {
    let fields = format!("`{prompt}`, `{thinking}` and `{answer}`");
    let conversation = conversation_of(record, prompt)?;
    let text = |name: &str| match record.value(name) {
        Some(Value::String(text)) => Ok(text),
        Some(Value::Array(parts)) if parts.iter().all(Value::is_string) => {
            Ok(parts.iter().filter_map(Value::as_str).collect::<Vec<_>>().join("\n"))
        }
        _ => Err(record.error(format!("`{name}` must be a string or a list of strings"))),
    };
    let answers = vec![Answer::Thought { thinking: text(thinking)?, answer: text(answer)? }];
    Ok(Reading { fields, conversation, answers })
}

/// Reads the conversation of a field: a text, a list of messages, or a list of `from` and `value`
/// as in ShareGPT. The row's system message and template variables are added.
pub(crate) fn conversation_of(record: &Record, field: &str) -> Result<Conversation> {
    if field == "messages" {
        let conversation = Conversation::read(record)?;
        let absent = || record.error("has no `messages`");
        return Ok(with_system(record, conversation.ok_or_else(absent)?));
    }
    let messages = match at(record, field) {
        Some(Value::String(text)) => vec![Message::user(with_input(record, field, text))],
        Some(Value::Array(turns)) if !turns.is_empty() => messages(record, field, turns)?,
        Some(Value::Array(_)) => return Err(record.error(format!("`{field}` is empty"))),
        Some(_) => {
            return Err(record.error(format!("`{field}` must be a string or a list of messages")));
        }
        None => return Err(record.error(format!("has no `{field}`"))),
    };
    Ok(with_system(record, Conversation { messages, variables: variables(record)? }))
}

/// Adds the system message that a row has in a separate field.
fn with_system(record: &Record, mut conversation: Conversation) -> Conversation {
    let system = ["system", "system_prompt"].into_iter().find_map(|name| record.text(name));
    if let Some(system) = system.filter(|system| !system.is_empty()) {
        conversation.add_system(&system);
    }
    conversation
}

/// Appends Alpaca's `input` to its `instruction`.
fn with_input(record: &Record, field: &str, text: String) -> String {
    match record.text("input").filter(|input| field == "instruction" && !input.is_empty()) {
        Some(input) => format!("{text}\n{input}"),
        None => text,
    }
}

/// Converts turns with `role` and `content`, or with `from` and `value`, to messages.
fn messages(record: &Record, field: &str, turns: Vec<Value>) -> Result<Vec<Message>> {
    let wrong =
        |place: usize, problem: String| record.error(format!("`{field}[{place}]` {problem}"));
    let message = |(place, turn): (usize, Value)| -> Result<Message> {
        let (from, value) = (turn.get("from"), turn.get("value"));
        if let (Some(Value::String(from)), Some(Value::String(value))) = (from, value) {
            let role = match from.as_str() {
                "human" | "user" => "user",
                "gpt" | "assistant" | "model" | "chatgpt" | "bot" => "assistant",
                "system" => "system",
                "tool" | "observation" => "tool",
                other => {
                    let other = crate::sanitize::sanitize(other);
                    return Err(wrong(
                        place,
                        format!("is from `{other}`, which is not a known speaker"),
                    ));
                }
            };
            return Ok(Message::new(role, value.clone()));
        }
        serde_json::from_value(turn).map_err(|error| {
            let detail = crate::sanitize::sanitize(&error.to_string());
            wrong(
                place,
                format!("must be an object with the strings `role` and `content`; {detail}"),
            )
        })
    };
    turns.into_iter().enumerate().map(message).collect()
}

/// Reads the answers of a field: a text, a list of texts, a message, or a list of messages that
/// ends with the answer.
fn answers(record: &Record, field: &str) -> Result<Vec<Answer>> {
    let of = |value: Value| -> Result<Answer> {
        match value {
            Value::String(text) => Ok(Answer::Text(text)),
            turn @ Value::Object(_) => {
                Ok(Answer::of(messages(record, field, vec![turn])?.remove(0)))
            }
            _ => Err(record.error(format!("`{field}` must hold texts or messages"))),
        }
    };
    match at(record, field) {
        Some(Value::Array(items)) if items.first().is_some_and(Value::is_object) => {
            let conversation = Conversation::from(messages(record, field, items)?);
            match conversation.split_answer() {
                (_, Some(turn)) => Ok(vec![Answer::of(turn)]),
                _ => Err(record.error(format!("`{field}` must end with a turn of the assistant"))),
            }
        }
        Some(Value::Array(items)) if items.is_empty() => {
            Err(record.error(format!("`{field}` is empty")))
        }
        Some(Value::Array(items)) => items.into_iter().map(of).collect(),
        Some(value) => Ok(vec![of(value)?]),
        None => Err(record.error(format!("has no `{field}`"))),
    }
}

/// The value at a dotted path, in which a number is the index of a list element.
fn at(record: &Record, path: &str) -> Option<Value> {
    if let Some(value) = record.value(path) {
        return Some(value); // a field whose name contains the dots
    }
    let (first, rest) = path.split_once('.')?;
    let mut value = record.value(first)?;
    for part in rest.split('.') {
        value = match value {
            Value::Array(mut items) => {
                let place: usize = part.parse().ok().filter(|place| *place < items.len())?;
                items.swap_remove(place)
            }
            Value::Object(mut object) => object.shift_remove(part)?,
            _ => return None,
        };
    }
    Some(value).filter(|value| !value.is_null())
}

impl Answer {
    /// The answer in an assistant turn: a text if the turn has no other fields.
    pub(crate) fn of(turn: Message) -> Answer {
        match turn.content {
            crate::Content::Text(text) if turn.fields.values().all(Value::is_null) => {
                Answer::Text(text)
            }
            content => Answer::Turn(Message { content, ..turn }),
        }
    }
}
