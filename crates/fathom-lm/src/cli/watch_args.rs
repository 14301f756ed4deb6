//! `--watch` and the rules for the sinks it finds.

use clap::Args;
use fathom_report::plural;
use fathom_sinks::{Finding, Preset, SinkRow, TraceDetection};
use serde_json::Value;

use crate::cli::commands::scan::{MAX_REFERENCE, parse_reference, parse_rise, parse_threshold};
use crate::cli::indices::Indices;
use crate::cli::phases_arg::PhasesName;
use crate::cli::preset_arg::PresetName;
use crate::{Generation, Pair, Result, ScanOptions, SinkCollector};

/// Whether to find the sinks of generated texts, and by which rules. Names and meanings are those
/// of `fathom scan`.
#[derive(Debug, Args)]
#[command(next_help_heading = "Sinks")]
pub struct WatchArgs {
    /// Find the attention sinks of each text while it is generated, and write them to its line, as
    /// field `detection`: what `fathom scan` finds, without another pass
    #[arg(long)]
    watch: bool,
    /// Rules for detecting and classifying sinks
    #[arg(long, value_enum, default_value_t = PresetName::Paper, value_name = "NAME",
          requires = "watch")]
    preset: PresetName,
    /// Minimum cosine with the reference sink for a token to be a sink [default: the preset's, 0.95
    /// or 0.9]
    #[arg(long, value_name = "τ", value_parser = parse_threshold, requires = "watch")]
    threshold: Option<f32>,
    /// Candidate positions of the reference sink, such as `0,1,2`; the one with the largest norm is
    /// used
    #[arg(long, value_name = "POSITIONS", default_value = "0", value_parser = parse_reference,
          allow_hyphen_values = true, requires = "watch")]
    reference: Indices,
    /// Minimum rise of the reference's norm, in multiples of the mean token's norm, for it to be a
    /// primary sink
    #[arg(long, value_name = "FACTOR", default_value_t = 5.0, value_parser = parse_rise,
          requires = "watch")]
    rise: f32,
    /// Phases whose sinks the summary counts, if the reference is large in several runs of layers;
    /// all are written
    #[arg(long, value_enum, default_value_t = PhasesName::Largest, value_name = "WHICH",
          requires = "watch")]
    phases: PhasesName,
}

/// The sinks of the texts of a run, and their summary.
pub struct Watch {
    pub collector: SinkCollector,
    phases: PhasesName,
    model: String,
    rope_base: f64,
    found: Vec<TraceDetection>,
}

impl WatchArgs {
    /// Starts collecting the sinks of the texts of `pair`. `None` without --watch.
    pub fn start(&self, pair: &Pair) -> Result<Option<Watch>> {
        if !self.watch {
            return Ok(None);
        }
        let defaults = ScanOptions::new(Preset::from(self.preset));
        let options = ScanOptions {
            threshold: self.threshold.unwrap_or(defaults.threshold),
            rise_factor: self.rise,
            reference: self.reference.resolve("reference position", MAX_REFERENCE)?,
            ..defaults
        };
        Ok(Some(Watch {
            collector: SinkCollector::new(pair, &options),
            phases: self.phases,
            model: pair.target().name(),
            rope_base: pair.target().config().rope.theta,
            found: Vec::new(),
        }))
    }
}

impl Watch {
    /// Adds the sinks of a finished text to its line.
    pub fn finish(&mut self, generation: &mut Generation) -> Result<()> {
        let detection = self.collector.detection(generation)?;
        let value: Value = serde_json::from_str(&detection.to_json()).unwrap_or_default();
        generation.fields.insert("detection".to_owned(), value);
        self.found.push(detection.with_phases(self.phases.into()));
        Ok(())
    }

    /// The sinks of the finished texts, counted as `fathom scan` counts those of traces.
    pub fn row(&self) -> SinkRow {
        SinkRow::new(&self.model, Some(self.rope_base), &self.found)
    }
}

/// The number of sinks and of texts with sinks, on one line.
pub fn summary(row: &SinkRow) -> String {
    let SinkRow { primary_count, secondary_count, findings, traces, .. } = row;
    let texts = |finding| findings.get(&finding).copied().unwrap_or(0);
    format!(
        "sinks: {primary_count} primary and {secondary_count} secondary in {} of {}",
        texts(Finding::PrimaryOnly) + texts(Finding::SecondarySinks),
        plural(*traces, "text"),
    )
}
