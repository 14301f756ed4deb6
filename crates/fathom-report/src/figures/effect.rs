//! The attention that sinks receive, against the norm of the MLP output that creates them.

use fathom_sinks::explain::{Effect, EffectPoint, LayerEffect, Line};

use super::{
    AnalysisFigure, Head, MaybeFigure, Method, NO_SECONDARY_FINDING, level_series, number, share,
};
use crate::escape::token_label;
use crate::figure::{
    Axis, Color, Dot, Figure, Frame, Mark, Moving, Panel, Scale, Series, Symbol, short,
};
use crate::run_data::{LevelBook, RunData};
use crate::{Cell, Column, Table};

/// The figure of [`Effect`].
pub(super) struct EffectFigure;

impl AnalysisFigure for EffectFigure {
    type Output = Effect;
    const HEAD: Head = Head {
        name: "fig4-effect",
        title: "Attention received, against the norm of the MLP output",
        paper: "Figure 4",
    };
    const METHOD: Method = Method {
        term: "Effect",
        text: "Sink scores of secondary sinks relative to the reference's, and their lifetimes, \
               against the norm of what the MLP wrote at their first layer.",
    };
    const SECONDARY_ONLY: bool = false;

    fn figure(run: &RunData, effect: &Effect) -> MaybeFigure {
        if effect.layers.iter().all(|layer| layer.reference.is_none() && layer.secondary.is_none())
        {
            let why = "No trace of this run has a primary sink, so there are no sink scores to \
                       compare.";
            return Err(Self::HEAD.absent(why, None));
        }
        let mut legend = level_series(&run.levels);
        let levels = legend.len();
        legend.push(Series::new("reference", Color::Vermillion, Symbol::Dot));
        legend.push(Series::new("mean of secondary sinks alive", Color::Ink, Symbol::Square));
        let groups = Groups { book: &run.levels, rest: levels.saturating_sub(1) };

        let mut panels = vec![scores(run, effect, levels)];
        let mut moving = None;
        if !effect.sinks.is_empty() {
            let lines: Vec<(usize, Line)> =
                effect.layers.iter().filter_map(|l| Some((l.layer, l.line?))).collect();
            let first = lines.iter().position(|(layer, _)| Some(*layer) == effect.steepest_layer);
            let first = first.unwrap_or(0);
            if let Some((layer, line)) = lines.get(first) {
                panels.push(ratio(effect, &groups, &lines, *layer, *line));
                panels.push(lifetimes(effect, &groups));
                panels
                    .push(curve(run, &lines, "Slope of the line by layer", "slope", &|l| l.slope));
                panels.push(curve(run, &lines, "R² of the line by layer", "R²", &|l| l.r2));
                let frame = |(layer, line): &(usize, Line)| Frame {
                    label: format!("layer {layer}"),
                    notes: vec![String::new(), note(*layer, *line)],
                    dots: vec![Vec::new(), groups.ordered(effect).map(|p| at(p, *layer)).collect()],
                    lines: vec![None, Some(ends(effect, *line))],
                };
                let frames = lines.iter().map(frame).collect();
                moving = Some(Moving { what: "layer", panels: panels.clone(), first, frames });
            } else {
                panels.push(lifetimes(effect, &groups));
            }
        }
        Ok(Figure {
            head: Self::HEAD,
            reading: "First: the share of later tokens' attention that the reference and the \
                      secondary sinks receive, by layer. Then one point per secondary sink: its \
                      sink score relative to the reference's at one layer, and its lifetime, \
                      against the norm of the MLP output at its first layer.",
            findings: findings(effect),
            legend,
            columns: panels.len().min(3),
            panels,
            moving,
            quotes: Vec::new(),
            data: table(run, effect),
        })
    }

    fn finding(effect: &Effect) -> String {
        let line = effect.steepest_layer.and_then(|l| Some((l, effect.layers.get(l)?.line?)));
        let attention = match line {
            Some((layer, line)) => {
                let (slope, r2) = (line.slope, line.r2);
                format!(
                    "log score ratio rises by {slope:.2} per unit of log norm at layer {layer} (R² \
                     {r2:.2})"
                )
            }
            None if effect.sinks.is_empty() => return reference_alone(effect),
            None => "too few sinks or norms for a line".to_owned(),
        };
        let rho = effect.lifetime_rho.map(|rho| format!("; lifetime against norm ρ {rho:.2}"));
        attention + &rho.unwrap_or_default()
    }
}

