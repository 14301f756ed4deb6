//! Progress for people who wait: on stderr, only on a terminal, gone when done.

use std::io::Write;

use crate::{ExplainProgress, Progress, Remark, Result, TraceDetection};
use fathom_model::refuse_remarks;
use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::failure::one_line;
use crate::cli::output::Output;

/// A bar counting `unit`s ("tokens", "layers") with their rate and the time left. Nothing is drawn
/// with `--quiet`, or where stderr is not a terminal.
pub fn bar(output: Output, what: &'static str, unit: &str, total: u64) -> ProgressBar {
    if output.quiet {
        return ProgressBar::hidden();
    }
    let template = format!(
        "{{msg}} {{wide_bar}} {{human_pos}}/{{human_len}} {unit}  {{per_sec}}  {{eta}} left"
    );
    let style = ProgressStyle::with_template(&template);
    ProgressBar::new(total)
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        .with_message(what)
}

/// A bar that shows how far a model is loaded, and goes with it.
pub struct LoadingBar(ProgressBar);

impl LoadingBar {
    pub fn new(output: Output) -> LoadingBar {
        LoadingBar(bar(output, "loading", "layers", 0))
    }

    /// So many layers are done, of so many.
    pub fn show(&mut self, done: usize, layers: usize) {
        self.0.set_length(layers as u64);
        self.0.set_position(done as u64);
    }
}

impl Drop for LoadingBar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// A bar that watches a scan.
pub struct ScanBar(ProgressBar);

impl ScanBar {
    pub fn new(output: Output) -> ScanBar {
        ScanBar(bar(output, "scanning", "tokens", 0))
    }
}

impl Progress for ScanBar {
    fn start(&mut self, tokens: usize) {
        self.0.set_length(tokens as u64);
        self.0.reset(); // the clock starts now
    }

    fn advance(&mut self, tokens: usize) {
        self.0.inc(tokens as u64);
    }

    fn trace(&mut self, _: &TraceDetection) {}
}

impl Drop for ScanBar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// A bar for each step of an explanation.
pub struct StepBar {
    output: Output,
    bar: ProgressBar,
}

impl StepBar {
    pub fn new(output: Output) -> StepBar {
        StepBar { output, bar: ProgressBar::hidden() }
    }
}

impl ExplainProgress for StepBar {
    fn start(&mut self, step: &'static str, unit: &'static str, steps: usize) {
        self.bar.finish_and_clear();
        self.bar = bar(self.output, step, unit, steps as u64);
    }

    fn advance(&mut self, steps: usize) {
        self.bar.inc(steps as u64);
    }
}

impl Drop for StepBar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Tells remarks on stderr, a line each; nothing with `--quiet`.
///
/// # Errors
/// With `--strict`, where there is a remark about input: an error that names the first.
pub fn remarks(output: Output, remarks: &[Remark]) -> Result<()> {
    for remark in remarks {
        note(output, &format!("fathom: remark: {}", one_line(&remark.to_string())));
    }
    match output.strict {
        true => refuse_remarks(remarks, "--strict"),
        false => Ok(()),
    }
}

/// Says something on stderr that is not a result; nothing with `--quiet`.
pub fn note(output: Output, text: &str) {
    if !output.quiet {
        // A closed stderr is no reason to lose the results.
        let _ = writeln!(std::io::stderr(), "{text}");
    }
}
