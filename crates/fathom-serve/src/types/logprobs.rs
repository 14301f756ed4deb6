//! Log-probabilities in the two formats of OpenAI.

use serde::{Serialize, Serializer};
use utoipa::ToSchema;

/// Log-probabilities of a chat answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, ToSchema)]
pub struct ChatLogprobs {
    /// One entry per token.
    pub content: Vec<ChatTokenLogprob>,
    /// Always null.
    pub refusal: Option<Vec<ChatTokenLogprob>>,
}

/// The log-probability of a token and of the most likely tokens in its place.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct ChatTokenLogprob {
    /// The token's text.
    pub token: String,
    /// Its natural log-probability.
    pub logprob: f32,
    /// The token's bytes, which need not be whole characters.
    pub bytes: Vec<u8>,
    /// The most likely tokens.
    pub top_logprobs: Vec<TopLogprob>,
}

/// One of the most likely tokens.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct TopLogprob {
    /// The token's text.
    pub token: String,
    /// Its natural log-probability.
    pub logprob: f32,
    /// The token's bytes, which need not be whole characters.
    pub bytes: Vec<u8>,
}

/// Log-probabilities of a completion: lists with one entry per token.
#[derive(Clone, Debug, Default, PartialEq, Serialize, ToSchema)]
pub struct CompletionLogprobs {
    /// The tokens' texts.
    pub tokens: Vec<String>,
    /// Their natural log-probabilities; null for the first token of an echoed prompt.
    pub token_logprobs: Vec<Option<f32>>,
    /// The most likely tokens in each place, by text; null for the first token of such a prompt.
    #[schema(value_type = Vec<Option<std::collections::HashMap<String, f32>>>)]
    pub top_logprobs: Vec<Option<LogprobsByText>>,
    /// Where each token begins in the text, in characters.
    pub text_offset: Vec<usize>,
}

/// Natural log-probabilities by token text: a JSON object in this order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LogprobsByText(pub Vec<(String, f32)>);

impl Serialize for LogprobsByText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(text, logprob)| (text, logprob)))
    }
}
