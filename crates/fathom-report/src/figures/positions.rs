//! Where in the traces secondary sinks are.

use fathom_sinks::TraceDetection;

use super::{Head, MaybeFigure, NO_SECONDARY, level_series};
use crate::figure::{Axis, Dot, Figure, Mark, Panel, Scale};
use crate::run_data::RunData;
use crate::{Cell, Column, Table, plural};

const HEAD: Head = Head { name: "fig5-positions", title: "Where in the text", paper: "Figure 5" };
const BINS: usize = 24;

pub(super) fn positions(run: &RunData) -> MaybeFigure {
    let legend = level_series(&run.levels);
    if legend.is_empty() {
        return Err(HEAD.absent(NO_SECONDARY, None));
    }
    let tokens: Vec<usize> = run.traces.iter().map(TraceDetection::scanned_tokens).collect();
    let longest = tokens.iter().copied().max().unwrap_or(1).max(1);
    let mut absolute = vec![vec![0usize; legend.len()]; BINS];
    let mut relative = absolute.clone();
    for (trace, sink) in run.secondary() {
        let group = run.levels.group(sink.l_start(), sink.lifetime()).min(legend.len() - 1);
        let bin = |of: usize| (sink.position * BINS / of.max(1)).min(BINS - 1);
        absolute[bin(longest)][group] += 1;
        relative[bin(tokens[trace])][group] += 1;
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
    for (trace, sink) in run.secondary() {
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
