//! Progress for people who wait: on stderr, only on a terminal, gone when done.

use std::io::Write;

use fathom_model::{About, Error, Remark, Remarks, Result};
use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::Output;
use crate::failure::one_line;

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

/// Tells remarks on stderr, a line each; nothing with `--quiet`.
///
/// # Errors
/// With `--strict`, where there is a remark about input: an error that names the first.
pub fn remarks(output: Output, remarks: &Remarks) -> Result<()> {
    for remark in remarks.iter() {
        note(output, &format!("fathom: remark: {}", one_line(&remark.to_string())));
    }
    let about_input = |remark: &&Remark| remark.about == About::Input;
    match remarks.iter().find(about_input).filter(|_| output.strict) {
        None => Ok(()),
        Some(first) => Err(Error::Request(format!("{first} (refused because of --strict)"))),
    }
}

/// Says something on stderr that is not a result; nothing with `--quiet`.
pub fn note(output: Output, text: &str) {
    if !output.quiet {
        // A closed stderr is no reason to lose the results.
        let _ = writeln!(std::io::stderr(), "{text}");
    }
}
