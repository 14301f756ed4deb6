//! Cosines with the reference along the MLP.

use std::collections::BTreeMap;

use fathom_sinks::explain::{Stage, StageSummary, Stages};

use super::{AnalysisFigure, Head, MaybeFigure, Method, NO_SECONDARY, SHOWN_LAYERS, number};
use crate::figure::{Axis, Color, Dot, Figure, Mark, Panel, Scale, Series, Symbol, short};
use crate::run_data::RunData;
use crate::{Cell, Column, Table, plural};

/// Maximum number of sinks that have a line of their own in a panel.
const LINES: usize = 60;

/// The figure of [`Stages`].
pub(super) struct StagesFigure;

impl AnalysisFigure for StagesFigure {
    type Output = Stages;
    const HEAD: Head = Head {
        name: "fig3-stages",
        title: "Along the MLP, from an ordinary token to a sink",
        paper: "Figure 3, right",
    };
    const METHOD: Method = Method {
        term: "MLP stages",
        text: "The cosine of a sink with the reference at each stage of an MLP: input, gate, up, \
               silu(gate), silu(gate) · up, output.",
    };

    fn figure(run: &RunData, stages: &Stages) -> MaybeFigure {
        let Some(starts) = most_frequent(stages) else {
            return Err(Self::HEAD.absent(NO_SECONDARY, None));
        };
        let names = ["in", "gate", "up", "act", "g·u", "out", "state"].map(str::to_owned).to_vec();
        let threshold = f64::from(run.stored.manifest().options.threshold);
        let mut panels = Vec::new();
        let mut findings = Vec::new();
        for l_start in starts {
            let of_start = || stages.summaries.iter().filter(move |s| s.l_start == l_start);
            for layer in
                [l_start.checked_sub(1), Some(l_start), Some(l_start + 1)].into_iter().flatten()
            {
                let here: Vec<&StageSummary> = of_start().filter(|s| s.layer == layer).collect();
                if here.is_empty() {
                    continue;
                }
                let place = match layer {
                    l if l < l_start => "before: ",
                    l if l > l_start => "after: ",
                    _ => "",
                };
                let mut panel = Panel::new(
                    format!("{place}layer {layer} (l_start {l_start}, n = {})", here[0].cosine.n),
                    Axis::new("stage of the MLP", Scale::Names(names.clone())),
                    Axis::new("cosine with the reference", Scale::between(-1.08, 1.08)),
                );
                let of_layer = stages.sinks.iter().filter(|sink| sink.sink.l_start == l_start);
                for sink in of_layer.take(LINES) {
                    for stage in sink.layers.iter().filter(|stage| stage.layer == layer) {
                        let points = stage.cosines.iter().zip(0..);
                        let points = points.map(|(c, i)| (f64::from(i), f64::from(*c))).collect();
                        panel.marks.push(Mark::ThinLine { series: 0, points });
                    }
                }
                let x =
                    |s: &StageSummary| Stage::ALL.iter().position(|at| *at == s.stage).unwrap_or(0);
                let band = here.iter().map(|s| (x(s) as f64, s.cosine.q25, s.cosine.q75)).collect();
                panel.marks.push(Mark::Band { series: 1, points: band });
                let dot = |s: &&StageSummary| {
                    let c = s.cosine;
                    let tip = format!(
                        "{}, layer {layer}\nmedian {}\nquartiles {} to {}\nrange {} to {}\n{} \
                         sinks",
                        stage_name(s.stage),
                        short(c.median),
                        short(c.q25),
                        short(c.q75),
                        short(c.min),
                        short(c.max),
                        c.n
                    );
                    Dot::new(x(s) as f64, c.median, tip)
                };
                panel.marks.push(Mark::Line {
                    series: 1,
                    dots: here.iter().map(dot).collect(),
                    dashed: false,
                });
                panel
                    .marks
                    .push(Mark::Level { y: threshold, label: format!("τ = {threshold:.2}") });
                if layer == l_start {
                    let median =
                        |stage| here.iter().find(|s| s.stage == stage).map(|s| s.cosine.median);
                    if let (Some(before), Some(after)) =
                        (median(Stage::MlpIn), median(Stage::MlpOutToState))
                    {
                        findings.push(format!(
                        "Layer {layer} turns {} into sinks. The median cosine with the reference \
                         is {before:.3} at the MLP's input; that of the output with the \
                         reference's state is {after:.3}.",
                        plural(here[0].cosine.n, "token"),
                    ));
                    }
                }
                panels.push(panel);
            }
        }
        Ok(Figure {
            head: Self::HEAD,
            reading: "Each sink is compared with the reference at every stage of an MLP, from left \
                      to right: input, gate, up, silu(gate), silu(gate) · up, output. The last \
                      point compares the output with the reference's hidden state: that is the \
                      sink direction even in layers whose MLP does not write it for the reference. \
                      Middle column: the layer at which the sinks start.",
            findings,
            legend: vec![
                Series::new("one sink each", Color::Blue, Symbol::Dot),
                Series::new("median of all, and quartiles", Color::Vermillion, Symbol::Dot),
            ],
            panels,
            columns: 3,
            moving: None,
            quotes: Vec::new(),
            data: table(stages),
        })
    }

