//! `fathom report`: one page about one run or several.

use std::io::Write;
use std::path::PathBuf;

use crate::{ReportOptions, Result, write_report};
use serde_json::json;

use crate::cli::failure::Failure;
use crate::cli::output::Output;

/// Show runs in one self-contained HTML page
///
/// The page has a summary, every figure of the paper for which the run has the numbers, the text of
/// the traces with their sinks marked, and how the run was made. It loads nothing and needs neither
/// network nor model. Each figure is also written as an SVG file, with its numbers as CSV. For an
/// analysis that `fathom explain` has not run yet, the page names the command. With several runs
/// the page compares them.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    fathom report run --out report.html\n  \
    fathom report run-base run-math --out compared.html --figures compared")]
pub struct Args {
    /// Run directories of `fathom scan`, finished or not
    #[arg(value_name = "RUN", required = true)]
    runs: Vec<PathBuf>,
    /// The page to write; an older report there is replaced, another file is not
    #[arg(long, value_name = "FILE", default_value = "report.html")]
    out: PathBuf,
    /// Directory of the figures [default: `figures`, next to the page]
    #[arg(long, value_name = "DIR")]
    figures: Option<PathBuf>,
    /// The number of traces of each run whose text is in the page
    #[arg(long, value_name = "N", default_value_t = 30)]
    texts: u16,
}

pub fn run(args: &Args, output: Output, out: &mut dyn Write) -> Result<(), Failure> {
    let options = ReportOptions { figures: args.figures.clone(), texts: usize::from(args.texts) };
    let files = write_report(&args.runs, &args.out, &options)?;
    if output.json {
        writeln!(out, "{}", json!({ "report": files.page, "figures": files.figures }))?;
    } else {
        writeln!(out, "{}", files.page.display())?;
        for file in &files.figures {
            writeln!(out, "{}", file.display())?;
        }
    }
    Ok(())
}
