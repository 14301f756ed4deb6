//! The state that all requests share.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use fathom_decode::engine::ModeChoice;
use fathom_model::Result;
use tokio::sync::{Semaphore, watch};

use crate::error::ApiError;
use crate::grammar::Grammars;
use crate::limits;
use crate::metrics::Metrics;
use crate::model::ServedModel;
use crate::options::ServerOptions;

/// The state that all requests share.
pub struct App {
    /// What is served.
    pub model: ServedModel,
    /// The options.
    pub options: ServerOptions,
    /// Counts and times.
    pub metrics: Metrics,
    /// When the server started, in seconds since 1970.
    pub started: u64,
    /// The bytes of each token, when they are first needed.
    token_bytes: OnceLock<Arc<[Vec<u8>]>>,
    /// Compiles grammars, when they are first needed.
    grammars: OnceLock<std::result::Result<Grammars, String>>,
    /// What the server is doing. It never goes back.
    pub phase: watch::Sender<Phase>,
    /// Texts in progress or waiting.
    in_flight: Arc<AtomicUsize>,
    /// Limits the prompts that are encoded at the same time.
    preparing: Arc<Semaphore>,
}

/// What the server is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It takes requests.
    Serving,
    /// It finishes the requests that it has.
    Draining,
    /// It closes all connections.
    Aborting,
    /// The engine has failed, for this reason.
    Failed(String),
}

/// A text's place among those in progress and waiting. Dropping it gives the place back.
pub struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl App {
    /// The state of a new server.
    ///
    /// # Errors
    /// See [`Metrics::new`].
    pub fn new(model: ServedModel, options: ServerOptions) -> Result<App> {
        let metrics = Metrics::new(&model.name)?;
        let started = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        Ok(App {
            model,
            options,
            metrics,
            started,
            token_bytes: OnceLock::new(),
            grammars: OnceLock::new(),
            phase: watch::Sender::new(Phase::Serving),
            in_flight: Arc::default(),
            preparing: Arc::new(Semaphore::new(limits::PREPARING)),
        })
    }

    /// Runs `work`, which may take long, on a thread of its own, so that it holds up no other
    /// request. If the caller stops waiting before it begins, it never does.
    ///
    /// # Errors
    /// Those of `work`, or a panic in it.
    pub async fn prepare<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&App) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let permit = Arc::clone(&self.preparing).acquire_owned().await;
        let app = Arc::clone(self);
        let result = tokio::task::spawn_blocking(move || {
            let _permit = permit; // until the work is done, even if nobody waits for it
            work(&app)
        });
        result.await.unwrap_or_else(|_| {
            Err(ApiError::internal("the request could not be read: its reader stopped"))
        })
    }

    /// The bytes of each token. The first call visits the whole vocabulary.
    pub fn token_bytes(&self) -> Arc<[Vec<u8>]> {
        let bytes = || self.model.tokenizer.bytes_of_tokens(self.model.vocab).into();
        Arc::clone(self.token_bytes.get_or_init(bytes))
    }

    /// Compiles grammars for the model. The first call visits the whole vocabulary.
    ///
    /// # Errors
    /// The model has no token that ends a text.
    pub fn grammars(&self) -> Result<&Grammars, ApiError> {
        let ServedModel { tokenizer, vocab, eos, .. } = &self.model;
        let grammars = self.grammars.get_or_init(|| {
            Grammars::new(tokenizer, *vocab, eos).map_err(|error| error.to_string())
        });
        grammars.as_ref().map_err(|problem| ApiError::invalid(problem.clone()))
    }

    /// Places for `texts` new texts.
    ///
    /// # Errors
    /// The server takes no requests now, or has no places left.
    pub fn places(&self, texts: usize) -> Result<Vec<Place>, ApiError> {
        self.check_serving()?;
        let most = self.model.engine.options().batch_size.saturating_add(self.options.max_queue);
        if texts > most {
            return Err(ApiError::invalid(format!(
                "the request asks for {texts} texts; expected at most {most}, the size of the \
                 batch and the queue"
            )));
        }
        let taken = self.in_flight.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
            let wanted = taken + texts;
            (wanted <= most).then_some(wanted)
        });
        match taken {
            Ok(_) => Ok((0..texts).map(|_| Place(Arc::clone(&self.in_flight))).collect()),
            Err(taken) => {
                self.metrics.refused();
                Err(ApiError::busy(taken))
            }
        }
    }

    /// Refuses a request early if there is no place for another text: before its prompt is encoded.
    ///
    /// # Errors
    /// As [`App::places`].
    pub fn check_places(&self) -> Result<(), ApiError> {
        self.places(1).map(drop)
    }

    /// # Errors
    /// The server takes no requests now.
    fn check_serving(&self) -> Result<(), ApiError> {
        match &*self.phase.borrow() {
            Phase::Serving => Ok(()),
            Phase::Draining | Phase::Aborting => {
                Err(ApiError::stopping("the server is ending and takes no more requests"))
            }
            Phase::Failed(why) => Err(ApiError::stopping(why.clone())),
        }
    }

    /// Ends the server: the engine has failed.
    pub fn engine_failed(&self, why: &str) {
        self.phase.send_if_modified(|phase| {
            let is_new = !matches!(phase, Phase::Failed(_) | Phase::Aborting);
            if is_new {
                *phase = Phase::Failed(why.to_owned());
            }
            is_new
        });
    }

    /// Moves on to a later phase.
    pub fn end(&self, next: Phase) {
        self.phase.send_if_modified(|phase| {
            let goes_on = match phase {
                Phase::Serving => true,
                Phase::Draining => next == Phase::Aborting,
                Phase::Aborting | Phase::Failed(_) => false,
            };
            if goes_on {
                *phase = next;
            }
            goes_on
        });
    }

    /// Identifies the weights and how they decode.
    pub fn fingerprint(&self) -> String {
        let mode = match self.model.engine.options().mode {
            ModeChoice::Always(mode) => mode.to_string(),
            ModeChoice::Auto => "auto".to_owned(),
        };
        let whole = self.model.fingerprint.as_str();
        let digest = whole.rsplit(':').next().unwrap_or(whole);
        let weights = digest.get(..12).unwrap_or(digest);
        format!("fathom-{weights}-{mode}")
    }
}
