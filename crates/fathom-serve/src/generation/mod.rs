//! From a request to the engine and back: texts in progress.
//!
//! The engine's thread puts its updates in an [`inbox`], which never blocks and merges what a slow
//! reader has not taken. [`Texts`] decodes them on the side of the connection.

mod inbox;
mod scoring;
mod texts;

use std::sync::Arc;
use std::time::{Duration, Instant};

use fathom_decode::engine::{Canceller, Request};
use fathom_decode::generation::UpdateDecoder;
use fathom_decode::{SamplingParams, TextStream};

use crate::app::App;
use crate::error::ApiError;
use crate::grammar::Grammar;
use crate::log::RequestLog;
use crate::request::choices::Choices;
use crate::sinks::{SinkOptions, SinkView, Watch};
use inbox::{Inbox, Outlet};
pub use texts::{Piece, Texts};

/// Texts to generate.
pub struct Job {
    /// The prompts.
    pub prompts: Vec<Arc<[u32]>>,
    /// How tokens are chosen.
    pub params: SamplingParams,
    /// How many texts for each prompt, and how they are wanted.
    pub choices: Choices,
    /// Number of most likely tokens reported with each token; `None`: no log-probabilities.
    pub logprobs: Option<usize>,
    /// Whether those of the prompts are reported too.
    pub scores_prompts: bool,
    /// What the texts are constrained to.
    pub grammar: Option<Grammar>,
}

/// A text that was submitted to the engine.
struct Submitted {
    prompt: Arc<[u32]>,
    inbox: Arc<Inbox>,
    canceller: Canceller,
    decoder: UpdateDecoder,
    sinks: Option<Box<dyn SinkView>>,
}

impl Job {
    /// Submits all texts. Their numbers are `prompt · n + choice`.
    ///
    /// The random numbers of a text depend on its number among the texts of its prompt, so a prompt
    /// has the same texts alone and beside other prompts.
    ///
    /// # Errors
    /// The queue is full, the engine refuses the request or has stopped, or the server is ending.
    /// Then none runs.
    pub fn submit(self, app: &Arc<App>, log: &Arc<RequestLog>) -> Result<Texts, ApiError> {
        let Job { prompts, params, choices, logprobs, scores_prompts, grammar } = self;
        let total = prompts.len() * choices.n;
        let places = app.places(total)?;
        let streamed = choices.stream;
        let mut texts = Texts::new(Arc::clone(app), Arc::clone(log), choices);
        for prompt in &prompts {
            texts.usage.prompt(prompt.len());
        }
        let numbers = (0..prompts.len()).flat_map(|p| (0..choices.n).map(move |c| (p, c)));
        for ((prompt, choice), place) in numbers.zip(places) {
            let prompt = Arc::clone(&prompts[prompt]);
            let tokenizer = &app.model.tokenizer;
            let watch = choices.fathom.sinks.map(|options| watch(app, options)).transpose()?;
            let (watcher, sinks) = watch.unzip();
            let inbox = Arc::new(Inbox::new(Arc::clone(texts.ready()), streamed));
            let eos = Arc::clone(&app.model.eos);
            let request = Request {
                stop: TextStream::of_request(tokenizer, &params).into_stop_check(),
                constraint: grammar.as_ref().map(Grammar::constraint),
                logprobs,
                prompt_logprobs: logprobs.filter(|_| scores_prompts),
                watcher,
                ..Request::new(choice as u64, prompt.to_vec(), params.clone(), eos)
            };
            let outlet = Outlet::new(Arc::clone(&inbox), Arc::clone(app), place, Arc::clone(log));
            let submitted = app.model.engine.submit_with(request, outlet.into_callback());
            let canceller = submitted.map_err(|error| match error {
                fathom_model::Error::Request(problem) => ApiError::refused(&problem),
                stopped => {
                    app.engine_failed(&stopped.to_string());
                    ApiError::stopping(stopped.to_string())
                }
            })?;
            let decoder = UpdateDecoder::new(tokenizer, &params);
            texts.push(Submitted { prompt, inbox, canceller, decoder, sinks });
        }
        let tokens = prompts.iter().map(|prompt| prompt.len()).sum();
        app.metrics.prompt(tokens);
        log.prompt(tokens);
        Ok(texts)
    }
}

/// A watcher for one text, and a view of the sinks that it finds.
fn watch(app: &App, options: SinkOptions) -> Result<Watch, ApiError> {
    let refuse = |problem: &str| ApiError::field("fathom.sinks", problem);
    let source = app.model.sinks.as_ref();
    let source = source.ok_or_else(|| refuse("cannot be reported for this model"))?;
    source.watch(options).map_err(|error| refuse(&error.to_string()))
}

/// The time limit of a request that arrived at `arrived`.
fn deadline(app: &App, arrived: Instant) -> tokio::time::Instant {
    const FOREVER: Duration = Duration::from_secs(30 * 365 * 86_400);
    let limit = app.options.request_timeout.min(FOREVER);
    tokio::time::Instant::from_std(arrived + limit)
}
