//! The figures of a report, one file each: from results to panels.
//!
//! The figure of an analysis is an `AnalysisFigure`, which also has the analysis' finding and its
//! entry under "Methods". A new one is a file and a line in [`FIGURES`].

mod analysis;
mod changes;
mod clusters;
mod effect;
mod entropy;
mod evict;
mod knockout;
mod levels;
mod measures;
mod neurons;
mod norms;
mod pca;
mod positions;
mod rate;
mod stages;
mod suppress;
mod swap;

use std::path::Path;

use fathom_model::Result;
use fathom_sinks::Class;
use fathom_sinks::explain::Analysis;
use serde_json::json;

use self::analysis::{AnalysisFigure, View};
use crate::figure::{Absent, Color, Figure, Head, Series, Symbol};
use crate::run_data::{LevelBook, RunData};
use crate::run_phases::range_of;
use crate::{Cell, escape::token_label};

pub use analysis::Method;
pub use levels::{level_anchor, levels};

/// A figure, or why there is none.
pub type MaybeFigure = std::result::Result<Figure, Absent>;

/// Where the numbers of a figure come from.
enum Source {
    /// The scan.
    Scan(fn(&RunData) -> Result<MaybeFigure>),
    /// An analysis.
    Analysis(View),
}

/// The figures of a run: those of the paper in its order, then others.
const FIGURES: &[Source] = &[
    Source::Scan(norms::norms),
    Source::Scan(|run| Ok(levels(&[run]))),
    Source::Analysis(View::of::<stages::StagesFigure>()),
    Source::Analysis(View::of::<effect::EffectFigure>()),
    Source::Scan(|run| Ok(positions::positions(run))),
    Source::Analysis(View::of::<clusters::ClustersFigure>()),
    Source::Analysis(View::of::<pca::PcaFigure>()),
    Source::Analysis(View::of::<swap::SwapFigure>()),
    Source::Analysis(View::of::<entropy::EntropyFigure>()),
    Source::Analysis(View::of::<suppress::SuppressFigure>()),
    Source::Analysis(View::of::<neurons::NeuronsFigure>()),
    Source::Analysis(View::of::<knockout::KnockoutFigure>()),
    Source::Analysis(View::of::<evict::EvictFigure>()),
    Source::Scan(|run| Ok(measures::agreement(run))),
    Source::Scan(|run| Ok(rate::rate(run))),
    Source::Scan(|run| Ok(measures::massive(run))),
];

/// All figures of a run.
///
/// # Errors
/// Tables of the run that are missing or damaged. A damaged result of an analysis is not an error:
/// a sentence in place of its figure reports it.
pub fn of_run(run: &RunData) -> Result<Vec<MaybeFigure>> {
    let figure = |source: &Source| match source {
        Source::Scan(figure) => figure(run),
        Source::Analysis(view) => Ok((view.figure)(run)),
    };
    FIGURES.iter().map(figure).collect()
}

/// Figures of several runs together.
pub fn of_all(runs: &[&RunData]) -> Vec<MaybeFigure> {
    vec![levels(runs)]
}

fn views() -> impl Iterator<Item = &'static View> {
    FIGURES.iter().filter_map(|source| match source {
        Source::Scan(_) => None,
        Source::Analysis(view) => Some(view),
    })
}

/// The analyses' entries in the section "Methods", in the order of their figures.
pub fn methods() -> impl Iterator<Item = Method> {
    views().map(|view| view.method)
}

/// The finding of an analysis of the run in `run_dir`, from its stored result; `None` if there is
/// none.
///
/// # Errors
/// A result that cannot be read.
pub fn finding(run_dir: &Path, analysis: Analysis) -> Result<Option<String>> {
    match views().find(|view| view.analysis == analysis) {
        Some(view) => (view.finding)(run_dir),
        None => Ok(None),
    }
}

/// Why there is no figure about secondary sinks.
const NO_SECONDARY: &str = "There are no secondary sinks to look at in this run.";

/// The finding of an analysis of secondary sinks if there are none.
const NO_SECONDARY_FINDING: &str = "the run has no secondary sinks";

/// The findings of several layers as one.
fn joined(findings: impl Iterator<Item = String>) -> String {
    let findings: Vec<String> = findings.collect();
    match findings.is_empty() {
        true => NO_SECONDARY_FINDING.to_owned(),
        false => findings.join("; "),
    }
}

/// Maximum number of first layers (l_start) that have panels.
const SHOWN_LAYERS: usize = 4;

/// A series for each level with a group of its own, and one for the rest, if any.
fn level_series(book: &LevelBook) -> Vec<Series> {
    let mut series: Vec<Series> = Vec::new();
    let mut grouped: Vec<_> =
        book.entries().iter().filter(|entry| entry.group < LevelBook::GROUPS).collect();
    grouped.sort_by_key(|entry| entry.group);
    for entry in &grouped {
        let level = entry.level;
        let phase = entry.phase.map_or(String::new(), |clip| format!(", phase {}", range_of(clip)));
        let label = format!(
            "{}: from layer {}, {} layers{phase} ({})",
            entry.letter, level.l_start, level.lifetime, level.count
        );
        series.push(Series::cycle(label, entry.group));
    }
    if grouped.len() < book.entries().len() {
        let rest = book.entries().len() - grouped.len();
        series.push(Series::new(format!("{rest} other levels"), Color::Grey, Symbol::Dot));
    }
    series
}

/// A cell with a number, rounded to six significant digits.
fn number(x: f64) -> Cell {
    if !x.is_finite() {
        return Cell::new("", serde_json::Value::Null);
    }
    let digits = if x == 0.0 { 0 } else { 5 - (x.abs().log10().floor() as i32).clamp(-12, 5) };
    let text = format!("{x:.*}", usize::try_from(digits).unwrap_or(0));
    let text = match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    };
    Cell::new(text, json!(x))
}

/// `12.5 %`
fn share(x: f64) -> String {
    format!("{} %", crate::figure::short(100.0 * x))
}

/// A sink's label in a legend: position, token, and level or class.
fn sink_label(run: &RunData, sink: &fathom_sinks::Sink) -> String {
    let token = token_label(sink.token_text.as_deref(), sink.token_id);
    let kind = match sink.class {
        Class::Secondary => match run.levels.of(sink.l_start(), sink.lifetime()) {
            Some((_, entry)) => format!("level {}", entry.letter),
            None => "secondary".to_owned(),
        },
        class => class.name().to_owned(),
    };
    format!("{} {token}, {kind}", sink.position)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_analysis_has_a_figure() {
        let missing = |analysis: &Analysis| !views().any(|view| view.analysis == *analysis);
        assert_eq!(Analysis::ALL.into_iter().find(missing), None);
    }
}
