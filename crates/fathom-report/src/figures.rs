//! The figures of a report, one file each: from results to panels.

mod clusters;
mod effect;
mod entropy;
mod levels;
mod neurons;
mod norms;
mod pca;
mod positions;
mod stages;
mod suppress;
mod swap;

use fathom_model::Result;
use fathom_sinks::Class;
use serde_json::json;

use crate::figure::{Absent, Color, Figure, Series, Symbol};
use crate::source::{Explained, LevelBook, Source};
use crate::{Cell, escape::token_label};

pub use levels::{level_anchor, levels};

/// A figure, or why there is none.
pub type Drawn = std::result::Result<Figure, Absent>;

/// All figures of a run, in the paper's order.
///
/// # Errors
/// Tables of the run that are missing or damaged.
pub fn of_run(source: &Source) -> Result<Vec<Drawn>> {
    Ok(vec![
        norms::norms(source)?,
        levels(&[source]),
        stages::stages(source),
        effect::effect(source),
        positions::positions(source),
        clusters::clusters(source),
        pca::pca(source),
        swap::swap(source),
        entropy::entropy(source),
        suppress::suppress(source),
        neurons::neurons(source),
    ])
}

/// Figures of several runs together.
pub fn of_all(sources: &[&Source]) -> Vec<Drawn> {
    vec![levels(sources)]
}

/// What a figure is called before there is one.
#[derive(Clone, Copy)]
struct Head {
    name: &'static str,
    title: &'static str,
    paper: &'static str,
}

impl Head {
    fn absent(self, why: impl Into<String>, command: Option<String>) -> Absent {
        let Head { name, title, paper } = self;
        Absent { name, title, paper, why: why.into(), command }
    }

    /// The result of an analysis, or the figure's absence.
    fn result<T>(self, explained: &Explained<T>) -> std::result::Result<&T, Absent> {
        match explained {
            Explained::Here(result) => Ok(result),
            Explained::Missing { command } => {
                Err(self.absent("This analysis has not been run.", Some(command.clone())))
            }
            Explained::Unusable { why, command } => {
                Err(self.absent(why.clone(), Some(command.clone())))
            }
        }
    }
}

/// The same of an analysis of secondary sinks, which is not worth running where there are none.
fn of_secondary<'a, T>(
    head: Head,
    source: &Source,
    explained: &'a Explained<T>,
) -> std::result::Result<&'a T, Absent> {
    match explained {
        Explained::Missing { .. } if source.levels.entries().is_empty() => {
            Err(head.absent(NO_SECONDARY, None))
        }
        explained => head.result(explained),
    }
}

/// Why a figure about secondary sinks is empty.
const NO_SECONDARY: &str = "There are no secondary sinks to look at in this run.";

/// Creation layers that are shown.
const SHOWN_LAYERS: usize = 4;

/// A series for each group of levels, and one for the rest where there is one.
fn level_series(book: &LevelBook) -> Vec<Series> {
    let mut series: Vec<Series> = Vec::new();
    let mut grouped: Vec<_> =
        book.entries().iter().filter(|entry| entry.group < LevelBook::GROUPS).collect();
    grouped.sort_by_key(|entry| entry.group);
    for entry in &grouped {
        let level = entry.level;
        let label = format!(
            "{}: from layer {}, {} layers ({})",
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

/// A number in a cell, to six digits.
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

/// How a sink is named in a legend: position, token, and level or class.
fn sink_label(source: &Source, sink: &fathom_sinks::Sink) -> String {
    let token = token_label(sink.token_text.as_deref(), sink.token_id);
    let kind = match sink.class {
        Class::Secondary => match source.levels.of(sink.l_start(), sink.lifetime()) {
            Some((_, entry)) => format!("level {}", entry.letter),
            None => "secondary".to_owned(),
        },
        class => class.name().to_owned(),
    };
    format!("{} {token}, {kind}", sink.position)
}
