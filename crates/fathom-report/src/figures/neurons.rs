//! Neurons that write the sink direction, and heads that read it.

use fathom_sinks::explain::{HeadReading, LayerNeurons, Neuron, Neurons};

use super::changes::{appeared, changes, gone, perplexity};
use super::{AnalysisFigure, Head, MaybeFigure, Method, NO_SECONDARY, joined, number, share};
use crate::figure::{
    Axis, Color, Dot, Figure, HeatCell, Mark, Panel, Scale, Series, Symbol, short,
};
use crate::run_data::RunData;
use crate::{Cell, Column, Table, plural};

/// Maximum number of neurons shown per layer.
const SHOWN: usize = 16;

/// The figure of [`Neurons`].
pub(super) struct NeuronsFigure;

impl AnalysisFigure for NeuronsFigure {
    type Output = Neurons;
    const HEAD: Head = Head {
        name: "neurons",
        title: "Which neurons make sinks, and which heads read them",
        paper: "beyond the paper",
    };
    const METHOD: Method = Method {
        term: "Ablation",
        text: "The run's traces are scanned again with the neurons that write the sink direction \
               set to zero.",
    };

    fn figure(run: &RunData, neurons: &Neurons) -> MaybeFigure {
        if neurons.layers.is_empty() {
            return Err(Self::HEAD.absent(NO_SECONDARY, None));
        }
        let mut panels = Vec::new();
        let mut findings = Vec::new();
        for layer in &neurons.layers {
            panels.push(ranked(layer));
            let title = format!("Layer {} without them: levels", layer.layer);
            panels.push(changes(&run.levels, &title, &layer.ablation.levels, 2));
            let ablation = &layer.ablation;
            let gone: usize = ablation.levels.iter().map(|level| level.gone).sum();
            findings.push(format!(
                "Layer {}: {} ({}) contribute {} of what the MLP writes along the sink direction. \
             Without them, {} of {} are gone{}, and perplexity goes from {} to {}.",
                layer.layer,
                plural(ablation.neurons.len(), "neuron"),
                listed(&ablation.neurons),
                share(ablation.share),
                gone,
                plural(ablation.levels.iter().map(|level| level.before).sum(), "secondary sink"),
                appeared(ablation.appeared),
                short(ablation.perplexity_before),
                short(ablation.perplexity_after),
            ));
        }
        if let Some(head) = neurons.heads.first() {
            panels.push(heads(run, &neurons.heads));
            findings.push(format!(
                "Head {} of layer {} attends most to secondary sinks: a sink receives {} of its \
             attention, another token {}.",
                head.head,
                head.layer,
                share(head.sinks),
                share(head.others)
            ));
        }
        Ok(Figure {
            head: Self::HEAD,
            reading: "Bars: each MLP neuron's share of what the layer writes along the sink \
                      direction (activation × its column of the down projection · direction), \
                      largest first, the ablated ones in another colour. Next to them: the sinks \
                      of each level without the ablated neurons. Last: the heads that attend most \
                      to secondary sinks.",
            findings,
            legend: vec![
                Series::new("ablated neuron", Color::Vermillion, Symbol::Square),
                Series::new("other neuron", Color::Sky, Symbol::Square),
                Series::new("sinks kept", Color::Green, Symbol::Square),
                Series::new("at other layers", Color::Orange, Symbol::Square),
                Series::new("gone", Color::Grey, Symbol::Square),
            ],
            panels,
            columns: 2,
            moving: None,
            quotes: Vec::new(),
            data: table(neurons),
        })
    }

    fn finding(neurons: &Neurons) -> String {
        let layer = |layer: &fathom_sinks::explain::LayerNeurons| {
            let ablation = &layer.ablation;
            format!(
                "layer {}: {:.0}% of the sink direction is written by {}; without them {}, \
                 perplexity {} → {}",
                layer.layer,
                100.0 * ablation.share,
                plural(ablation.neurons.len(), "neuron"),
                gone(layer.layer, &ablation.levels),
                perplexity(ablation.perplexity_before),
                perplexity(ablation.perplexity_after),
            )
        };
        joined(neurons.layers.iter().map(layer))
    }
}

/// The first few neurons.
fn listed(neurons: &[usize]) -> String {
    const MOST: usize = 6;
    let mut names: Vec<String> = neurons.iter().take(MOST).map(usize::to_string).collect();
    if neurons.len() > MOST {
        names.push("…".to_owned());
    }
    names.join(", ")
}

fn ranked(layer: &LayerNeurons) -> Panel {
    let shown = &layer.neurons[..layer.neurons.len().min(SHOWN)];
    let names = shown.iter().map(|neuron| neuron.index.to_string()).collect();
    let mut panel = Panel::new(
        format!("Layer {}: neurons by share ({} sinks)", layer.layer, layer.sinks),
        Axis::new("neuron", Scale::Names(names)),
        Axis::new("share of the projection", Scale::from_zero(shown.iter().map(|n| n.share))),
    );
    for ablated in [true, false] {
        let bar = |(i, neuron): (usize, &Neuron)| {
            let x = i as f64;
            let tip = format!(
                "neuron {}\nshare {}\nactivation {} × column {}",
                neuron.index,
                share(neuron.share),
                short(neuron.activation),
                short(neuron.weight)
            );
            (x - 0.4, x + 0.4, 0.0, Dot::new(x, neuron.share, tip))
        };
        let of = shown.iter().enumerate();
        let of = of.filter(|(_, n)| layer.ablation.neurons.contains(&n.index) == ablated);
        panel.marks.push(Mark::Bars { series: usize::from(!ablated), bars: of.map(bar).collect() });
    }
    panel
}

fn heads(run: &RunData, heads: &[HeadReading]) -> Panel {
    let count = run.stored.manifest().model.heads;
    let most = heads.iter().map(|head| head.sinks).fold(f64::MIN_POSITIVE, f64::max);
    let mut panel = Panel::new(
        "Heads that read secondary sinks most",
        Axis::layers(run.layers()),
        Axis::new("head", Scale::whole(0, count.saturating_sub(1).max(1))),
    );
    let cell = |head: &HeadReading| HeatCell {
        dot: Dot::new(
            head.layer as f64,
            head.head as f64,
            format!(
                "layer {}, head {}\na secondary sink receives {}\nanother token {}\nthe reference \
                 {}",
                head.layer,
                head.head,
                share(head.sinks),
                share(head.others),
                share(head.reference)
            ),
        ),
        shade: (head.sinks / most).max(0.0).sqrt(),
        text: String::new(),
        link: None,
    };
    panel.marks.push(Mark::Cells(heads.iter().map(cell).collect()));
    panel
}

fn table(neurons: &Neurons) -> Table {
    let mut data = Table::new(vec![
        Column::number("layer", "Layer"),
        Column::number("neuron", "Neuron"),
        Column::number("activation", "Activation"),
        Column::number("weight", "Column · direction"),
        Column::number("contribution", "Contribution"),
        Column::number("share", "Share"),
        Column::text("ablated", "Ablated"),
    ]);
    for layer in &neurons.layers {
        for neuron in &layer.neurons {
            let ablated = layer.ablation.neurons.contains(&neuron.index);
            data.push(vec![
                Cell::count(layer.layer),
                Cell::count(neuron.index),
                number(neuron.activation),
                number(neuron.weight),
                number(neuron.contribution),
                number(neuron.share),
                Cell::new(if ablated { "yes" } else { "no" }, ablated),
            ]);
        }
    }
    data
}
