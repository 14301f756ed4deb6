//! Runs as one self-contained page.

use std::path::{Path, PathBuf};

use fathom_model::Result;
use fathom_report::{Report, ReportFiles};

/// What a report contains, and where it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportOptions {
    /// Directory of the figures; `None`: `figures`, next to the page.
    pub figures: Option<PathBuf>,
    /// The number of traces of each run whose text is in the page.
    pub texts: usize,
}

impl Default for ReportOptions {
    fn default() -> ReportOptions {
        ReportOptions { figures: None, texts: 30 }
    }
}

/// Writes one HTML page about runs, finished or not, and each figure as SVG and CSV. For a figure
/// that a run has no numbers for, the page names the command that computes them. An older report at
/// `page` is replaced, another file is not.
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// # use fathom_lm::{Model, Preset, ReportOptions, ScanOptions, Traces, write_report};
/// # let planted = dir.path().join("planted");
/// # let options = fathom_lm::demo::PlantOptions { traces: 2, ..Default::default() };
/// # fathom_lm::demo::plant(&planted, &options)?;
/// # let model = Model::load(planted.display().to_string())?;
/// # let traces = Traces::read(planted.join("traces.jsonl"), &model)?;
/// let run = model.scan(&traces, ScanOptions::new(Preset::Paper)).run()?;
/// let page = dir.path().join("report.html");
/// let files = write_report(&[&run], &page, &ReportOptions::default())?;
/// assert!(files.page.exists() && files.figures.iter().all(|figure| figure.exists()));
/// assert!(dir.path().join("figures/fig1-norms.svg").exists());
/// # Ok::<(), fathom_lm::Error>(())
/// ```
///
/// # Errors
/// No runs, or the same run twice; a directory without a run; tables that are missing or damaged; a
/// file or directory that cannot be written; a file at `page` that is not a report.
pub fn write_report(
    runs: &[impl AsRef<Path>],
    page: &Path,
    options: &ReportOptions,
) -> Result<ReportFiles> {
    let runs: Vec<PathBuf> = runs.iter().map(|run| run.as_ref().to_owned()).collect();
    let next_to_page = || page.with_file_name("figures");
    let figures = options.figures.clone().unwrap_or_else(next_to_page);
    Report::new(&runs)?.write(page, &figures, options.texts)
}
