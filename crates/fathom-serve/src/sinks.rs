//! Attention sinks on the wire. The measuring is done elsewhere, behind [`SinkSource`]: this crate
//! knows nothing of a model's inside.

use std::sync::atomic::AtomicBool;

use fathom_decode::engine::Watcher;
use fathom_model::Result;
use serde::Serialize;
use utoipa::ToSchema;

/// What a client wants to know of sinks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SinkOptions {
    /// Whether to measure sink scores.
    pub scores: bool,
    /// Whether to report the sinks of all phases, not only of the largest one.
    pub all_phases: bool,
}

/// An attention sink of a text: Definitions (docs/definitions.md).
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct TextSink {
    /// Position in prompt and text together.
    pub position: usize,
    /// The token at that position.
    pub token_id: u32,
    /// The first layer at which it is a sink.
    pub layer: usize,
    /// The number of layers at which it is a sink.
    pub lifetime: usize,
    /// `primary`, `secondary` or `noise`; null in a stream if it is no sink any more.
    pub class: Option<&'static str>,
    /// Largest sink score of any layer, averaged over heads, if asked for and the text has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score: Option<f32>,
}

/// Makes the watchers that find the sinks of texts during their generation.
pub trait SinkSource: Send + Sync {
    /// A watcher for one text, and a view of what it finds.
    ///
    /// # Errors
    /// Options that are not supported; the message continues the name of the field.
    fn watch(&self, options: SinkOptions) -> Result<Watch>;
}

/// A watcher and a view of what it finds.
pub type Watch = (Box<dyn Watcher>, Box<dyn SinkView>);

/// The sinks that a watcher has found so far.
pub trait SinkView: Send {
    /// The sinks of `ids`, the tokens of prompt and text so far, of which the first `prompt_len`
    /// are the prompt's. The last token was never an input of the model and is no sink yet.
    ///
    /// # Errors
    /// The model has not computed these tokens, as after a preemption.
    fn sinks(&self, ids: &[u32], prompt_len: usize) -> Result<Vec<TextSink>>;

    /// Measures the sinks of a finished text with their scores. `None` if they are not wanted.
    fn scorer(&self) -> Option<Scorer>;
}

/// Measures the sinks of `ids`, as [`SinkView::sinks`], with their scores: a pass over the text,
/// on the calling thread. Ends early, with an error, when the flag is set.
pub type Scorer =
    Box<dyn FnOnce(&[u32], usize, &AtomicBool) -> Result<Vec<TextSink>> + Send + 'static>;

/// Remembers which sinks were reported, so that a stream holds each change once.
#[derive(Default)]
pub struct SinkChanges(Vec<TextSink>);

impl SinkChanges {
    /// The sinks that are new or different since the last call.
    pub fn since_last(&mut self, now: Vec<TextSink>) -> Vec<TextSink> {
        let mut changed: Vec<TextSink> =
            now.iter().filter(|sink| !self.0.contains(sink)).cloned().collect();
        let is_there = |old: &TextSink| now.iter().any(|sink| sink.position == old.position);
        let gone = self.0.iter().filter(|old| !is_there(old)).cloned();
        changed.extend(gone.map(|sink| TextSink { class: None, ..sink }));
        self.0 = now;
        changed
    }
}
