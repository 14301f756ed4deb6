//! Models, tokens and the server's state.

use serde::Serialize;
use utoipa::ToSchema;

/// The models that are served: one.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ModelList {
    /// `list`
    pub object: &'static str,
    /// The models.
    pub data: Vec<ModelInfo>,
}

/// A model that is served.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ModelInfo {
    /// Its name.
    pub id: String,
    /// `model`
    pub object: &'static str,
    /// When the server started, in seconds since 1970.
    pub created: u64,
    /// `fathom`
    pub owned_by: &'static str,
    /// Largest number of tokens of prompt and text together.
    pub max_model_len: usize,
}

/// The tokens of a text.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Tokenized {
    /// Their number.
    pub count: usize,
    /// Largest number of tokens of prompt and text together.
    pub max_model_len: usize,
    /// Token ids.
    pub tokens: Vec<u32>,
    /// The tokens' texts, if asked for.
    pub token_strs: Option<Vec<String>>,
}

/// The text of tokens.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Detokenized {
    /// The text.
    pub prompt: String,
}

/// Whether the server is live, or ready for requests.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Status {
    /// `ok`, `draining` or `failed`
    pub status: &'static str,
}
