//! How an engine is set up.

use fathom_model::{Error, Result};

use crate::{GammaLimits, Mode};

/// Which way of decoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModeChoice {
    /// One, always.
    Always(Mode),
    /// The one that measures fastest, for the batch size there is.
    Auto,
}

/// How long a chunk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gamma {
    /// This long, always; at least 1.
    Fixed(usize),
    /// As long as measures fastest.
    Adaptive(GammaLimits),
}

/// How an engine is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineOptions {
    /// Which way of decoding.
    pub mode: ModeChoice,
    /// How long a chunk is.
    pub gamma: Gamma,
    /// Most requests at a time, at least 1.
    pub batch_size: usize,
    /// Most pages ([`fathom_backend::Backend::kv_page`] tokens each) that the key/value caches of
    /// all running requests together may hold, in each model; at least 1.
    pub kv_pages: usize,
    /// Ids from here on are padding of the target's logits and name no token.
    pub vocab: usize,
}

impl EngineOptions {
    /// Refuses what has no meaning.
    ///
    /// # Errors
    /// One sentence naming the option, its value and what was expected.
    pub fn validate(&self) -> Result<()> {
        let refuse = |message: &str| Err(Error::Request(message.to_owned()));
        match self.gamma {
            Gamma::Fixed(0) => return refuse("gamma is 0; expected at least 1"),
            Gamma::Adaptive(GammaLimits { start, max }) if start == 0 || max < start => {
                return refuse("gamma must start at 1 or more and at most at its largest value");
            }
            _ => {}
        }
        if self.batch_size == 0 {
            return refuse("batch-size is 0; expected at least 1");
        }
        if self.kv_pages == 0 {
            return refuse("kv-pages is 0; expected at least 1");
        }
        Ok(())
    }

    /// The longest chunk there may be.
    pub(super) fn max_gamma(&self) -> usize {
        match (self.mode, self.gamma) {
            (ModeChoice::Always(Mode::Ar), _) => 1,
            (_, Gamma::Fixed(gamma)) => gamma,
            (_, Gamma::Adaptive(limits)) => limits.max,
        }
    }
}