/// The finding of a run without secondary sinks.
fn reference_alone(effect: &Effect) -> String {
    let scores = effect.layers.iter().filter_map(|layer| Some((layer.layer, layer.reference?)));
    let strongest = scores.max_by(|a, b| a.1.total_cmp(&b.1)).map(|(layer, score)| {
        format!("; the reference receives most attention at layer {layer}: sink score {score:.3}")
    });
    NO_SECONDARY_FINDING.to_owned() + &strongest.unwrap_or_default()
}

fn findings(effect: &Effect) -> Vec<String> {
    let mut findings = Vec::new();
    let steepest = effect.steepest_layer.and_then(|l| effect.layers.iter().find(|e| e.layer == l));
    if let Some((layer, line)) = steepest.and_then(|l| Some((l.layer, l.line?))) {
        findings.push(format!(
            "The line is steepest at layer {layer}: the log ratio of sink scores changes by {} per \
             unit of log norm (R² = {}, n = {}).",
            short(line.slope),
            short(line.r2),
            line.n
        ));
    }
    if let Some(rho) = effect.lifetime_rho {
        let relation = if rho > 0.0 { "live longer" } else { "do not live longer" };
        findings.push(format!(
            "Sinks made with larger norms {relation}: Spearman's ρ = {} of lifetime and log norm.",
            short(rho)
        ));
    }
    let weakest = effect.layers.iter().filter(|l| l.secondary.is_some() && l.reference.is_some());
    if let Some(weakest) = weakest.min_by(|a, b| {
        let score = |l: &LayerEffect| l.reference.unwrap_or(f64::MAX);
        score(a).total_cmp(&score(b))
    }) {
        findings.push(format!(
            "Of the layers with secondary sinks, the reference's sink score is lowest at layer {} \
             ({}); there secondary sinks receive {} each.",
            weakest.layer,
            share(weakest.reference.unwrap_or(0.0)),
            share(weakest.secondary.unwrap_or(0.0)),
        ));
    }
    findings
}

/// Assigns sinks to series.
struct Groups<'a> {
    book: &'a LevelBook,
    rest: usize,
}

impl Groups<'_> {
    fn of(&self, point: &EffectPoint) -> usize {
        self.book.group(point.sink.l_start, point.sink.lifetime).min(self.rest)
    }

    /// The sinks by series, the order in which their dots are drawn.
    fn ordered<'e>(&self, effect: &'e Effect) -> impl Iterator<Item = &'e EffectPoint> {
        let mut points: Vec<&EffectPoint> = effect.sinks.iter().collect();
        points.sort_by_key(|point| self.of(point));
        points.into_iter()
    }

    fn dots(&self, effect: &Effect, dot: &dyn Fn(&EffectPoint) -> Dot) -> Vec<Mark> {
        let series = 0..=self.rest;
        let of = |series| self.ordered(effect).filter(move |p| self.of(p) == series);
        series.map(|series| Mark::Dots { series, dots: of(series).map(dot).collect() }).collect()
    }
}

fn scores(run: &RunData, effect: &Effect, levels: usize) -> Panel {
    let values = effect.layers.iter().flat_map(|l| [l.reference, l.secondary]).flatten();
    let mut panel = Panel::new(
        "Sink score by layer",
        Axis::layers(run.layers()),
        Axis::new("share of later tokens' attention", Scale::from_zero(values)),
    );
    for (series, name) in [(levels, "reference"), (levels + 1, "secondary sinks")] {
        let read = |l: &LayerEffect| if series == levels { l.reference } else { l.secondary };
        let dot = |l: &LayerEffect| {
            let value = read(l).unwrap_or(f64::NAN);
            let alive =
                if series > levels { format!("\n{} alive", l.alive) } else { String::new() };
            Dot::new(
                l.layer as f64,
                value,
                format!("{name}\nlayer {}\n{}{alive}", l.layer, share(value)),
            )
        };
        let dots = effect.layers.iter().map(dot).collect();
        panel.marks.push(Mark::Line { series, dots, dashed: false });
    }
    panel
}

fn tip(point: &EffectPoint, more: &str) -> String {
    let sink = &point.sink;
    format!(
        "{} at {} of trace {}\nfrom layer {}, {} layers\n‖mlp_out‖ {}{more}",
        token_label(sink.token_text.as_deref(), sink.token_id),
        sink.position,
        sink.sample_index,
        sink.l_start,
        sink.lifetime,
        short(point.mlp_out_norm.into())
    )
}

