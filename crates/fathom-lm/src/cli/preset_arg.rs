//! `--preset`: the rules for detecting and classifying sinks.

use clap::ValueEnum;
use fathom_sinks::Preset;

/// `--preset`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum PresetName {
    /// The paper's definitions: cosine above 0.95, classified by first and last layer
    Paper,
    /// The published scripts' rules: |cosine| above 0.9, classified by the number of layers
    Upstream,
}

impl From<PresetName> for Preset {
    fn from(name: PresetName) -> Preset {
        match name {
            PresetName::Paper => Preset::Paper,
            PresetName::Upstream => Preset::Upstream,
        }
    }
}
