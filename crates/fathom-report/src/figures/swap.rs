//! Which vectors prevent a sink when they are replaced.

use std::collections::BTreeMap;

use fathom_sinks::explain::{Share, Swap, SwapCell};

use super::{
    AnalysisFigure, Head, MaybeFigure, Method, NO_SECONDARY, NO_SECONDARY_FINDING, SHOWN_LAYERS,
    number, share,
};
use crate::figure::{Axis, Color, Dot, Figure, Mark, Panel, Scale, Series, Symbol};
use crate::run_data::RunData;
use crate::{Cell, Column, Table};

const SITES: [&str; 3] = ["resid_post", "attn_out", "mlp_out"];

/// The figure of [`Swap`].
pub(super) struct SwapFigure;

impl AnalysisFigure for SwapFigure {
    type Output = Swap;
    const HEAD: Head =
        Head { name: "fig8-swap", title: "Where a sink can still be prevented", paper: "Figure 8" };
    const METHOD: Method = Method {
        term: "Swaps",
        text: "One sink's vector at a time is replaced by the mean over the trace's tokens that \
               are not sinks. Intervals are Wilson's, 95 %.",
    };

    fn figure(_: &RunData, swap: &Swap) -> MaybeFigure {
        if swap.cells.is_empty() {
            return Err(Self::HEAD.absent(NO_SECONDARY, None));
        }
        let mut starts: BTreeMap<usize, Vec<&SwapCell>> = BTreeMap::new();
        for cell in &swap.cells {
            starts.entry(cell.l_start).or_default().push(cell);
        }
        let mut most: Vec<(usize, Vec<&SwapCell>)> = starts.into_iter().collect();
        let sinks =
            |cells: &[&SwapCell]| cells.iter().map(|cell| cell.suppressed.n).max().unwrap_or(0);
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
            let state = |layer: usize| {
                cells.iter().find(|cell| cell.site == SITES[0] && cell.layer == layer)
            };
            let last = (0..=*l_start).rev().find_map(|layer| {
                state(layer).filter(|cell| cell.suppressed.share >= 0.5).map(|cell| (layer, cell))
            });
            if let Some((layer, cell)) = last {
                findings.push(format!(
                    "Replacing the hidden state after layer {layer} by the mean prevents {} of the \
                 sinks that start at layer {l_start}; it is the last layer at which this prevents \
                 at least half of them.",
                    share(cell.suppressed.share)
                ));
            }
        }
        if swap.sinks < swap.sinks_of {
            findings
                .push(format!("{} of {} secondary sinks were swapped.", swap.sinks, swap.sinks_of));
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
            head: Self::HEAD,
            reading: "One future sink at a time, its vector at one layer and site is replaced by \
                      the mean of the trace's tokens that are not sinks. The height is the share \
                      of sinks that then do not form, with 95 % intervals. Where the curve is \
                      high, it is not yet decided which tokens become sinks.",
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

    fn finding(swap: &Swap) -> String {
        let most = swap.cells.iter().max_by_key(|cell| cell.suppressed.n);
        let Some(l_start) = most.map(|cell| cell.l_start) else {
            return NO_SECONDARY_FINDING.to_owned();
        };
        let strongest = |site: &str| {
            let here = swap
                .cells
                .iter()
                .filter(|cell| (cell.l_start, cell.site.as_str()) == (l_start, site));
            here.max_by(|a, b| a.suppressed.share.total_cmp(&b.suppressed.share))
        };
        let said = ["attn_out", "mlp_out"].into_iter().filter_map(|site| {
            let cell = strongest(site)?;
            let Share { share, low, high, .. } = cell.suppressed;
            if share == 0.0 {
                return Some(format!("{site} of any layer suppresses none"));
            }
            let [share, low, high] = [share, low, high].map(|share| 100.0 * share);
            Some(format!(
                "{site} of layer {} suppresses {share:.0}% ({low:.0}–{high:.0})",
                cell.layer
            ))
        });
        format!("sinks of layer {l_start}: replacing {}", said.collect::<Vec<_>>().join(", "))
    }
}