/// (ln norm, ln ratio) of a sink at a layer whose attention reads it as a sink; NaN at others.
fn at(point: &EffectPoint, layer: usize) -> (f64, f64) {
    let seen = point.sink.l_start + 1..=point.sink.l_start + point.sink.lifetime;
    let (Some(score), Some(reference)) = (point.score.get(layer), point.reference_score.get(layer))
    else {
        return (f64::NAN, f64::NAN);
    };
    match seen.contains(&layer) {
        true => (f64::from(point.mlp_out_norm).ln(), f64::from(score / reference).ln()),
        false => (f64::NAN, f64::NAN),
    }
}

fn norms(effect: &Effect) -> impl Iterator<Item = f64> {
    effect.sinks.iter().map(|point| f64::from(point.mlp_out_norm).ln())
}

fn ends(effect: &Effect, line: Line) -> [(f64, f64); 2] {
    let min = norms(effect).fold(f64::INFINITY, f64::min);
    let max = norms(effect).fold(f64::NEG_INFINITY, f64::max);
    [min, max].map(|x| (x, line.slope * x + line.intercept))
}

fn note(layer: usize, line: Line) -> String {
    format!("layer {layer}: slope {}, R² {}", short(line.slope), short(line.r2))
}

fn ratio(
    effect: &Effect,
    groups: &Groups<'_>,
    lines: &[(usize, Line)],
    layer: usize,
    line: Line,
) -> Panel {
    let all = lines.iter().flat_map(|(l, line)| {
        let points = effect.sinks.iter().map(move |point| at(point, *l).1);
        points.chain(ends(effect, *line).map(|(_, y)| y))
    });
    let mut panel = Panel::new(
        "Score against norm",
        Axis::new("ln ‖mlp_out‖ at l_start", Scale::over(norms(effect))),
        Axis::new("ln (score / reference's)", Scale::over(all)),
    );
    panel.marks = groups.dots(effect, &|point| {
        let (x, y) = at(point, layer);
        Dot::new(x, y, tip(point, ""))
    });
    panel.marks.push(Mark::Fit { series: groups.rest + 2, ends: ends(effect, line) });
    panel.note = note(layer, line);
    panel
}

fn lifetimes(effect: &Effect, groups: &Groups<'_>) -> Panel {
    let longest = effect.sinks.iter().map(|point| point.sink.lifetime).max().unwrap_or(1);
    let mut panel = Panel::new(
        "Lifetime against norm",
        Axis::new("ln ‖mlp_out‖ at l_start", Scale::over(norms(effect))),
        Axis::new("lifetime in layers", Scale::whole(1, longest + 1)),
    );
    panel.marks = groups.dots(effect, &|point| {
        let x = f64::from(point.mlp_out_norm).ln();
        Dot::new(x, point.sink.lifetime as f64, tip(point, ""))
    });
    panel.note = effect.lifetime_rho.map_or(String::new(), |rho| format!("ρ = {}", short(rho)));
    panel
}

fn curve(
    run: &RunData,
    lines: &[(usize, Line)],
    title: &str,
    name: &str,
    read: &dyn Fn(&Line) -> f64,
) -> Panel {
    let mut panel = Panel::new(
        title,
        Axis::layers(run.layers()),
        Axis::new(name, Scale::over(lines.iter().map(|(_, line)| read(line)).chain([0.0]))),
    );
    let dot = |(layer, line): &(usize, Line)| {
        let tip = format!("layer {layer}\n{name} {}\n{} sinks", short(read(line)), line.n);
        Dot::new(*layer as f64, read(line), tip)
    };
    // The last series of the legend: all secondary sinks together.
    let series = super::level_series(&run.levels).len() + 1;
    panel.marks.push(Mark::Line { series, dots: lines.iter().map(dot).collect(), dashed: false });
    panel
}

fn table(run: &RunData, effect: &Effect) -> Table {
    let mut data = Table::new(vec![
        Column::number("layer", "Layer"),
        Column::number("reference", "Reference's score"),
        Column::number("secondary", "Mean secondary score"),
        Column::number("alive", "Secondary sinks alive"),
        Column::number("slope", "Slope"),
        Column::number("r2", "R2"),
        Column::number("n", "Sinks in the line"),
    ]);
    for layer in effect.layers.iter().take(run.layers()) {
        let value = |x: Option<f64>| number(x.unwrap_or(f64::NAN));
        data.push(vec![
            Cell::count(layer.layer),
            value(layer.reference),
            value(layer.secondary),
            Cell::count(layer.alive),
            value(layer.line.map(|line| line.slope)),
            value(layer.line.map(|line| line.r2)),
            layer.line.map_or(number(f64::NAN), |line| Cell::count(line.n)),
        ]);
    }
    data
}