    fn finding(stages: &Stages) -> String {
        let most = stages.summaries.iter().max_by_key(|summary| (summary.cosine.n, summary.layer));
        let Some(l_start) = most.map(|summary| summary.l_start) else {
            return "the run has no sinks besides the reference".to_owned();
        };
        let median = |stage: Stage| {
            let mut here = stages.summaries.iter();
            let found = here.find(|s| (s.l_start, s.layer, s.stage) == (l_start, l_start, stage));
            found.map_or(f64::NAN, |summary| summary.cosine.median)
        };
        let sinks = most.map_or(0, |summary| summary.cosine.n);
        format!(
            "{} made at layer {l_start}: cosine with the reference {:.2} at mlp_in, {:.2} at \
             mlp_out ({:.2} with its state); medians",
            plural(sinks, "sink"),
            median(Stage::MlpIn),
            median(Stage::MlpOut),
            median(Stage::MlpOutToState),
        )
    }
}

/// The layers at which the most sinks start, ascending.
fn most_frequent(stages: &Stages) -> Option<Vec<usize>> {
    let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
    for summary in &stages.summaries {
        counts.insert(summary.l_start, summary.cosine.n);
    }
    let mut starts: Vec<(usize, usize)> = counts.into_iter().collect();
    starts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    starts.truncate(SHOWN_LAYERS);
    let mut starts: Vec<usize> = starts.into_iter().map(|(layer, _)| layer).collect();
    starts.sort_unstable();
    (!starts.is_empty()).then_some(starts)
}

fn table(stages: &Stages) -> Table {
    let mut data = Table::new(vec![
        Column::number("l_start", "First layer"),
        Column::number("layer", "Layer"),
        Column::text("stage", "Stage"),
        Column::number("sinks", "Sinks"),
        Column::number("mean", "Mean cosine"),
        Column::number("min", "Min"),
        Column::number("q25", "Lower quartile"),
        Column::number("median", "Median"),
        Column::number("q75", "Upper quartile"),
        Column::number("max", "Max"),
    ]);
    for s in &stages.summaries {
        let c = s.cosine;
        let counts = [s.l_start, s.layer].map(Cell::count);
        let values = [c.mean, c.min, c.q25, c.median, c.q75, c.max].map(number);
        let middle = [Cell::text(stage_name(s.stage)), Cell::count(c.n)];
        data.push(counts.into_iter().chain(middle).chain(values).collect());
    }
    data
}

fn stage_name(stage: Stage) -> &'static str {
    match stage {
        Stage::MlpIn => "mlp_in",
        Stage::MlpGate => "mlp_gate",
        Stage::MlpUp => "mlp_up",
        Stage::MlpAct => "mlp_act",
        Stage::MlpElementwise => "mlp_elementwise",
        Stage::MlpOut => "mlp_out",
        Stage::MlpOutToState => "mlp_out_to_state",
    }
}
