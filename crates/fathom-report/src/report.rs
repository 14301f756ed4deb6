//! `fathom report`: from runs to a page and figure files.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use fathom_model::{Error, Result};
use fathom_sinks::replace_bytes;

use crate::Format;
use crate::figure::{Figure, whole_svg};
use crate::figures::{self, Drawn};
use crate::page::{self, MARK, Part};
use crate::source::Source;

/// What several runs, or one, have to show.
#[derive(Debug)]
pub struct Report {
    sources: Vec<Source>,
    /// Of each run.
    figures: Vec<Vec<Drawn>>,
    /// Of all runs together, where there are several.
    compared: Vec<Drawn>,
}

/// What a report wrote.
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
        let sources: Vec<Source> = runs
            .iter()
            .enumerate()
            .map(|(number, dir)| Source::read(dir, number))
            .collect::<Result<_>>()?;
        let sources = distinct_names(sources);
        let drawn = sources.iter().map(figures::of_run).collect::<Result<_>>()?;
        let compared = match sources.len() {
            1 => Vec::new(),
            _ => figures::of_all(&sources.iter().collect::<Vec<_>>()),
        };
        Ok(Report { sources, figures: drawn, compared })
    }

    /// Names of the figures of a run, whether they can be drawn or not: `fig1-norms`.
    pub fn figure_names(&self) -> Vec<&'static str> {
        let drawn = self.figures.iter().take(1).flatten();
        drawn.map(|drawn| drawn.as_ref().map_or_else(|absent| absent.name, |f| f.name)).collect()
    }

    /// A figure of the first run as a whole SVG file, by its name, with `fig1-` or without.
    ///
    /// # Errors
    /// A name that no figure has; a figure that the run has no numbers for, with what would make
    /// them.
    pub fn figure_svg(&self, name: &str) -> Result<String> {
        let is_it = |found: &str| {
            found == name || found.split_once('-').is_some_and(|(_, rest)| rest == name)
        };
        for drawn in self.figures.iter().take(1).flatten() {
            match drawn {
                Ok(figure) if is_it(figure.name) => return Ok(whole_svg(figure)),
                Err(absent) if is_it(absent.name) => {
                    let command = absent.command.as_ref();
                    let command = command.map(|command| format!(" `{command}` makes it."));
                    return Err(Error::Request(format!(
                        "there is no figure `{}` of this run: {}{}",
                        absent.name,
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

    /// Writes the page to `page` and the figures under `dir`: directly with one run, with several
    /// those of all runs there and each run's in a directory of its own. The page holds the text of
    /// the first `texts` traces of each run.
    ///
    /// # Errors
    /// A place that cannot be written; a file at `page` that is no report.
    pub fn write(&self, page: &Path, dir: &Path, texts: usize) -> Result<ReportFiles> {
        check_free(page)?;
        let mut files = Vec::new();
        let shown = shown_dir(page, dir);
        let mut parts = Vec::new();
        write_figures(dir, &self.compared, &mut files)?;
        for (number, (source, drawn)) in self.sources.iter().zip(&self.figures).enumerate() {
            let (dir, shown) = match self.sources.len() {
                1 => (dir.to_owned(), shown.clone()),
                _ => {
                    let name = format!("{}-{}", number + 1, file_name(&source.name));
                    (dir.join(&name), format!("{shown}/{name}"))
                }
            };
            write_figures(&dir, drawn, &mut files)?;
            parts.push(Part { source, figures: drawn.clone(), files: shown });
        }
        let html = page::page(&parts, &self.compared, &shown, texts);
        replace(page, &html)?;
        Ok(ReportFiles { page: page.to_owned(), figures: files })
    }
}

/// Whether a report may be written to `page`: there is nothing, or an older report.
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

/// Runs of the same model are told apart by their directories.
fn distinct_names(mut sources: Vec<Source>) -> Vec<Source> {
    let names: Vec<String> = sources.iter().map(|source| source.name.clone()).collect();
    for source in &mut sources {
        if names.iter().filter(|name| **name == source.name).count() > 1 {
            source.name = format!("{} ({})", source.name, source.run.dir().display());
        }
    }
    sources
}

/// How the page names the figures' directory: as seen from where it stands, where that is below.
fn shown_dir(page: &Path, dir: &Path) -> String {
    let parent = page.parent().unwrap_or(Path::new(""));
    dir.strip_prefix(parent).unwrap_or(dir).display().to_string()
}

/// A name without what file systems or shells mind.
fn file_name(name: &str) -> String {
    let safe = |c: char| if c.is_ascii_alphanumeric() || ".-_".contains(c) { c } else { '-' };
    let name: String = name.chars().map(safe).take(60).collect();
    name.trim_matches(['.', '-']).to_owned()
}

/// Replaces a file as a whole; where the name is a link, the file it names.
fn replace(path: &Path, text: &str) -> Result<()> {
    let file = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    replace_bytes(&file, text.as_bytes())
}

fn write_figures(dir: &Path, drawn: &[Drawn], files: &mut Vec<PathBuf>) -> Result<()> {
    let present: Vec<&Figure> = drawn.iter().flatten().collect();
    if present.is_empty() {
        return Ok(());
    }
    fs::create_dir_all(dir).map_err(Error::io(dir, "cannot be created"))?;
    for figure in present {
        let texts = [("svg", whole_svg(figure)), ("csv", figure.data.render(Format::Csv))];
        for (extension, text) in texts {
            let path = dir.join(format!("{}.{extension}", figure.name));
            replace(&path, &text)?;
            files.push(path);
        }
    }
    Ok(())
}
