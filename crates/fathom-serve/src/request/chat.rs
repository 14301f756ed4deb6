//! `POST /v1/chat/completions`.

use fathom_model::{ChatTemplate, Conversation, parse_template_kwargs};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::choices::{self, Choices, StreamOptions};
use super::fathom::FathomFields;
use super::fields::Fields;
use super::message::{self, ChatMessage};
use super::response_format::{self, ResponseFormat};
use super::sampling::SamplingFields;
use super::tools::{self, ToolChoice, ToolFields, Tools};
use crate::app::App;
use crate::error::ApiError;
use crate::generation::Job;
use crate::limits;
use crate::model::ServedModel;
use crate::tools::ToolUse;

/// A conversation to answer.
#[derive(ToSchema)]
#[allow(dead_code, reason = "describes the request in /openapi.json")]
pub struct ChatRequest {
    /// The model; the served one if absent.
    pub model: Option<String>,
    /// The conversation.
    #[schema(min_items = 1)]
    pub messages: Vec<ChatMessage>,
    /// Sampling parameters.
    #[serde(flatten)]
    pub sampling: SamplingFields,
    /// The newer name of `max_tokens`.
    #[schema(minimum = 1)]
    pub max_completion_tokens: Option<usize>,
    /// Whether to report the log-probability of each token: the target's, before penalties and
    /// sampling.
    pub logprobs: Option<bool>,
    /// Number of most likely tokens reported with each token; needs `logprobs`.
    #[schema(minimum = 0, maximum = 20)]
    pub top_logprobs: Option<usize>,
    /// Number of answers.
    #[schema(minimum = 1, maximum = 128)]
    pub n: Option<usize>,
    /// Whether to stream the answers as server-sent events.
    pub stream: Option<bool>,
    /// Options of the stream.
    pub stream_options: Option<StreamOptions>,
    /// What the text must be.
    pub response_format: Option<ResponseFormat>,
    /// Functions that the model may call.
    pub tools: Option<Vec<ToolFields>>,
    /// Which of them are called. Default: `auto`
    pub tool_choice: Option<ToolChoice>,
    /// Whether several calls may be made.
    pub parallel_tool_calls: Option<bool>,
    /// Variables for the chat template.
    pub chat_template_kwargs: Option<Map<String, Value>>,
    /// A label for the client's own records.
    pub user: Option<String>,
    /// Fathom's own fields.
    pub fathom: Option<FathomFields>,
}

/// Reads a request and encodes its prompt. This may take long for a long conversation. Returns the
/// texts to generate, and how calls of tools are found in them.
///
/// # Errors
/// Whatever is wrong with the request.
pub fn read(mut fields: Fields, app: &App) -> Result<(Job, Option<ToolUse>), ApiError> {
    let model = &app.model;
    super::model(&mut fields, model)?;
    let mut sampling = SamplingFields::read(&mut fields)?;
    choices::max_completion_tokens(&mut fields, &mut sampling.max_tokens)?;
    let choices = Choices::read(&mut fields)?;
    let logprobs = logprobs(&mut fields)?;
    let mut conversation = conversation(&mut fields)?;
    let Tools { for_template, tool_use, grammar } = tools::read(&mut fields, app)?;
    let format = response_format::read(&mut fields, app)?;
    inert_fields(&mut fields)?;
    fields.finish()?;
    if format.is_some() && tool_use.is_some() {
        let problem = "cannot be combined with `tools` that may be called";
        return Err(ApiError::field("response_format", problem));
    }
    let grammar = grammar.or(format);
    if !for_template.is_empty() {
        // A function that must be called needs no template that knows tools.
        let known = model.template.as_ref().is_some_and(|template| template.mentions("tools"));
        if known || grammar.is_none() {
            conversation.variables.insert("tools".to_owned(), Value::Array(for_template));
        }
    }
    let asked = sampling.max_tokens;
    let params = sampling.over(&model.defaults, model.vocab)?;
    let ids = encode(conversation, model)?;
    choices::check_constrained(grammar.is_some(), &params)?;
    choices::check_length(ids.len(), asked, model.context)?;
    let prompts = vec![ids.into()];
    let job = Job { prompts, params, choices, logprobs, scores_prompts: false, grammar };
    Ok((job, tool_use))
}

