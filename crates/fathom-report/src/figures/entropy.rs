//! Matrix-based entropy of the residual stream.

use std::collections::{BTreeMap, BTreeSet};

use fathom_sinks::explain::{Entropy, EntropySeries, Scope, Window};

use super::{AnalysisFigure, Head, MaybeFigure, Method, number};
use crate::figure::{Axis, Color, Dot, Figure, Mark, Panel, Scale, Series, Symbol, short};
use crate::run_data::RunData;
use crate::{Cell, Column, Table, plural};

/// Window lengths that have a curve; whole traces have one as well.
const WINDOWS: [usize; 5] = [16, 64, 256, 1024, 4096];

/// The figure of [`Entropy`].
pub(super) struct EntropyFigure;

impl AnalysisFigure for EntropyFigure {
    type Output = Entropy;
    const HEAD: Head = Head {
        name: "entropy",
        title: "Compression: entropy of the residual stream",
        paper: "the compression valley",
    };
    const METHOD: Method = Method {
        term: "Entropy",
        text: "Matrix-based, Rényi order 1, of the hidden states of a window, in nats; longer \
               windows are sampled evenly.",
    };
    const SECONDARY_ONLY: bool = false;

    fn figure(run: &RunData, entropy: &Entropy) -> MaybeFigure {
        let scopes = [
            (Scope::WithPrompt, "with the prompt"),
            (Scope::WithoutPrompt, "without prompt and reference"),
        ];
        let mut curves: BTreeMap<(usize, usize), Curve> = BTreeMap::new(); // (scope, window)
        for trace in &entropy.traces {
            for (scope, (kind, _)) in scopes.iter().enumerate() {
                for series in trace.series.iter().filter(|series| series.scope == *kind) {
                    for (window, found) in chosen(series) {
                        curves.entry((scope, window)).or_default().add(found);
                    }
                }
            }
        }
        if curves.is_empty() {
            return Err(Self::HEAD.absent("The traces are too short to have an entropy.", None));
        }
        // Only windows that some trace is long enough for.
        let present: BTreeSet<usize> = curves.keys().map(|(_, window)| *window).collect();
        let series = |window: usize| present.range(..window).count();
        let values = curves.values().flat_map(|curve| curve.mean().collect::<Vec<_>>());
        let scale = Scale::from_zero(values);
        let mut panels = Vec::new();
        for (scope, (_, name)) in scopes.iter().enumerate() {
            let mut panel = Panel::new(
                format!("Windows {name}"),
                Axis::layers(run.layers()),
                Axis::new("entropy (nats)", scale.clone()),
            );
            for ((_, window), curve) in curves.range((scope, 0)..(scope + 1, 0)) {
                let label = window_name(*window);
                let dot = |(layer, value): (usize, f64)| {
                    let tip = format!(
                        "{label}\nlayer {layer}\nentropy {}\nmean of {}",
                        short(value),
                        plural(curve.traces, "trace")
                    );
                    Dot::new(layer as f64, value, tip)
                };
                let dots = curve.mean().enumerate().map(dot).collect();
                panel.marks.push(Mark::Line { series: series(*window), dots, dashed: scope == 1 });
            }
            panels.push(panel);
        }
        let mut data = Table::new(vec![
            Column::text("scope", "Scope"),
            Column::text("window", "Window"),
            Column::number("traces", "Traces"),
            Column::number("layer", "Layer"),
            Column::number("entropy", "Mean entropy (nats)"),
        ]);
        for ((scope, window), curve) in &curves {
            for (layer, value) in curve.mean().enumerate() {
                data.push(vec![
                    Cell::text(scopes[*scope].1),
                    Cell::text(window_name(*window)),
                    Cell::count(curve.traces),
                    Cell::count(layer),
                    number(value),
                ]);
            }
        }
        let mut findings = Vec::new();
        for (scope, (_, name)) in scopes.iter().enumerate() {
            let Some(curve) = curves.get(&(scope, WINDOWS.len())) else { continue };
            let lowest = curve.mean().enumerate().min_by(|a, b| a.1.total_cmp(&b.1));
            let highest = curve.mean().enumerate().max_by(|a, b| a.1.total_cmp(&b.1));
            if let (Some((low, min)), Some((high, max))) = (lowest, highest) {
                findings.push(format!(
                "Over whole traces {name} the entropy is lowest after layer {low} ({} nats) and \
                 highest after layer {high} ({}).",
                short(min),
                short(max)
            ));
            }
        }
        let symbols = [
            Symbol::Square,
            Symbol::Triangle,
            Symbol::Diamond,
            Symbol::Down,
            Symbol::Plus,
            Symbol::Dot,
        ];
        let colors = [
            Color::Sky,
            Color::Blue,
            Color::Green,
            Color::Orange,
            Color::Purple,
            Color::Vermillion,
        ];
        Ok(Figure {
            head: Self::HEAD,
            reading: "The entropy measures over how many directions the tokens of a window spread, \
                      from 0 (a single direction) to the logarithm of their number. Where the norm \
                      of a primary sink dominates, it falls towards 0: the compression valley. \
                      Without prompt and reference it shows the other tokens alone.",
            findings,
            legend: present
                .iter()
                .copied()
                .map(|window| {
                    Series::new(window_name(window), colors[window % 6], symbols[window % 6])
                })
                .collect(),
            panels,
            columns: 2,
            moving: None,
            quotes: Vec::new(),
            data,
        })
    }

