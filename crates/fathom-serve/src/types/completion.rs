//! Completions of text, whole and streamed.

use serde::Serialize;
use utoipa::ToSchema;

use super::logprobs::CompletionLogprobs;
use super::usage::{ChoiceFathom, Usage};

/// Completions of one or more prompts, or a piece of them.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Completion {
    /// The id of this answer.
    pub id: String,
    /// `text_completion`
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: u64,
    /// The model.
    pub model: String,
    /// Identifies the weights and the decoding mode.
    pub system_fingerprint: String,
    /// The texts: `n` for each prompt, in the order of the prompts.
    pub choices: Vec<CompletionChoice>,
    /// What the request used. In a stream: in the last piece, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

/// One text, or a piece of it.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct CompletionChoice {
    /// Its index.
    pub index: usize,
    /// The text; in a stream, what is new.
    pub text: String,
    /// Log-probabilities, if asked for.
    pub logprobs: Option<CompletionLogprobs>,
    /// `stop` or `length`; null in a stream until the text ends
    pub finish_reason: Option<&'static str>,
    /// Tokens and sinks.
    pub fathom: ChoiceFathom,
}
