//! Progress bars and remarks on standard error. Bars are shown on a terminal only and are removed
//! when done.

use std::io::Write;

use crate::{ExplainProgress, Progress, Remark, Result, TraceDetection};
use fathom_model::refuse_remarks;
use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::failure::one_line;
use crate::cli::output::Output;

/// A bar that counts `unit`s ("tokens", "layers"), with rate and time left. Nothing is drawn with
/// `--quiet`, or if stderr is not a terminal.
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

/// A progress bar for loading a model, removed when dropped.
pub struct LoadingBar(ProgressBar);

impl LoadingBar {
    pub fn new(output: Output) -> LoadingBar {
        LoadingBar(bar(output, "loading", "layers", 0))
    }

    /// Shows that `done` of `layers` layers are loaded.
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

/// A progress bar for a scan.
pub struct ScanBar(ProgressBar);

impl ScanBar {
    pub fn new(output: Output) -> ScanBar {
        ScanBar(bar(output, "scanning", "tokens", 0))
    }
}

impl Progress for ScanBar {
    fn start(&mut self, tokens: usize) {
        self.0.set_length(tokens as u64);
        self.0.reset(); // starts the clock
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

/// Progress bars for the steps of an explanation, one after the other.
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

/// Prints remarks to stderr, one per line; nothing with `--quiet`.
///
/// # Errors
/// With `--strict`, the first remark about input.
pub fn remarks(output: Output, remarks: &[Remark]) -> Result<()> {
    for remark in remarks {
        note(output, &format!("fathom: remark: {}", one_line(&remark.to_string())));
    }
    match output.strict {
        true => refuse_remarks(remarks, "--strict"),
        false => Ok(()),
    }
}

/// Prints a line to stderr; nothing with `--quiet`.
pub fn note(output: Output, text: &str) {
    if !output.quiet {
        // A closed stderr must not lose the results.
        let _ = writeln!(std::io::stderr(), "{text}");
    }
}
