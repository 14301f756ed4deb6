//! What the report shows of an analysis: its figure, its finding and its method.

use std::path::Path;

use fathom_model::Result;
use fathom_sinks::explain::{Analysis, AnalysisResult, read, result_file};

use super::{Head, MaybeFigure, NO_SECONDARY};
use crate::run_data::RunData;

/// How the report shows the result of one analysis.
pub(super) trait AnalysisFigure {
    /// The result.
    type Output: AnalysisResult;

    /// Name and titles of the figure.
    const HEAD: Head;

    /// Its entry in the page's section "Methods".
    const METHOD: Method;

    /// Whether it is about secondary sinks only. If the run has none, the analysis is not
    /// suggested.
    const SECONDARY_ONLY: bool = true;

    /// The figure of a result.
    fn figure(run: &RunData, result: &Self::Output) -> MaybeFigure;

    /// What was found, in one sentence without a full stop.
    fn finding(result: &Self::Output) -> String;
}

/// An entry of the section "Methods".
#[derive(Clone, Copy)]
pub struct Method {
    /// The term it explains.
    pub term: &'static str,
    /// What was computed, and how.
    pub text: &'static str,
}

/// An [`AnalysisFigure`] of any result type, so that one list holds all of them.
#[derive(Clone, Copy)]
pub struct View {
    /// The analysis.
    pub analysis: Analysis,
    /// [`AnalysisFigure::METHOD`]
    pub method: Method,
    /// The figure of a run, or why there is none.
    pub figure: fn(&RunData) -> MaybeFigure,
    /// The finding of the stored result of the run in a directory; `None` if there is none.
    pub finding: fn(&Path) -> Result<Option<String>>,
}

impl View {
    pub(super) const fn of<F: AnalysisFigure>() -> View {
        View {
            analysis: F::Output::ANALYSIS,
            method: F::METHOD,
            figure: figure::<F>,
            finding: finding::<F>,
        }
    }
}

fn figure<F: AnalysisFigure>(run: &RunData) -> MaybeFigure {
    let analysis = F::Output::ANALYSIS;
    let command =
        Some(format!("fathom explain {} --{}", run.stored.dir().display(), analysis.name()));
    match read::<F::Output>(run.stored.dir()) {
        Ok(Some(stored)) if stored.detections_sha256 == run.detections_sha256 => {
            F::figure(run, &stored.result)
        }
        Ok(Some(_)) => {
            let file = result_file(run.stored.dir(), analysis);
            let why = format!("{} is the result of other detections.", file.display());
            Err(F::HEAD.absent(why, command))
        }
        Ok(None) if F::SECONDARY_ONLY && run.levels.entries().is_empty() => {
            Err(F::HEAD.absent(NO_SECONDARY, None))
        }
        Ok(None) => Err(F::HEAD.absent("This analysis has not been run.", command)),
        Err(error) => Err(F::HEAD.absent(format!("{error}."), command)),
    }
}

fn finding<F: AnalysisFigure>(run_dir: &Path) -> Result<Option<String>> {
    Ok(read::<F::Output>(run_dir)?.map(|stored| F::finding(&stored.result)))
}
