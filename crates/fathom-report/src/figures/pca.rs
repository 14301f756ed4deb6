//! Principal components of the MLP's input, and the MLP's output along each.

use fathom_sinks::explain::{LayerPca, Pca, SweepPoint};

use super::{AnalysisFigure, Head, MaybeFigure, Method, NO_SECONDARY, joined, number, share};
use crate::figure::{Axis, Dot, Figure, Mark, Panel, Scale, Series, short};
use crate::run_data::RunData;
use crate::{Cell, Column, Table};

const COMPONENTS: usize = 5;

/// The figure of [`Pca`].
pub(super) struct PcaFigure;

impl AnalysisFigure for PcaFigure {
    type Output = Pca;
    const HEAD: Head = Head {
        name: "fig7-pca",
        title: "Which directions the MLP turns into the sink direction",
        paper: "Figure 7",
    };
    const METHOD: Method = Method {
        term: "Principal components",
        text: "The principal components of the MLP's input at the layer where sinks start, over \
               sinks and as many other tokens. Each is scaled by α and put through the MLP alone.",
    };

    fn figure(_: &RunData, pca: &Pca) -> MaybeFigure {
        if pca.layers.is_empty() {
            return Err(Self::HEAD.absent(NO_SECONDARY, None));
        }
        let mut findings = Vec::new();
        let mut panels = Vec::new();
        for layer in &pca.layers {
            panels.push(spectrum(layer));
            let norm = |p: &SweepPoint| f64::from(p.norm);
            let mut norms = sweep(
                layer,
                "‖output‖ of ±α · PC",
                "norm",
                &norm,
                Scale::from_zero(points(layer).map(norm).chain([layer.sink_norm])),
            );
            norms.marks.push(Mark::Level { y: layer.sink_norm, label: "mean of sinks".to_owned() });
            panels.push(norms);
            let cosines = || Scale::between(-1.08, 1.08);
            panels.push(sweep(
                layer,
                "with the reference's output",
                "cosine",
                &|p| p.cosine.into(),
                cosines(),
            ));
            panels.push(sweep(
                layer,
                "with its state",
                "cosine",
                &|p| p.cosine_to_state.into(),
                cosines(),
            ));
            let first: f64 = layer.explained.iter().take(3).sum();
            let driver = layer.components.iter().max_by(|a, b| best(a).total_cmp(&best(b)));
            findings.push(format!(
                "Layer {}: three components explain {} of the variance of {} sinks and {} other \
             tokens{}.",
                layer.layer,
                share(first),
                layer.sinks,
                layer.others,
                driver.map_or(String::new(), |d| format!(
                    "; along component {} the output's norm reaches {} (the sinks' own: {})",
                    d.component,
                    short(best(d)),
                    short(layer.sink_norm)
                ))
            ));
        }
        Ok(Figure {
            head: Self::HEAD,
            reading: "Left: the share of the variance of the MLP's input that each principal \
                      component explains; few tall bars mean that sinks share a key. Then each \
                      component alone, scaled by α from minus to plus the largest projection of a \
                      sink, is put through the MLP: the norm of the output, its cosine with the \
                      reference's MLP output, and its cosine with the reference's hidden state.",
            findings,
            legend: (1..=COMPONENTS)
                .map(|i| Series::cycle(format!("component {i}"), i - 1))
                .collect(),
            panels,
            columns: 4,
            moving: None,
            quotes: Vec::new(),
            data: table(pca),
        })
    }

    fn finding(pca: &Pca) -> String {
        let layer = |layer: &LayerPca| {
            let first: f64 = layer.explained.iter().take(8).sum();
            let norm = |component: &fathom_sinks::explain::ComponentSweep| {
                component.points.iter().map(|point| point.norm).fold(0.0, f32::max)
            };
            let strongest = layer.components.iter().max_by(|a, b| norm(a).total_cmp(&norm(b)));
            let driven = strongest.map_or(String::new(), |component| {
                let (number, norm) = (component.component, norm(component));
                format!(
                    "; swept, PC {number} drives mlp_out to {norm:.0} (the sinks' {:.0})",
                    layer.sink_norm
                )
            });
            format!(
                "layer {}: 8 components hold {:.0}% of mlp_in{driven}",
                layer.layer,
                100.0 * first
            )
        };
        joined(pca.layers.iter().map(layer))
    }
}

fn points(layer: &LayerPca) -> impl Iterator<Item = &SweepPoint> {
    layer.components.iter().flat_map(|component| &component.points)
}

/// The largest norm along a component.
fn best(component: &fathom_sinks::explain::ComponentSweep) -> f64 {
    component.points.iter().map(|point| f64::from(point.norm)).fold(0.0, f64::max)
}

fn spectrum(layer: &LayerPca) -> Panel {
    let shown = layer.explained.len().min(16);
    let mut panel = Panel::new(
        format!("Layer {}: explained variance", layer.layer),
        Axis::new("component", Scale::whole(1, shown.max(2))),
        Axis::new("share of the variance", Scale::from_zero(layer.explained.iter().copied())),
    );
    for (i, part) in layer.explained.iter().take(shown).enumerate() {
        let x = (i + 1) as f64;
        let tip = format!("component {}\n{}", i + 1, share(*part));
        let bar = (x - 0.4, x + 0.4, 0.0, Dot::new(x, *part, tip));
        panel.marks.push(Mark::Bars { series: i.min(COMPONENTS), bars: vec![bar] });
    }
    panel
}

fn sweep(
    layer: &LayerPca,
    title: &str,
    name: &str,
    read: &dyn Fn(&SweepPoint) -> f64,
    scale: Scale,
) -> Panel {
    let alphas = points(layer).map(|point| f64::from(point.alpha));
    let mut panel = Panel::new(
        format!("Layer {}: {title}", layer.layer),
        Axis::new("α", Scale::over(alphas)),
        Axis::new(name, scale),
    );
    for component in &layer.components {
        let series = component.component.saturating_sub(1).min(COMPONENTS - 1);
        let dot = |point: &SweepPoint| {
            let tip = format!(
                "component {}\nα {}\n{name} {}",
                component.component,
                short(point.alpha.into()),
                short(read(point))
            );
            Dot::new(point.alpha.into(), read(point), tip)
        };
        let dots = component.points.iter().map(dot).collect();
        panel.marks.push(Mark::Line { series, dots, dashed: false });
    }
    panel
}

fn table(pca: &Pca) -> Table {
    let mut data = Table::new(vec![
        Column::number("layer", "Layer"),
        Column::number("component", "Component"),
        Column::number("explained", "Explained variance"),
        Column::number("alpha", "Alpha"),
        Column::number("norm", "Output norm"),
        Column::number("cosine", "Cosine with the reference's mlp_out"),
        Column::number("cosine_to_state", "Cosine with the reference's state"),
    ]);
    for layer in &pca.layers {
        for component in &layer.components {
            let index = component.component.saturating_sub(1);
            let explained = layer.explained.get(index).copied().unwrap_or(f64::NAN);
            for point in &component.points {
                let values = [point.alpha, point.norm, point.cosine, point.cosine_to_state];
                let head =
                    [Cell::count(layer.layer), Cell::count(component.component), number(explained)];
                data.push(head.into_iter().chain(values.map(|x| number(x.into()))).collect());
            }
        }
    }
    data
}
