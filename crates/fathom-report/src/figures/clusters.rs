//! Future sinks among other tokens, layer by layer.

use fathom_sinks::explain::{ClusterPlace, Clusters, Decision};

use super::{
    AnalysisFigure, Head, MaybeFigure, Method, NO_SECONDARY, NO_SECONDARY_FINDING, number,
};
use crate::figure::{
    Axis, Color, Dot, Figure, Frame, Mark, Moving, Panel, Scale, Series, Symbol, short,
};
use crate::run_data::RunData;
use crate::{Cell, Column, Table};

const SITES: [(&str, &str); 3] =
    [("resid_post", "Hidden state"), ("attn_out", "Attention output"), ("mlp_out", "MLP output")];

/// The figure of [`Clusters`].
pub(super) struct ClustersFigure;

impl AnalysisFigure for ClustersFigure {
    type Output = Clusters;
    const HEAD: Head = Head {
        name: "fig6-clusters",
        title: "When future sinks can be separated from other tokens",
        paper: "Figure 6",
    };
    const METHOD: Method = Method {
        term: "Clusters",
        text: "Future sinks against as many other tokens, by layer and site. Separability is the \
               balanced accuracy of a ridge classifier in five-fold cross-validation. t-SNE starts \
               from the principal components: the same run gives the same picture.",
    };

    fn figure(run: &RunData, clusters: &Clusters) -> MaybeFigure {
        let Some(first_start) = clusters.points.iter().filter_map(|point| point.l_start).min()
        else {
            return Err(Self::HEAD.absent(NO_SECONDARY, None));
        };
        let layers = clusters.places.iter().map(|place| place.layer + 1).max().unwrap_or(0);
        let place = |site: &str, layer: usize| {
            clusters.places.iter().find(|place| place.layer == layer && place.site == site)
        };
        if layers == 0 {
            let why = "There are too few secondary sinks, or too few other tokens, to compare.";
            return Err(Self::HEAD.absent(why, None));
        }
        // The layer of the earliest decision.
        let states = || clusters.decisions.iter().filter(|decision| decision.site == SITES[0].0);
        let decided = states().filter_map(|decision| decision.layer).min();
        let at = decided.unwrap_or(first_start).min(layers - 1);
        let mut shown = vec![0, at / 2, at, first_start.min(layers - 1)];
        shown.sort_unstable();
        shown.dedup();

        let picture = |layer: usize, (site, name): (&str, &str)| {
            let mut panel = Panel::new(
                format!("{name}, layer {layer}"),
                Axis::new("t-SNE", Scale::Bare),
                Axis::new("", Scale::Bare),
            );
            if let Some(place) = place(site, layer) {
                panel.note = note(place);
                let points = spread(place);
                for series in [0, 1] {
                    let of = clusters.points.iter().zip(&points);
                    let of = of.filter(|(point, _)| usize::from(point.l_start.is_none()) == series);
                    let dots = of.map(|(point, (x, y))| {
                        let kind = match point.l_start {
                            Some(l_start) => format!("sink from layer {l_start} on"),
                            None if point.id_of_a_sink => "no sink, same token as one".to_owned(),
                            None => "no sink".to_owned(),
                        };
                        let tip = format!(
                            "{kind}\ntrace {}, position {}\ntoken id {}",
                            point.trace, point.position, point.token_id
                        );
                        Dot::new(*x, *y, tip)
                    });
                    panel.marks.push(Mark::Dots { series, dots: dots.collect() });
                }
            }
            panel
        };
        let mut panels: Vec<Panel> =
            shown.iter().flat_map(|layer| SITES.map(|site| picture(*layer, site))).collect();
        let curves = [
            curve(run, clusters, "Accuracy of a linear classifier", "accuracy", &|p| {
                p.separability
            }),
            curve(run, clusters, "Silhouette", "silhouette", &|p| p.silhouette),
        ];
        panels.extend(curves.clone());
        let frames = (0..layers).map(|layer| {
            let places = SITES.map(|(site, _)| place(site, layer));
            let dots = places.map(|place| {
                let points = place.map(spread).unwrap_or_default();
                let of = |sink: bool| {
                    let both = clusters.points.iter().zip(&points);
                    both.filter(move |(point, _)| point.l_start.is_some() == sink)
                        .map(|(_, at)| *at)
                };
                of(true).chain(of(false)).collect()
            });
            Frame {
                label: format!("layer {layer}"),
                notes: places.map(|place| place.map_or(String::new(), note)).to_vec(),
                dots: dots.to_vec(),
                lines: Vec::new(),
            }
        });
        let moving = Moving {
            what: "layer",
            panels: SITES.map(|site| picture(at, site)).into_iter().chain(curves).collect(),
            first: at,
            frames: frames.collect(),
        };
        let findings = states()
        .map(|decision| {
            let sinks = format!(
                "{} that start at layer {}",
                crate::plural(decision.sinks, "secondary sink"),
                decision.l_start
            );
            match decision.layer {
                Some(layer) => format!(
                    "The decision about {sinks} is made at layer {layer}: from its output on, up \
                     to l_start, a linear classifier separates them from other tokens with an \
                     accuracy of at least {:.0} %.",
                    100.0 * Decision::SEPARABLE
                ),
                None => format!(
                    "{sinks} cannot be separated from other tokens with an accuracy of {:.0} %, \
                     not even at the layer where they start.",
                    100.0 * Decision::SEPARABLE
                ),
            }
        })
        .collect();
        Ok(Figure {
            head: Self::HEAD,
            reading: "Each point is a token: one that will become a secondary sink, or another, \
                      with the same id as a sink if there are enough. Points that are close have \
                      similar vectors (t-SNE; the axes have no meaning). The curves measure the \
                      separation: accuracy in cross-validation, where 0.5 is chance, and \
                      silhouette.",
            findings,
            legend: vec![
                Series::new("future secondary sink", Color::Vermillion, Symbol::Triangle),
                Series::new("other token", Color::Blue, Symbol::Dot),
                Series::new("hidden state", Color::Ink, Symbol::Dot),
                Series::new("attention output", Color::Green, Symbol::Square),
                Series::new("MLP output", Color::Orange, Symbol::Diamond),
            ],
            panels,
            columns: 3,
            moving: Some(moving),
            quotes: Vec::new(),
            data: table(clusters),
        })
    }

