//! What a request used, and what the target and the draft did for it.

use fathom_decode::engine::Done;
use serde::Serialize;
use utoipa::ToSchema;

use crate::sinks::TextSink;

/// Tokens of a request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, ToSchema)]
pub struct Usage {
    /// Tokens of the prompts.
    pub prompt_tokens: usize,
    /// Tokens of the texts, with those that ended them.
    pub completion_tokens: usize,
    /// Both together.
    pub total_tokens: usize,
    /// Details of the prompts.
    pub prompt_tokens_details: PromptDetails,
    /// Details of the texts.
    pub completion_tokens_details: CompletionDetails,
    /// What speculation did.
    pub fathom: UsageFathom,
}

/// Details of the prompts of a request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, ToSchema)]
pub struct PromptDetails {
    /// Tokens whose keys and values were in the prefix cache.
    pub cached_tokens: usize,
}

/// Details of the texts of a request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, ToSchema)]
pub struct CompletionDetails {
    /// Drafts that the target accepted.
    pub accepted_prediction_tokens: u64,
    /// Drafts that it rejected.
    pub rejected_prediction_tokens: u64,
}

/// What speculation did for a request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, ToSchema)]
pub struct UsageFathom {
    /// Drafts that the target judged.
    pub drafted: u64,
    /// Drafts that it accepted.
    pub accepted: u64,
    /// Mean accepted tokens, over the texts.
    pub mat: f64,
    /// The request's share of the target's passes, in seconds.
    pub target_seconds: f64,
    /// The request's share of the draft's passes, in seconds.
    pub draft_seconds: f64,
}

/// Sums the usage of the texts of a request.
#[derive(Clone, Debug, Default)]
pub struct UsageSum {
    usage: Usage,
    texts: usize,
    mat: f64,
}

impl UsageSum {
    /// Counts the tokens of a prompt, once for all its texts.
    pub fn prompt(&mut self, tokens: usize) {
        self.usage.prompt_tokens += tokens;
    }

    /// Counts tokens of a prompt that were taken from the prefix cache.
    pub fn cached(&mut self, tokens: usize) {
        self.usage.prompt_tokens_details.cached_tokens += tokens;
    }

    /// Counts new tokens of a text.
    pub fn tokens(&mut self, tokens: usize) {
        self.usage.completion_tokens += tokens;
    }

    /// Counts a text that has ended.
    pub fn done(&mut self, done: &Done) {
        let (judged, accepted) = (done.acceptance.judged(), done.acceptance.accepted());
        self.usage.fathom.drafted += judged;
        self.usage.fathom.accepted += accepted;
        self.usage.fathom.target_seconds += done.target_seconds;
        self.usage.fathom.draft_seconds += done.draft_seconds;
        self.texts += 1;
        self.mat += done.mat;
    }

    /// The sum.
    pub fn usage(&self) -> Usage {
        let mut usage = self.usage.clone();
        usage.total_tokens = usage.prompt_tokens + usage.completion_tokens;
        let UsageFathom { drafted, accepted, .. } = usage.fathom;
        usage.completion_tokens_details = CompletionDetails {
            accepted_prediction_tokens: accepted,
            rejected_prediction_tokens: drafted - accepted,
        };
        usage.fathom.mat = self.mat / self.texts.max(1) as f64;
        usage
    }
}

/// Fathom's part of a choice.
#[derive(Clone, Debug, Default, PartialEq, Serialize, ToSchema)]
pub struct ChoiceFathom {
    /// The new tokens, without the one that ended the text.
    pub tokens: Vec<TextToken>,
    /// The sinks that are new or changed; in a response that is not streamed, all. Absent unless
    /// the request asks for them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sinks: Option<Vec<TextSink>>,
}

/// A token of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct TextToken {
    /// The token id.
    pub id: u32,
    /// Position in prompt and text together.
    pub position: usize,
    /// Whether it was drafted and accepted.
    pub drafted: bool,
}
