//! `POST /v1/completions`.

use std::sync::Arc;

use serde_json::Value;
use utoipa::ToSchema;

use super::choices::{self, Choices, StreamOptions};
use super::fathom::FathomFields;
use super::fields::{self, Fields, wrong};
use super::response_format::{self, ResponseFormat};
use super::sampling::SamplingFields;
use crate::app::App;
use crate::error::ApiError;
use crate::generation::Job;
use crate::limits;
use crate::model::ServedModel;

/// Texts to complete.
#[derive(ToSchema)]
#[allow(dead_code, reason = "describes the request in /openapi.json")]
pub struct CompletionRequest {
    /// The model; the served one if absent.
    pub model: Option<String>,
    /// The prompt, or a list of prompts; each a text or token ids, with at least one token.
    pub prompt: Prompt,
    /// Sampling parameters.
    #[serde(flatten)]
    pub sampling: SamplingFields,
    /// Number of most likely tokens reported with the log-probability of each token: the target's,
    /// before penalties and sampling. With `echo` also of the prompt, whose first token has none.
    #[schema(minimum = 0, maximum = 20)]
    pub logprobs: Option<usize>,
    /// Number of texts for each prompt.
    #[schema(minimum = 1, maximum = 128)]
    pub n: Option<usize>,
    /// Whether the text begins with the prompt.
    pub echo: Option<bool>,
    /// Whether the tokenizer adds its special tokens, such as BOS, to prompts that are texts.
    pub add_special_tokens: Option<bool>,
    /// What the text must be.
    pub response_format: Option<ResponseFormat>,
    /// Whether to stream the texts as server-sent events.
    pub stream: Option<bool>,
    /// Options of the stream.
    pub stream_options: Option<StreamOptions>,
    /// A label for the client's own records.
    pub user: Option<String>,
    /// Fathom's own fields.
    pub fathom: Option<FathomFields>,
}

/// A prompt, or a list of prompts.
#[derive(ToSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "describes `prompt` in /openapi.json")]
pub enum Prompt {
    /// A text.
    Text(String),
    /// Texts.
    Texts(Vec<String>),
    /// Token ids.
    Ids(Vec<u32>),
    /// Lists of token ids.
    IdLists(Vec<Vec<u32>>),
}

/// A prompt that the text begins with.
pub struct Echoed {
    /// Its text.
    pub text: String,
    /// Its tokens.
    pub ids: Arc<[u32]>,
}

/// Reads a request and encodes its prompts. This may take long for a long prompt. Returns the texts
/// to generate, and the prompts if they begin with them.
///
/// # Errors
/// Whatever is wrong with the request.
pub fn read(mut fields: Fields, app: &App) -> Result<(Job, Option<Vec<Echoed>>), ApiError> {
    let model = &app.model;
    super::model(&mut fields, model)?;
    let mut sampling = SamplingFields::read(&mut fields)?;
    choices::max_completion_tokens(&mut fields, &mut sampling.max_tokens)?;
    let choices = Choices::read(&mut fields)?;
    let special = fields.boolean("add_special_tokens")?.unwrap_or(true);
    let echo = fields.boolean("echo")?.unwrap_or(false);
    let logprobs = fields.count("logprobs", 0, limits::TOP_LOGPROBS)?;
    let n = choices.n;
    let why = format!("texts are not ranked; expected {n}, which is `n`");
    fields.inert("best_of", &why, |value| fields::integer(value) == i64::try_from(n).ok())?;
    fields.inert("suffix", "text cannot be inserted before another", |value| value == "")?;
    let prompts = prompts(&mut fields, n)?;
    let grammar = response_format::read(&mut fields, app)?;
    fields.finish()?;
    let asked = sampling.max_tokens;
    let params = sampling.over(&model.defaults, model.vocab)?;
    choices::check_constrained(grammar.is_some(), &params)?;
    let mut ids: Vec<Arc<[u32]>> = Vec::with_capacity(prompts.len());
    let mut echoed = Vec::new();
    for prompt in prompts {
        let (prompt, text) = encode(prompt, special, echo, model)?;
        choices::check_length(prompt.len(), asked, model.context)?;
        let prompt: Arc<[u32]> = prompt.into();
        echoed.extend(text.map(|text| Echoed { text, ids: Arc::clone(&prompt) }));
        ids.push(prompt);
    }
    let scores_prompts = echo && logprobs.is_some();
    let job = Job { prompts: ids, params, choices, logprobs, scores_prompts, grammar };
    Ok((job, echo.then_some(echoed)))
}

/// One prompt.
enum OnePrompt {
    Text(String),
    Ids(Vec<u32>),
}

/// Reads `prompt`: a text, token ids, or a list of either.
fn prompts(fields: &mut Fields, n: usize) -> Result<Vec<OnePrompt>, ApiError> {
    let expected = "a text, a list of texts, a list of token ids or a list of such lists";
    let list = match fields.value("prompt") {
        None => return Err(fields.error("prompt", format!("is missing; expected {expected}"))),
        Some(Value::String(text)) => return Ok(vec![OnePrompt::Text(text)]),
        Some(Value::Array(list)) => list,
        Some(other) => return Err(wrong("prompt", &other, expected)),
    };
    match list.first() {
        None => return Err(fields.error("prompt", format!("is empty; expected {expected}"))),
        Some(Value::Number(_)) if list.len() <= limits::IDS => {
            return Ok(vec![OnePrompt::Ids(fields::ids("prompt", &list)?)]);
        }
        Some(_) => {}
    }
    let (number, most) = (list.len(), limits::CHOICES / n);
    if number > most {
        let problem = format!("has {number} prompts; expected at most {most} with `n` = {n}");
        return Err(fields.error("prompt", problem));
    }
    let read = |(number, value): (usize, Value)| match value {
        Value::String(text) => Ok(OnePrompt::Text(text)),
        Value::Array(list) => Ok(OnePrompt::Ids(fields::ids(&format!("prompt[{number}]"), &list)?)),
        other => Err(wrong(&format!("prompt[{number}]"), &other, "a text or token ids")),
    };
    list.into_iter().enumerate().map(read).collect()
}

/// The token ids of a prompt, and its text if that is echoed.
fn encode(
    prompt: OnePrompt,
    special: bool,
    echo: bool,
    model: &ServedModel,
) -> Result<(Vec<u32>, Option<String>), ApiError> {
    let refused = |error: fathom_model::Error| match error {
        fathom_model::Error::Request(problem) => ApiError::field("prompt", problem),
        fathom_model::Error::File { problem, .. } => ApiError::field("prompt", problem),
        other => ApiError::internal(other.to_string()),
    };
    match prompt {
        OnePrompt::Text(text) => {
            let ids = model.encode_text(&text, special).map_err(refused)?;
            Ok((ids, echo.then_some(text)))
        }
        OnePrompt::Ids(ids) => {
            model.check_ids(&ids).map_err(refused)?;
            let text = echo.then(|| model.tokenizer.decode(&ids)).transpose().map_err(refused)?;
            Ok((ids, text))
        }
    }
}