    fn finding(clusters: &Clusters) -> String {
        if clusters.points.iter().all(|point| point.l_start.is_none()) {
            return NO_SECONDARY_FINDING.to_owned();
        }
        let states = clusters.decisions.iter().filter(|decision| decision.site == "resid_post");
        let decided: Vec<String> = states
            .map(|decision| match decision.layer {
                Some(layer) => format!("of layer {} decided at layer {layer}", decision.l_start),
                None => format!("of layer {} never separated from other tokens", decision.l_start),
            })
            .collect();
        match decided.is_empty() {
            true => "too few sinks or other tokens to compare".to_owned(),
            false => format!("sinks {}", decided.join(", ")),
        }
    }
}

fn note(place: &ClusterPlace) -> String {
    format!("accuracy {}, silhouette {}", short(place.separability), short(place.silhouette))
}

/// The coordinates, scaled to the range from 0 to 1.
fn spread(place: &ClusterPlace) -> Vec<(f64, f64)> {
    let range = |axis: usize| {
        let values = || place.tsne.iter().map(|point| f64::from(point[axis]));
        let min = values().fold(f64::INFINITY, f64::min);
        let max = values().fold(f64::NEG_INFINITY, f64::max);
        (min, (max - min).max(f64::MIN_POSITIVE))
    };
    let (x, y) = (range(0), range(1));
    let to = |value: f32, (min, width): (f64, f64)| (f64::from(value) - min) / width;
    place.tsne.iter().map(|point| (to(point[0], x), to(point[1], y))).collect()
}

fn curve(
    run: &RunData,
    clusters: &Clusters,
    title: &str,
    name: &str,
    read: &dyn Fn(&ClusterPlace) -> f64,
) -> Panel {
    let values = clusters.places.iter().map(read).chain([0.5, 1.0]);
    let mut panel =
        Panel::new(title, Axis::layers(run.layers()), Axis::new(name, Scale::over(values)));
    for (series, (site, label)) in (2..).zip(SITES) {
        let of = clusters.places.iter().filter(|place| place.site == site);
        let dot = |place: &ClusterPlace| {
            let tip = format!("{label}\nlayer {}\n{name} {}", place.layer, short(read(place)));
            Dot::new(place.layer as f64, read(place), tip)
        };
        panel.marks.push(Mark::Line { series, dots: of.map(dot).collect(), dashed: false });
    }
    let mut starts: Vec<usize> = clusters.points.iter().filter_map(|point| point.l_start).collect();
    starts.sort_unstable();
    starts.dedup();
    if let Some(first) = starts.first() {
        panel.marks.push(Mark::Rule { x: *first as f64, label: "first sinks".to_owned() });
    }
    panel
}

fn table(clusters: &Clusters) -> Table {
    let mut data = Table::new(vec![
        Column::text("site", "Site"),
        Column::number("layer", "Layer"),
        Column::number("separability", "Cross-validated accuracy"),
        Column::number("silhouette", "Silhouette"),
    ]);
    for place in &clusters.places {
        data.push(vec![
            Cell::text(&place.site),
            Cell::count(place.layer),
            number(place.separability),
            number(place.silhouette),
        ]);
    }
    data
}
