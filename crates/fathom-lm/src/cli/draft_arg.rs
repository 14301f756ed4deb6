//! `--draft D|suffix`: where drafts come from.

use std::convert::Infallible;
use std::str::FromStr;

/// The source of drafts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DraftArg {
    /// A model, by directory or hub id.
    Model(String),
    /// The text itself: no model.
    Suffix,
}

impl DraftArg {
    /// The draft model's directory or hub id.
    pub fn model(&self) -> Option<&str> {
        match self {
            DraftArg::Model(name) => Some(name),
            DraftArg::Suffix => None,
        }
    }

    /// The name on the command line.
    pub fn name(&self) -> &str {
        self.model().unwrap_or("suffix")
    }
}

impl FromStr for DraftArg {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<DraftArg, Infallible> {
        Ok(match text {
            "suffix" => DraftArg::Suffix,
            name => DraftArg::Model(name.to_owned()),
        })
    }
}
