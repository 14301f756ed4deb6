//! The rules by which sinks are found: arguments of `fathom scan` and `fathom generate`.

use clap::Args;
use fathom_sinks::Preset;

use crate::cli::indices::Indices;
use crate::cli::phases_arg::PhasesName;
use crate::cli::preset_arg::PresetName;
use crate::{Result, ScanOptions};

/// How sinks are detected and classified.
#[derive(Debug, Args)]
pub struct DetectArgs {
    /// Rules for detecting and classifying sinks
    #[arg(long, value_enum, default_value_t = PresetName::Paper, value_name = "NAME")]
    preset: PresetName,
    /// Minimum cosine with the reference sink for a token to be a sink [default: the preset's, 0.95
    /// or 0.9]
    #[arg(long, value_name = "τ", value_parser = parse_threshold)]
    threshold: Option<f32>,
    /// Candidate positions of the reference sink, such as `0,1,2`; the one with the largest norm is
    /// used
    #[arg(long, value_name = "POSITIONS", default_value = "0", value_parser = parse_reference,
          allow_hyphen_values = true)]
    reference: Indices,
    /// Minimum rise of the reference's norm, in multiples of the mean token's norm, for it to be a
    /// primary sink
    #[arg(long, value_name = "FACTOR", default_value_t = 5.0, value_parser = parse_rise)]
    rise: f32,
    /// Which sinks to list if the reference's norm is large in several runs of layers (phases);
    /// all are stored
    #[arg(long, value_enum, default_value_t = PhasesName::Largest, value_name = "WHICH")]
    phases: PhasesName,
}

impl DetectArgs {
    /// The options of a scan by these rules.
    ///
    /// # Errors
    /// A reference position that is not a leading one.
    pub fn options(&self) -> Result<ScanOptions> {
        let defaults = ScanOptions::new(Preset::from(self.preset));
        Ok(ScanOptions {
            threshold: self.threshold.unwrap_or(defaults.threshold),
            rise_factor: self.rise,
            // Hidden states are stored up to the last candidate: the limit bounds the memory.
            reference: self.reference.resolve("reference position", MAX_REFERENCE)?,
            phases: self.phases.into(),
            ..defaults
        })
    }
}

/// Reference positions must be below this: hidden states are kept up to the last candidate, so it
/// has to be a leading one.
const MAX_REFERENCE: usize = 256;

fn parse_reference(text: &str) -> Result<Indices, String> {
    let positions: Indices = text.parse()?;
    match positions.counts_from_end() {
        true => Err("the reference is among the first positions, counted from 0".to_owned()),
        false => Ok(positions),
    }
}

fn parse_threshold(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(threshold) if threshold > 0.0 && threshold < 1.0 => Ok(threshold),
        _ => Err("must be a number between 0 and 1".to_owned()),
    }
}

fn parse_rise(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(factor) if factor > 0.0 && factor.is_finite() => Ok(factor),
        _ => Err("must be a number above 0".to_owned()),
    }
}
