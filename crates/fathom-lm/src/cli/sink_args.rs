//! The sinks of generated texts: which are suppressed, and whether those that arise are found.

use clap::{ArgGroup, Args};
use fathom_kernels::Cpu;
use fathom_sinks::SinkRow;
use serde_json::{Value, json};

use crate::cli::output::Output;
use crate::cli::progress;
use crate::cli::suppress_args::{SuppressArgs, SuppressedCounts, Suppression};
use crate::cli::watch_args::{self, Watch, WatchArgs};
use crate::{Clamp, Generation, Generator, Pair, PairEngine, Result, ScanOptions};

/// `--watch`, `--suppress` and what belongs to them.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("sinks").args(["watch", "suppress"]).multiple(true))]
pub struct SinkArgs {
    #[command(flatten)]
    watch: WatchArgs,
    #[command(flatten)]
    suppress: SuppressArgs,
}

/// What is to be done about the sinks of texts.
pub struct SinkPlan {
    rules: ScanOptions,
    watch: bool,
    clamps: Vec<Clamp>,
}

/// What is done about the sinks of the texts of a run.
pub struct TextSinks {
    suppression: Option<Suppression>,
    watch: Option<Watch>,
}

/// What was done about the sinks of the finished texts.
pub struct SinkSummary {
    suppressed: Option<SuppressedCounts>,
    found: Option<SinkRow>,
}

impl SinkArgs {
    /// Checks the arguments against the target, before it is loaded.
    ///
    /// # Errors
    /// See [`WatchArgs::rules`] and [`SuppressArgs::clamps`].
    pub fn plan(&self, pair: &Pair) -> Result<SinkPlan> {
        let (rules, clamps) = (self.watch.rules()?, self.suppress.clamps(pair)?);
        Ok(SinkPlan { rules, watch: self.watch.is_asked(), clamps })
    }
}

impl SinkPlan {
    /// Starts with the texts of `engine`.
    pub fn start(self, engine: &PairEngine<'_>) -> TextSinks {
        let SinkPlan { rules, watch, clamps } = self;
        TextSinks {
            suppression: Suppression::start(clamps, engine, &rules),
            watch: watch.then(|| Watch::new(engine.pair(), &rules)),
        }
    }
}

impl TextSinks {
    /// The rules of detection, if sinks are looked for.
    pub fn watch_rules(&self) -> Option<Value> {
        self.watch.as_ref().map(|watch| watch.collector.rules())
    }

    /// What is suppressed, if anything is.
    pub fn suppress_rules(&self) -> Option<Value> {
        self.suppression.as_ref().map(|suppression| suppression.suppressor.rules())
    }

    /// Attaches to all texts of `generator`.
    pub fn attach(&self, generator: Generator<Cpu>) -> Generator<Cpu> {
        let collector = self.watch.as_ref().map(|watch| &watch.collector);
        match (&self.suppression, collector) {
            (Some(suppression), _) => suppression.suppressor.suppress(generator, collector),
            (None, Some(collector)) => collector.watch(generator),
            (None, None) => generator,
        }
    }

    /// Adds what was suppressed and what was found to the line of a finished text.
    ///
    /// # Errors
    /// A text of another generator.
    pub fn finish(&mut self, generation: &mut Generation) -> Result<()> {
        if let Some(suppression) = &mut self.suppression {
            suppression.finish(generation)?;
        }
        match &mut self.watch {
            Some(watch) => watch.finish(generation),
            None => Ok(()),
        }
    }

    /// The summary of the finished texts.
    pub fn summary(&self) -> SinkSummary {
        SinkSummary {
            suppressed: self.suppression.as_ref().map(Suppression::counts),
            found: self.watch.as_ref().map(Watch::row),
        }
    }
}

impl SinkSummary {
    pub fn print(&self, output: Output) {
        let suppressed = self.suppressed.as_ref().map(SuppressedCounts::summary);
        let found = self.found.as_ref().map(watch_args::summary);
        suppressed.iter().chain(&found).for_each(|line| progress::note(output, line));
    }

    /// Adds the fields `suppressed` and `sinks` to an object.
    pub fn add_to(&self, mut object: Value) -> Value {
        if let Some(suppressed) = &self.suppressed {
            object["suppressed"] = suppressed.to_json();
        }
        if let Some(found) = &self.found {
            object["sinks"] = json!(found);
        }
        object
    }
}
