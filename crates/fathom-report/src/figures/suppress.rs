//! What changes when the outputs that create sinks are clamped at a layer.

use fathom_sinks::explain::{Continuation, LaterLayer, Suppress, SuppressedLayer, Written};

use super::changes::{appeared, changes, gone, perplexity};
use super::{AnalysisFigure, Head, MaybeFigure, Method, NO_SECONDARY, joined, number};
use crate::figure::{Axis, Color, Dot, Figure, Mark, Panel, Quote, Scale, Series, Symbol, short};
use crate::run_data::RunData;
use crate::{Cell, Column, Table, plural};

/// The figure of [`Suppress`].
pub(super) struct SuppressFigure;

impl AnalysisFigure for SuppressFigure {
    type Output = Suppress;
    const HEAD: Head = Head {
        name: "suppression",
        title: "What happens without the sinks",
        paper: "beyond the paper",
    };
    const METHOD: Method = Method {
        term: "Suppression",
        text: "The run's traces are scanned again with the sink direction clamped at a layer.",
    };

    fn figure(run: &RunData, suppress: &Suppress) -> MaybeFigure {
        if suppress.layers.is_empty() {
            return Err(Self::HEAD.absent(NO_SECONDARY, None));
        }
        let mut panels = Vec::new();
        let mut findings = Vec::new();
        for layer in &suppress.layers {
            let l = layer.layer;
            let cosines = later(
                run,
                layer,
                format!("Clamped at layer {l}: cosine"),
                "cosine with the reference",
                Scale::between(-0.25, 1.08),
                &|x| (x.cosine_before, x.cosine_after),
            );
            let norms = layer.later.iter().flat_map(|x| [x.norm_before, x.norm_after]);
            let norms = Scale::log_over(norms);
            let norms = later(
                run,
                layer,
                format!("Clamped at layer {l}: norm"),
                "‖h‖ (log)",
                norms,
                &|x| (x.norm_before, x.norm_after),
            );
            panels.extend([
                cosines,
                norms,
                changes(&run.levels, &format!("Clamped at layer {l}: levels"), &layer.levels, 2),
            ]);
            let gone: usize = layer.levels.iter().map(|level| level.gone + level.changed).sum();
            let before: usize = layer.levels.iter().map(|level| level.before).sum();
            findings.push(format!(
                "Layer {l}: {} clamped to the norm {}; {gone} of {} are gone or changed{}; {}mean \
             negative log-likelihood {} before, {} after.",
                plural(layer.clamped, "token"),
                short(layer.norm.into()),
                plural(before, "secondary sink"),
                appeared(layer.appeared),
                layer.kl.map_or(String::new(), |kl| format!(
                    "KL of the next token {} nats on average, {} in the median; ",
                    short(kl.mean),
                    short(kl.median)
                )),
                short(layer.nll_before),
                short(layer.nll_after)
            ));
        }
        Ok(Figure {
            head: Self::HEAD,
            reading: "The traces are scanned again with every MLP output along the sink direction \
                      clamped, at one layer, to an ordinary token's norm. Solid: unchanged; \
                      dashed: clamped. The bars show which sinks of each level are kept, are sinks \
                      at other layers, or are gone.",
            findings,
            legend: vec![
                Series::new("unchanged", Color::Vermillion, Symbol::Dot),
                Series::new("clamped", Color::Blue, Symbol::Square),
                Series::new("sinks kept", Color::Green, Symbol::Square),
                Series::new("at other layers", Color::Orange, Symbol::Square),
                Series::new("gone", Color::Grey, Symbol::Square),
            ],
            panels,
            columns: 3,
            moving: None,
            quotes: quotes(suppress),
            data: table(suppress),
        })
    }

    fn finding(suppress: &Suppress) -> String {
        let layer = |layer: &fathom_sinks::explain::SuppressedLayer| {
            let kl = layer.kl.map_or(0.0, |kl| kl.mean);
            let differ = layer.continuations.iter().filter(|one| one.differs_at.is_some()).count();
            format!(
                "layer {} clamped: {}; KL {kl:.4} nats, perplexity {} → {}, {differ} of {} written \
                 differently",
                layer.layer,
                gone(layer.layer, &layer.levels),
                perplexity(layer.nll_before.exp()),
                perplexity(layer.nll_after.exp()),
                plural(layer.continuations.len(), "continuation"),
            )
        };
        joined(suppress.layers.iter().map(layer))
    }
}

/// Texts generated with and without the clamp: for each layer the first two traces, preferably
/// those whose texts differ.
fn quotes(suppress: &Suppress) -> Vec<Quote> {
    const SHOWN: usize = 2;
    let of = |layer: &SuppressedLayer| {
        let mut written: Vec<&Continuation> = layer.continuations.iter().collect();
        written.sort_by_key(|one| one.differs_at.is_none());
        let quote = |one: &&Continuation| {
            let text = |written: &Written| {
                let ids = || format!("token ids {:?}", written.ids);
                written.text.clone().unwrap_or_else(ids)
            };
            let differs = match one.differs_at {
                Some(n) => format!("they differ from token {} on", n + 1),
                None => "the same".to_owned(),
            };
            Quote {
                title: format!(
                    "Layer {} clamped, trace {} from position {} on: {differs}",
                    layer.layer, one.sample_index, one.from
                ),
                before: ("Unchanged", text(&one.before)),
                after: ("Clamped", text(&one.after)),
            }
        };
        written.iter().take(SHOWN).map(quote).collect::<Vec<_>>()
    };
    suppress.layers.iter().flat_map(of).collect()
}

fn later(
    run: &RunData,
    layer: &SuppressedLayer,
    title: String,
    name: &str,
    scale: Scale,
    read: &dyn Fn(&LaterLayer) -> (f64, f64),
) -> Panel {
    let mut panel = Panel::new(
        title,
        Axis::new(
            "layer",
            Scale::whole(layer.layer, run.layers().saturating_sub(1).max(layer.layer + 1)),
        ),
        Axis::new(name, scale),
    );
    let kinds = [(0, "unchanged"), (1, "clamped")];
    for (series, kind) in kinds {
        let dot = |x: &LaterLayer| {
            let value = if series == 0 { read(x).0 } else { read(x).1 };
            Dot::new(x.layer as f64, value, format!("{kind}\nlayer {}\n{}", x.layer, short(value)))
        };
        let dots = layer.later.iter().map(dot).collect();
        panel.marks.push(Mark::Line { series, dots, dashed: series == 1 });
    }
    panel
}

fn table(suppress: &Suppress) -> Table {
    let mut data = Table::new(vec![
        Column::number("clamped_layer", "Clamped at layer"),
        Column::number("layer", "Layer"),
        Column::number("cosine_before", "Cosine before"),
        Column::number("cosine_after", "Cosine after"),
        Column::number("norm_before", "Norm before"),
        Column::number("norm_after", "Norm after"),
    ]);
    for layer in &suppress.layers {
        for x in &layer.later {
            let values = [x.cosine_before, x.cosine_after, x.norm_before, x.norm_after];
            let head = [layer.layer, x.layer].map(Cell::count);
            data.push(head.into_iter().chain(values.map(number)).collect());
        }
    }
    data
}
