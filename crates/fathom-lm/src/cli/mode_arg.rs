//! `--mode` and `--modes`: decoding modes.

use clap::ValueEnum;

use crate::{Mode, ModeChoice};

/// A decoding mode on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ModeName {
    /// Autoregressive: one pass of the target per token
    Ar,
    /// Speculative: draft, then verify
    Sd,
    /// Parallel speculative: draft and verify at the same time
    Pearl,
    /// Pearl whose draft also continues behind the likeliest rejections
    Forked,
    /// Speculative without a draft model: guess from the text so far, then verify
    Suffix,
    /// Measure the modes while decoding and use the fastest
    Auto,
}

impl From<ModeName> for ModeChoice {
    fn from(name: ModeName) -> ModeChoice {
        match name {
            ModeName::Ar => ModeChoice::Always(Mode::Ar),
            ModeName::Sd => ModeChoice::Always(Mode::Sd),
            ModeName::Pearl => ModeChoice::Always(Mode::Pearl),
            ModeName::Forked => ModeChoice::Always(Mode::Forked),
            ModeName::Suffix => ModeChoice::Always(Mode::Suffix),
            ModeName::Auto => ModeChoice::Auto,
        }
    }
}
