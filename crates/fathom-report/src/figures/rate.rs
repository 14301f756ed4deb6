//! The sink rate of each layer and head.

use fathom_sinks::SinkRates;

use super::measures::NO_MEASURES;
use super::{Head, MaybeFigure, number, share};
use crate::figure::{Axis, Dot, Figure, HeatCell, Mark, Panel, Scale};
use crate::run_data::RunData;
use crate::{Cell, Column, Table, percent};

const HEAD: Head = Head {
    name: "sink-rate",
    title: "Sink rate by layer and head",
    paper: "Gu et al. 2024, arXiv:2410.10781",
};

pub(super) fn rate(run: &RunData) -> MaybeFigure {
    let Some(agreement) = &run.measures else { return Err(HEAD.absent(NO_MEASURES, None)) };
    let Some(rates) = &agreement.rates else {
        let why = "Attention was not measured: a scan with --attention does.";
        return Err(HEAD.absent(why, None));
    };
    let mut data = Table::new(vec![
        Column::number("layer", "Layer"),
        Column::number("head", "Head"),
        Column::number("reference", "At the reference"),
        Column::number("anywhere", "At any token"),
    ]);
    for (layer, (reference, anywhere)) in rates.reference.iter().zip(&rates.anywhere).enumerate() {
        for (head, (reference, anywhere)) in reference.iter().zip(anywhere).enumerate() {
            let rates = [number(*reference), number(*anywhere)];
            let place = [Cell::count(layer), Cell::count(head)];
            data.push(place.into_iter().chain(rates).collect());
        }
    }
    let panel = |title: &str, rates: &[Vec<f64>]| {
        let heads = rates.first().map_or(0, Vec::len);
        let mut panel = Panel::new(
            format!("{title}: {}", percent(100.0 * SinkRates::mean(rates))),
            Axis::layers(run.layers()),
            Axis::new("head", Scale::whole(0, heads.saturating_sub(1))),
        );
        let cells = rates.iter().enumerate().flat_map(|(layer, heads)| {
            heads.iter().enumerate().map(move |(head, rate)| HeatCell {
                dot: Dot::new(
                    layer as f64,
                    head as f64,
                    format!("layer {layer}, head {head}\n{} of the traces", share(*rate)),
                ),
                shade: *rate,
                text: String::new(),
                link: None,
            })
        });
        panel.marks.push(Mark::Cells(cells.collect()));
        panel
    };
    let (layers, heads) = (rates.reference.len(), rates.heads);
    Ok(Figure {
        head: HEAD,
        reading: "The share of traces in which the head's sink score of a token is above 0.3: of \
                  the reference (left), or of any token but the last ten of a trace, which few \
                  positions attend to (right). Brighter is more.",
        findings: vec![format!(
            "The sink rate of the reference is {} over {layers} layers with {heads} heads; at {} \
             of (trace, layer, head) some token is a sink.",
            percent(100.0 * SinkRates::mean(&rates.reference)),
            percent(100.0 * SinkRates::mean(&rates.anywhere)),
        )],
        legend: Vec::new(),
        panels: vec![
            panel("At the reference", &rates.reference),
            panel("At any token", &rates.anywhere),
        ],
        columns: 2,
        moving: None,
        quotes: Vec::new(),
        data,
    })
}
