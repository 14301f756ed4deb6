//! `POST /tokenize` and `POST /detokenize`, as in vLLM.

use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::chat;
use super::fields::Fields;
use super::message::ChatMessage;
use crate::error::ApiError;
use crate::limits;
use crate::model::ServedModel;
use crate::types::info::{Detokenized, Tokenized};

/// A text or a conversation to encode.
#[derive(ToSchema)]
#[allow(dead_code, reason = "describes the request in /openapi.json")]
pub struct TokenizeRequest {
    /// The model; the served one if absent.
    pub model: Option<String>,
    /// The text. Either this or `messages`.
    pub prompt: Option<String>,
    /// The conversation.
    pub messages: Option<Vec<ChatMessage>>,
    /// Whether the tokenizer adds its special tokens, such as BOS, to a text. Default: true
    pub add_special_tokens: Option<bool>,
    /// Whether to return the tokens' texts.
    pub return_token_strs: Option<bool>,
    /// Variables for the chat template.
    pub chat_template_kwargs: Option<Map<String, Value>>,
}

/// Token ids to decode.
#[derive(ToSchema)]
#[allow(dead_code, reason = "describes the request in /openapi.json")]
pub struct DetokenizeRequest {
    /// The model; the served one if absent.
    pub model: Option<String>,
    /// Token ids.
    pub tokens: Vec<u32>,
}

/// The tokens of a text or a conversation.
///
/// # Errors
/// Whatever is wrong with the request.
pub fn tokenize(mut fields: Fields, model: &ServedModel) -> Result<Tokenized, ApiError> {
    super::model(&mut fields, model)?;
    let strings = fields.boolean("return_token_strs")?.unwrap_or(false);
    let tokens = match fields.string("prompt")? {
        Some(text) => {
            let special = fields.boolean("add_special_tokens")?.unwrap_or(true);
            fields.inert("messages", "`prompt` is given; expected one of them", |_| false)?;
            fields.finish()?;
            let encoded = model.tokenizer.encode(&text, special);
            encoded.map_err(|error| ApiError::internal(error.to_string()))?
        }
        None => {
            let why = "a chat template writes the special tokens itself; expected false";
            fields.inert("add_special_tokens", why, |value| value == false)?;
            let why = "the prompt ends where the answer begins; expected true";
            fields.inert("add_generation_prompt", why, |value| value == true)?;
            let conversation = chat::conversation(&mut fields)?;
            fields.finish()?;
            chat::encode(conversation, model)?
        }
    };
    let token_strs =
        strings.then(|| tokens.iter().map(|&id| model.tokenizer.token_text(id)).collect());
    Ok(Tokenized { count: tokens.len(), max_model_len: model.context, tokens, token_strs })
}

/// The text of token ids.
///
/// # Errors
/// Whatever is wrong with the request.
pub fn detokenize(mut fields: Fields, model: &ServedModel) -> Result<Detokenized, ApiError> {
    super::model(&mut fields, model)?;
    let ids = fields.ids("tokens", limits::IDS)?;
    let ids = ids.ok_or_else(|| fields.error("tokens", "is missing; expected token ids"))?;
    fields.finish()?;
    if let Some(id) = ids.iter().find(|&&id| id as usize >= model.vocab) {
        let problem = format!("has the token {id}; expected ids below {}", model.vocab);
        return Err(ApiError::field("tokens", problem));
    }
    let prompt = model.tokenizer.decode(&ids);
    Ok(Detokenized { prompt: prompt.map_err(|error| ApiError::internal(error.to_string()))? })
}
