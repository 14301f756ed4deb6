//! `fathom report`: from runs to a page and figure files.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use fathom_model::{Error, Result};
use fathom_sinks::replace_bytes;

use crate::Format;
use crate::figure::{Figure, whole_svg};
use crate::figures::{self, MaybeFigure};
use crate::page::{self, MARK, Section};
use crate::run_data::RunData;

/// The figures of one or more runs.
#[derive(Debug)]
pub struct Report {
    runs: Vec<RunData>,
    /// Of each run.
    figures: Vec<Vec<MaybeFigure>>,
    /// Of all runs together, if there are several.
    compared: Vec<MaybeFigure>,
}

/// The files a report wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportFiles {
    /// The page.
    pub page: PathBuf,
    /// The figures, SVG and CSV.
    pub figures: Vec<PathBuf>,
}

impl Report {
    /// Reads runs, finished or not, and draws their figures.
    ///
    /// # Errors
    /// No runs, or the same twice; a directory that holds no run, or one of another version; tables
    /// that are missing or damaged.
    pub fn new(runs: &[PathBuf]) -> Result<Report> {
        if runs.is_empty() {
            return Err(Error::Request("there are no runs to report".to_owned()));
        }
        let mut seen = BTreeSet::new();
        for dir in runs {
            let same = fs::canonicalize(dir).unwrap_or_else(|_| dir.clone());
            if !seen.insert(same) {
                return Err(Error::file(dir, "is given twice"));
            }
        }
        let runs: Vec<RunData> = runs
            .iter()
            .enumerate()
            .map(|(number, dir)| RunData::read(dir, number))
            .collect::<Result<_>>()?;
        let runs = distinct_names(runs);
        let figures = runs.iter().map(figures::of_run).collect::<Result<_>>()?;
        let compared = match runs.len() {
            1 => Vec::new(),
            _ => figures::of_all(&runs.iter().collect::<Vec<_>>()),
        };
        Ok(Report { runs, figures, compared })
    }

    /// Names of the figures of a run, including those it has no numbers for: `fig1-norms`.
    pub fn figure_names(&self) -> Vec<&'static str> {
        let figures = self.figures.iter().take(1).flatten();
        figures
            .map(|figure| figure.as_ref().map_or_else(|absent| absent.head.name, |f| f.head.name))
            .collect()
    }

    /// A figure of the first run as an SVG file, by its name, with or without `fig1-`.
    ///
    /// # Errors
    /// A name that no figure has; a figure that the run has no numbers for, with the command that
    /// makes them.
    pub fn figure_svg(&self, name: &str) -> Result<String> {
        let is_it = |found: &str| {
            found == name || found.split_once('-').is_some_and(|(_, rest)| rest == name)
        };
        for figure in self.figures.iter().take(1).flatten() {
            match figure {
                Ok(figure) if is_it(figure.head.name) => return Ok(whole_svg(figure)),
                Err(absent) if is_it(absent.head.name) => {
                    let command = absent.command.as_ref();
                    let command = command.map(|command| format!(" `{command}` makes it."));
                    return Err(Error::Request(format!(
                        "there is no figure `{}` of this run: {}{}",
                        absent.head.name,
                        absent.why,
                        command.unwrap_or_default()
                    )));
                }
                _ => {}
            }
        }
        let names = self.figure_names().join(", ");
        Err(Error::Request(format!("there is no figure `{name}`: expected one of {names}")))
    }

    /// Writes the page to `page` and the figures to `dir`. With several runs, `dir` itself gets the
    /// figures of all runs together, and each run's figures get a directory of their own. The page
    /// has the text of the first `texts` traces of each run.
    ///
    /// # Errors
    /// A file or directory that cannot be written; a file at `page` that is not a report.
    pub fn write(&self, page: &Path, dir: &Path, texts: usize) -> Result<ReportFiles> {
        check_free(page)?;
        let mut files = Vec::new();
        let shown = shown_dir(page, dir);
        let mut sections = Vec::new();
        write_figures(dir, &self.compared, &mut files)?;
        for (number, (run, figures)) in self.runs.iter().zip(&self.figures).enumerate() {
            let (dir, shown) = match self.runs.len() {
                1 => (dir.to_owned(), shown.clone()),
                _ => {
                    let name = format!("{}-{}", number + 1, file_name(&run.name));
                    (dir.join(&name), format!("{shown}/{name}"))
                }
            };
            write_figures(&dir, figures, &mut files)?;
            sections.push(Section { run, figures: figures.clone(), files: shown });
        }
        let html = page::page(&sections, &self.compared, &shown, texts);
        replace(page, &html)?;
        Ok(ReportFiles { page: page.to_owned(), figures: files })
    }
}

/// Checks that a report may be written to `page`: there is no file, or an older report.
fn check_free(page: &Path) -> Result<()> {
    let parent = page.parent().filter(|parent| !parent.as_os_str().is_empty());
    if let Some(parent) = parent.filter(|parent| !parent.is_dir()) {
        let problem = format!("cannot be written: there is no directory {}", parent.display());
        return Err(Error::file(page, problem));
    }
    match fs::read(page) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::io(page, "cannot be written")(error)),
        Ok(bytes) if bytes.is_empty() || bytes.starts_with(MARK.as_bytes()) => Ok(()),
        Ok(_) => Err(Error::file(page, "exists and is no report: give another `--out`")),
    }
}

/// Adds the directory to the names of runs of the same model.
fn distinct_names(mut runs: Vec<RunData>) -> Vec<RunData> {
    let names: Vec<String> = runs.iter().map(|run| run.name.clone()).collect();
    for run in &mut runs {
        if names.iter().filter(|name| **name == run.name).count() > 1 {
            run.name = format!("{} ({})", run.name, run.stored.dir().display());
        }
    }
    runs
}

/// How the page names the figures' directory: relative to its own directory if it is below that.
fn shown_dir(page: &Path, dir: &Path) -> String {
    let parent = page.parent().unwrap_or(Path::new(""));
    dir.strip_prefix(parent).unwrap_or(dir).display().to_string()
}

/// A name without characters that are special to file systems or shells.
fn file_name(name: &str) -> String {
    let safe = |c: char| if c.is_ascii_alphanumeric() || ".-_".contains(c) { c } else { '-' };
    let name: String = name.chars().map(safe).take(60).collect();
    name.trim_matches(['.', '-']).to_owned()
}

/// Replaces a whole file; for a link, the file it points to.
fn replace(path: &Path, text: &str) -> Result<()> {
    let file = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    replace_bytes(&file, text.as_bytes())
}

fn write_figures(dir: &Path, figures: &[MaybeFigure], files: &mut Vec<PathBuf>) -> Result<()> {
    let present: Vec<&Figure> = figures.iter().flatten().collect();
    if present.is_empty() {
        return Ok(());
    }
    fs::create_dir_all(dir).map_err(Error::io(dir, "cannot be created"))?;
    for figure in present {
        let texts = [("svg", whole_svg(figure)), ("csv", figure.data.render(Format::Csv))];
        for (extension, text) in texts {
            let path = dir.join(format!("{}.{extension}", figure.head.name));
            replace(&path, &text)?;
            files.push(path);
        }
    }
    Ok(())
}
