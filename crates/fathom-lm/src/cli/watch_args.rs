//! `--watch` and the rules for the sinks it finds.

use clap::Args;
use fathom_report::plural;
use fathom_sinks::{Finding, Phases, SinkRow, TraceDetection};
use serde_json::Value;

use crate::cli::detect_args::DetectArgs;
use crate::{Generation, Pair, Result, ScanOptions, SinkCollector};

/// Whether to find the sinks of generated texts, and by which rules.
#[derive(Debug, Args)]
#[command(
    next_help_heading = "Sinks",
    mut_arg("preset", |arg| arg.requires("watch")),
    mut_arg("threshold", |arg| arg.requires("watch")),
    mut_arg("reference", |arg| arg.requires("sinks")), // --watch or --suppress
    mut_arg("rise", |arg| arg.requires("watch")),
    mut_arg("phases", |arg| arg.requires("watch").help(PHASES_HELP)),
)]
pub struct WatchArgs {
    /// Find the attention sinks of each text while it is generated, and write them to its line, as
    /// field `detection`: what `fathom scan` finds, without another pass
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    detect: DetectArgs,
}

const PHASES_HELP: &str = "Phases whose sinks the summary counts, if the reference is large in \
                           several runs of layers; all are written";

/// The sinks of the texts of a run, and their summary.
pub struct Watch {
    pub collector: SinkCollector,
    phases: Phases,
    model: String,
    rope_base: f64,
    found: Vec<TraceDetection>,
}

impl WatchArgs {
    /// The rules.
    ///
    /// # Errors
    /// See [`DetectArgs::options`].
    pub fn rules(&self) -> Result<ScanOptions> {
        self.detect.options()
    }

    /// Whether --watch is given.
    pub fn is_asked(&self) -> bool {
        self.watch
    }
}

impl Watch {
    /// Starts collecting the sinks of the texts of `pair`.
    pub fn new(pair: &Pair, rules: &ScanOptions) -> Watch {
        Watch {
            collector: SinkCollector::new(pair, rules),
            phases: rules.phases,
            model: pair.target().name(),
            rope_base: pair.target().config().rope.theta,
            found: Vec::new(),
        }
    }

    /// Adds the sinks of a finished text to its line.
    pub fn finish(&mut self, generation: &mut Generation) -> Result<()> {
        let detection = self.collector.detection(generation)?;
        let value: Value = serde_json::from_str(&detection.to_json()).unwrap_or_default();
        generation.fields.insert("detection".to_owned(), value);
        self.found.push(detection.with_phases(self.phases));
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
