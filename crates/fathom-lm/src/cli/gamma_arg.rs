//! `--gamma auto|N`: the draft length.

use std::str::FromStr;

use crate::Gamma;
use fathom_decode::GammaLimits;

/// The draft length in tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GammaArg {
    /// The length that measures fastest.
    Auto,
    /// A fixed length. The engine refuses invalid values, such as 0.
    Fixed(usize),
}

impl From<GammaArg> for Gamma {
    fn from(gamma: GammaArg) -> Gamma {
        match gamma {
            GammaArg::Auto => Gamma::Adaptive(GammaLimits::default()),
            GammaArg::Fixed(gamma) => Gamma::Fixed(gamma),
        }
    }
}

impl FromStr for GammaArg {
    type Err = String;

    fn from_str(text: &str) -> Result<GammaArg, String> {
        match (text, text.parse()) {
            ("auto", _) => Ok(GammaArg::Auto),
            (_, Ok(gamma)) if gamma <= 1024 => Ok(GammaArg::Fixed(gamma)),
            _ => Err("must be `auto` or a number from 1 to 1024".to_owned()),
        }
    }
}