    fn finding(entropy: &Entropy) -> String {
        let whole = entropy.traces.iter().filter_map(|trace| {
            let mut series = trace.series.iter();
            series.find(|series| series.scope == Scope::WithPrompt)?.windows.last()
        });
        let mut sums: Vec<f64> = Vec::new();
        let mut traces = 0;
        for window in whole {
            sums.resize(window.entropy.len(), 0.0);
            sums.iter_mut().zip(&window.entropy).for_each(|(sum, value)| *sum += f64::from(*value));
            traces += 1;
        }
        let means = || sums.iter().map(|sum| sum / f64::from(traces)).enumerate();
        let (low, high) = (
            means().min_by(|a, b| a.1.total_cmp(&b.1)),
            means().max_by(|a, b| a.1.total_cmp(&b.1)),
        );
        match (low, high) {
            (Some((l, low)), Some((h, high))) => {
                format!(
                    "whole traces: lowest {low:.2} nats at layer {l}, highest {high:.2} at layer \
                     {h}; means"
                )
            }
            _ => "no trace has two tokens".to_owned(),
        }
    }
}

/// Sums over traces, by layer.
#[derive(Default)]
struct Curve {
    sums: Vec<f64>,
    traces: usize,
}

impl Curve {
    fn add(&mut self, window: &Window) {
        self.sums.resize(self.sums.len().max(window.entropy.len()), 0.0);
        self.sums.iter_mut().zip(&window.entropy).for_each(|(sum, x)| *sum += f64::from(*x));
        self.traces += 1;
    }

    fn mean(&self) -> impl Iterator<Item = f64> + '_ {
        self.sums.iter().map(|sum| sum / self.traces.max(1) as f64)
    }
}

/// The windows of a series that have a curve: those of length [`WINDOWS`], then the longest.
fn chosen(series: &EntropySeries) -> impl Iterator<Item = (usize, &Window)> {
    let of_length = |(i, length): (usize, &usize)| {
        Some((i, series.windows.iter().find(|window| window.tokens == *length)?))
    };
    let longest = series.windows.iter().max_by_key(|window| window.tokens);
    WINDOWS.iter().enumerate().filter_map(of_length).chain(longest.map(|w| (WINDOWS.len(), w)))
}

fn window_name(window: usize) -> String {
    match WINDOWS.get(window) {
        Some(tokens) => format!("first {tokens} tokens"),
        None => "whole trace".to_owned(),
    }
}
