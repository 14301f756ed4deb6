//! Where in the traces secondary sinks are.

use std::collections::BTreeMap;

use fathom_sinks::{Clip, Sink, TraceDetection};

use super::{Head, MaybeFigure, NO_SECONDARY, level_series};
use crate::figure::{Axis, Color, Dot, Figure, Mark, Panel, Scale, Series, Symbol};
use crate::run_data::RunData;
use crate::run_phases::{layers_of, unlisted};
use crate::{Cell, Column, Table, plural};

const HEAD: Head = Head { name: "fig5-positions", title: "Where in the text", paper: "Figure 5" };
const BINS: usize = 24;

pub(super) fn positions(run: &RunData) -> MaybeFigure {
    let mut legend = level_series(&run.levels);
    let listed = legend.len();
    let mut phases: BTreeMap<usize, (Clip, usize)> = BTreeMap::new(); // unlisted, by first layer
    for (_, clip, _) in unlisted(&run.traces) {
        phases.entry(clip.start).or_insert((clip, 0)).1 += 1;
    }
    for (index, (clip, count)) in phases.values().enumerate() {
        let label = format!("{}, not listed ({count})", layers_of(*clip));
        let symbol = Symbol::CYCLE[index % Symbol::CYCLE.len()];
        legend.push(Series::new(label, Color::Grey, symbol));
    }
    if legend.is_empty() {
        return Err(HEAD.absent(NO_SECONDARY, None));
    }
    let tokens: Vec<usize> = run.traces.iter().map(TraceDetection::scanned_tokens).collect();
    let longest = tokens.iter().copied().max().unwrap_or(1).max(1);
    let mut absolute = vec![vec![0usize; legend.len()]; BINS];
    let mut relative = absolute.clone();
    let mut count = |trace: usize, sink: &Sink, series: usize| {
        let bin = |of: usize| (sink.position * BINS / of.max(1)).min(BINS - 1);
        absolute[bin(longest)][series] += 1;
        relative[bin(tokens[trace])][series] += 1;
    };
    for (trace, sink) in run.secondary() {
        let group = run.levels.group(sink.l_start(), sink.lifetime());
        count(trace, sink, group.min(listed.saturating_sub(1)));
    }
    for (trace, clip, sink) in unlisted(&run.traces) {
        let phase = phases.keys().position(|start| *start == clip.start);
        count(trace, sink, listed + phase.unwrap_or(0));
    }
    let mut data = Table::new(vec![
        Column::text("scale", "Scale"),
        Column::number("from", "From"),
        Column::number("to", "To"),
        Column::text("level", "Level"),
        Column::number("count", "Secondary sinks"),
    ]);
    let mut panel =
        |title: &str, label: &str, scale: &'static str, end: f64, counts: &[Vec<usize>]| {
            let most = counts.iter().map(|bin| bin.iter().sum::<usize>()).max().unwrap_or(0);
            let mut panel = Panel::new(
                title,
                Axis::new(label, Scale::between(0.0, end)),
                Axis::new("secondary sinks", Scale::from_zero([most as f64].into_iter())),
            );
            let mut tops = [0; BINS];
            for (series, name) in legend.iter().map(|series| &series.label).enumerate() {
                let mut bars = Vec::new();
                for (bin, counts) in counts.iter().enumerate() {
                    let count = counts[series];
                    let edge = |bin: usize| bin as f64 * end / BINS as f64;
                    if count > 0 {
                        let base = tops[bin];
                        tops[bin] += count;
                        let tip = format!(
                            "{name}\n{label} {:.0} to {:.0}\n{}",
                            edge(bin),
                            edge(bin + 1),
                            plural(count, "sink")
                        );
                        let top = Dot::new(edge(bin), tops[bin] as f64, tip);
                        bars.push((edge(bin), edge(bin + 1), base as f64, top));
                    }
                    data.push(vec![
                        Cell::text(scale),
                        Cell::text(format!("{:.1}", edge(bin))),
                        Cell::text(format!("{:.1}", edge(bin + 1))),
                        Cell::text(name),
                        Cell::count(count),
                    ]);
                }
                panel.marks.push(Mark::Bars { series, bars });
            }
            panel
        };
    let panels = vec![
        panel("By position", "position in the trace", "position", longest as f64, &absolute),
        panel("By part of the trace", "% of the trace", "percent", 100.0, &relative),
    ];
    let (mut early, mut all) = (0usize, 0usize);
    let others = unlisted(&run.traces).map(|(trace, _, sink)| (trace, sink));
    for (trace, sink) in run.secondary().chain(others) {
        early += usize::from(2 * sink.position < tokens[trace]);
        all += 1;
    }
    Ok(Figure {
        head: HEAD,
        reading: "The number of secondary sinks by position, with the levels stacked. Traces \
                  differ in length, so the right panel counts by percent of each trace.",
        findings: vec![format!(
            "{} of {} are in the first half of their trace.",
            plural(early, "secondary sink"),
            crate::number::grouped(all)
        )],
        legend,
        panels,
        columns: 2,
        moving: None,
        quotes: Vec::new(),
        data,
    })
}
