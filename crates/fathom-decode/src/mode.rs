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
    /// PEARL whose draft also continues behind the likeliest rejections ([`crate::Branch`]).
    Forked,
    /// Speculation without a draft model: guesses from the text itself ([`crate::SuffixIndex`]),
    /// then verification in one pass.
    Suffix,
}

impl Mode {
    /// All modes.
    pub const ALL: [Mode; 5] = [Mode::Ar, Mode::Sd, Mode::Pearl, Mode::Forked, Mode::Suffix];
    /// The modes that need no draft model.
    pub const WITHOUT_DRAFT_MODEL: [Mode; 2] = [Mode::Ar, Mode::Suffix];

    /// Whether the mode verifies drafts, of a model or of the text itself.
    pub fn drafts(self) -> bool {
        self != Mode::Ar
    }

    /// Whether target and draft run at the same time.
    pub fn is_parallel(self) -> bool {
        matches!(self, Mode::Pearl | Mode::Forked)
    }

    /// Whether the mode needs a draft model.
    pub fn needs_draft_model(self) -> bool {
        !Mode::WITHOUT_DRAFT_MODEL.contains(&self)
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Mode::Ar => "ar",
            Mode::Sd => "sd",
            Mode::Pearl => "pearl",
            Mode::Forked => "forked",
            Mode::Suffix => "suffix",
        })
    }
}

impl FromStr for Mode {
    type Err = Error;

    fn from_str(name: &str) -> Result<Mode> {
        Mode::ALL.into_iter().find(|mode| mode.to_string() == name).ok_or_else(|| {
            Error::Request(format!(
                "mode is `{name}`; expected `ar`, `sd`, `pearl`, `forked` or `suffix`"
            ))
        })
    }
}
