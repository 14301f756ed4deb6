//! Which swapped vectors keep a sink from forming.

use std::collections::BTreeMap;

use fathom_sinks::explain::{Swap, SwapCell};

use super::{Drawn, Head, NO_SECONDARY, SHOWN_LAYERS, number, of_secondary, share};
use crate::figure::{Axis, Color, Dot, Figure, Mark, Panel, Scale, Series, Symbol};
use crate::source::Source;
use crate::{Cell, Column, Table};

const HEAD: Head =
    Head { name: "fig8-swap", title: "Where a sink can still be prevented", paper: "Figure 8" };
const SITES: [&str; 3] = ["resid_post", "attn_out", "mlp_out"];

pub(super) fn swap(source: &Source) -> Drawn {
    let swap: &Swap = of_secondary(HEAD, source, &source.explained.swap)?;
    if swap.cells.is_empty() {
        return Err(HEAD.absent(NO_SECONDARY, None));
    }
    let mut starts: BTreeMap<usize, Vec<&SwapCell>> = BTreeMap::new();
    for cell in &swap.cells {
        starts.entry(cell.l_start).or_default().push(cell);
    }
    let mut most: Vec<(usize, Vec<&SwapCell>)> = starts.into_iter().collect();
    let sinks = |cells: &[&SwapCell]| cells.iter().map(|cell| cell.suppressed.n).max().unwrap_or(0);
    most.sort_by_key(|(_, cells)| std::cmp::Reverse(sinks(cells)));
    most.truncate(SHOWN_LAYERS);
    most.sort_by_key(|(l_start, _)| *l_start);

    let mut panels = Vec::new();
    let mut findings = Vec::new();
    for (l_start, cells) in &most {
        let mut panel = Panel::new(
            format!("Sinks from layer {l_start} on (n = {})", sinks(cells)),
            Axis::new("layer at which the vector is swapped", Scale::whole(0, l_start + 1)),
            Axis::new("% of sinks suppressed", Scale::between(-4.0, 104.0)),
        );
        panel.marks.push(Mark::Rule { x: *l_start as f64, label: "l_start".to_owned() });
        for (series, site) in SITES.iter().enumerate() {
            let of: Vec<&&SwapCell> = cells.iter().filter(|cell| cell.site == *site).collect();
            for cell in &of {
                let nudge = (series as f64 - 1.0) * 0.12;
                let range = (100.0 * cell.suppressed.low, 100.0 * cell.suppressed.high);
                panel.marks.push(Mark::Whisker { series, x: cell.layer as f64 + nudge, range });
            }
            let dot = |cell: &&&SwapCell| {
                let s = cell.suppressed;
                let tip = format!(
                    "{site}, layer {}\n{} of {} suppressed ({})\n95 % interval {} to {}",
                    cell.layer,
                    s.count,
                    s.n,
                    share(s.share),
                    share(s.low),
                    share(s.high)
                );
                let nudge = (series as f64 - 1.0) * 0.12;
                Dot::new(cell.layer as f64 + nudge, 100.0 * s.share, tip)
            };
            let dots = of.iter().map(dot).collect();
            panel.marks.push(Mark::Line { series, dots, dashed: false });
        }
        panels.push(panel);
        let state =
            |layer: usize| cells.iter().find(|cell| cell.site == SITES[0] && cell.layer == layer);
        let last = (0..=*l_start).rev().find_map(|layer| {
            state(layer).filter(|cell| cell.suppressed.share >= 0.5).map(|cell| (layer, cell))
        });
        if let Some((layer, cell)) = last {
            findings.push(format!(
                "Of sinks that start at layer {l_start}, {} are prevented by an average hidden state put in their \
                 place after layer {layer}, the last at which half of them or more are.",
                share(cell.suppressed.share)
            ));
        }
    }
    if swap.sinks < swap.sinks_of {
        findings.push(format!("{} of {} secondary sinks were swapped.", swap.sinks, swap.sinks_of));
    }
    let mut data = Table::new(vec![
        Column::number("l_start", "First layer"),
        Column::text("site", "Site"),
        Column::number("layer", "Swapped at layer"),
        Column::number("n", "Sinks"),
        Column::number("suppressed", "Suppressed"),
        Column::number("share", "Share"),
        Column::number("low", "Low (95 %)"),
        Column::number("high", "High (95 %)"),
    ]);
    for cell in &swap.cells {
        let s = cell.suppressed;
        data.push(vec![
            Cell::count(cell.l_start),
            Cell::text(&cell.site),
            Cell::count(cell.layer),
            Cell::count(s.n),
            Cell::count(s.count),
            number(s.share),
            number(s.low),
            number(s.high),
        ]);
    }
    Ok(Figure {
        name: HEAD.name,
        title: HEAD.title,
        paper: HEAD.paper,
        reading: "One future sink at a time, its vector at one layer and site is replaced by the mean of the trace's \
                  tokens that are no sinks. The height says how often the sink then fails to form, with 95 % \
                  intervals. A layer where the curve is high has not yet decided.",
        findings,
        legend: vec![
            Series::new("hidden state", Color::Blue, Symbol::Dot),
            Series::new("attention output", Color::Green, Symbol::Square),
            Series::new("MLP output", Color::Orange, Symbol::Diamond),
        ],
        columns: panels.len().min(2),
        panels,
        moving: None,
        quotes: Vec::new(),
        data,
    })
}
