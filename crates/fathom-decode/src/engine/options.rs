//! The options of an engine.

use fathom_model::{Error, Result};

use crate::{GammaLimits, Mode};

/// How the decoding mode is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModeChoice {
    /// Always this mode.
    Always(Mode),
    /// The mode that measures fastest at the current batch size.
    Auto,
}

/// How γ, the length of a chunk of drafts, is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gamma {
    /// Always this γ, at least 1.
    Fixed(usize),
    /// The γ that measures fastest.
    Adaptive(GammaLimits),
}

/// The options of an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineOptions {
    /// The decoding mode.
    pub mode: ModeChoice,
    /// The length of a chunk of drafts.
    pub gamma: Gamma,
    /// Maximum number of requests in the batch, at least 1.
    pub batch_size: usize,
    /// Maximum number of pages of [`fathom_backend::Backend::kv_page`] tokens in the key/value
    /// caches of all running requests and of the prefix cache together, in each model. At least 1.
    pub kv_pages: usize,
    /// Size of the vocabulary. Ids ≥ `vocab` are padding of the target's logits.
    pub vocab: usize,
    /// Keeps the key/value rows of texts, as far as `kv_pages` allows, for later requests whose
    /// prompts begin with the same tokens. Texts do not depend on it.
    pub prefix_cache: bool,
}

impl EngineOptions {
    /// Checks the options.
    ///
    /// # Errors
    /// One sentence with the option, its value and the expected values.
    pub fn validate(&self) -> Result<()> {
        let refuse = |message: &str| Err(Error::Request(message.to_owned()));
        match self.gamma {
            Gamma::Fixed(0) => return refuse("gamma is 0; expected at least 1"),
            Gamma::Adaptive(GammaLimits { start, max }) if start == 0 || max < start => {
                return refuse("the first gamma must be at least 1 and at most the largest one");
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

    /// The longest possible chunk.
    pub(super) fn max_gamma(&self) -> usize {
        match (self.mode, self.gamma) {
            (ModeChoice::Always(Mode::Ar), _) => 1,
            (_, Gamma::Fixed(gamma)) => gamma,
            (_, Gamma::Adaptive(limits)) => limits.max,
        }
    }
}