/// Reads `logprobs` and `top_logprobs`.
fn logprobs(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    let wanted = fields.boolean("logprobs")?.unwrap_or(false);
    let top = fields.count("top_logprobs", 0, limits::TOP_LOGPROBS)?;
    match (wanted, top) {
        (false, Some(1..)) => Err(fields.error("top_logprobs", "needs `logprobs` to be true")),
        (false, _) => Ok(None),
        (true, top) => Ok(Some(top.unwrap_or(0))),
    }
}

/// Reads `messages` and the variables of the template.
///
/// # Errors
/// Wrong values.
pub fn conversation(fields: &mut Fields) -> Result<Conversation, ApiError> {
    let list = fields.list("messages", limits::MESSAGES)?;
    let list = list.ok_or_else(|| fields.error("messages", "is missing; expected a list"))?;
    if list.is_empty() {
        return Err(fields.error("messages", "is empty; expected at least one message"));
    }
    let read = |(number, value)| message::message(&format!("messages[{number}]"), value);
    let messages = list.into_iter().enumerate().map(read).collect::<Result<Vec<_>, _>>()?;
    let mut conversation = Conversation::from(messages);
    if let Some(kwargs) = fields.map("chat_template_kwargs")? {
        let kwargs = parse_template_kwargs(&Value::Object(kwargs).to_string());
        conversation.variables =
            kwargs.map_err(|error| fields.error("chat_template_kwargs", error.to_string()))?;
    }
    let documents = fields.list("documents", limits::LIST)?.filter(|list| !list.is_empty());
    let documents = documents.map(|list| ("documents".to_owned(), Value::Array(list)));
    conversation.variables.extend(documents);
    Ok(conversation)
}

/// The token ids of a conversation.
///
/// # Errors
/// The template fails, or has no use for a field.
pub fn encode(mut conversation: Conversation, model: &ServedModel) -> Result<Vec<u32>, ApiError> {
    let Some(template) = &model.template else {
        let problem = "cannot be used: the model has no chat template; use /v1/completions";
        return Err(ApiError::field("messages", problem));
    };
    let named = tool_names(&mut conversation, template);
    let encoded = model.encode_chat(conversation).map_err(template_error)?;
    let is_named = |text: &str| named.iter().any(|name| text.starts_with(name));
    match encoded.remarks.iter().find(|remark| !is_named(&remark.text)) {
        None => Ok(encoded.ids),
        Some(remark) => Err(ApiError::about(&remark.text)),
    }
}

/// The `name` of a message of role `tool` only identifies the tool, as `tool_call_id` does, so a
/// template may do without it. Removes names that the template does not know; returns the places of
/// the others, as errors write them.
fn tool_names(conversation: &mut Conversation, template: &ChatTemplate) -> Vec<String> {
    let knows_names = template.mentions("name");
    let mut named = Vec::new();
    for (number, message) in conversation.messages.iter_mut().enumerate() {
        if message.role == "tool" && message.fields.contains_key("name") {
            match knows_names {
                true => named.push(format!("`messages[{number}].name`")),
                false => drop(message.fields.shift_remove("name")),
            }
        }
    }
    named
}

/// An error of the template without the file's path, which is not the client's business.
fn template_error(error: fathom_model::Error) -> ApiError {
    match error {
        fathom_model::Error::File { problem, .. } => {
            ApiError::field("messages", format!("cannot be rendered: {problem}"))
        }
        other => {
            let message = other.to_string();
            let end = message.rfind(" (").filter(|_| message.ends_with(')'));
            ApiError::about(&message[..end.unwrap_or(message.len())])
        }
    }
}

/// Fields of OpenAI that are accepted only if they ask for nothing.
fn inert_fields(fields: &mut Fields) -> Result<(), ApiError> {
    let alone = |value: &Value| value.as_array().is_some_and(|list| *list == ["text"]);
    fields.inert("modalities", "only text is generated; expected [\"text\"]", alone)?;
    let why = "answers are not stored; expected false";
    fields.inert("store", why, |value| value == false)?;
    let why = "there are no tiers; expected `auto` or `default`";
    fields.inert("service_tier", why, |value| value == "auto" || value == "default")?;
    for name in ["functions", "function_call"] {
        fields.inert(name, "it was replaced by `tools`", |_| false)?;
    }
    Ok(())
}
