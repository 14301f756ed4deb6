//! The decoding modes.

use std::fmt;
use std::str::FromStr;

use fathom_model::{Error, Result};

/// How text is decoded. At temperature 0 all modes produce the same text, and above 0 the same
/// distribution of texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mode {
    /// Autoregressive: one target pass per token.
    Ar,
    /// Ordinary speculative decoding: draft γ tokens, then verify them in one pass.
    Sd,
    /// PEARL: draft and verify at the same time.
    Pearl,
}

impl Mode {
    /// All modes.
    pub const ALL: [Mode; 3] = [Mode::Ar, Mode::Sd, Mode::Pearl];

    /// Whether the mode uses a draft model.
    pub fn drafts(self) -> bool {
        self != Mode::Ar
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Mode::Ar => "ar",
            Mode::Sd => "sd",
            Mode::Pearl => "pearl",
        })
    }
}

impl FromStr for Mode {
    type Err = Error;

    fn from_str(name: &str) -> Result<Mode> {
        Mode::ALL.into_iter().find(|mode| mode.to_string() == name).ok_or_else(|| {
            Error::Request(format!("mode is `{name}`; expected `ar`, `sd` or `pearl`"))
        })
    }
}
