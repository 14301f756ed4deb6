//! Norms of hidden states, keys and values by layer.

use std::collections::{BTreeMap, BTreeSet};

use fathom_model::Result;
use fathom_sinks::{Class, Clip, NormRow, Sink};

use super::{Head, MaybeFigure, number, sink_label};
use crate::figure::{Axis, Color, Dot, Figure, Mark, Panel, Scale, Series, Symbol, short};
use crate::run_data::RunData;
use crate::run_phases::layers_of;
use crate::{Cell, Column, Table};

const HEAD: Head = Head { name: "fig1-norms", title: "Norms by layer", paper: "Figure 1" };
/// Maximum number of primary and of secondary sinks that have a curve.
const PRIMARY: usize = 3;
const SECONDARY: usize = 6;

pub(super) fn norms(run: &RunData) -> Result<MaybeFigure> {
    let trace = example(run);
    let rows = run.stored.norms(run.traces.len(), &|t| t == trace)?;
    if rows.is_empty() {
        return Ok(Err(HEAD.absent("The run holds no norms.", None)));
    }
    let detection = &run.traces[trace];
    let phases = run.phases.of_trace(trace);
    let mut chosen: Vec<(Option<usize>, Series)> = Vec::new();
    // A token that is a sink in several phases has one curve.
    let mut primary: Vec<&Sink> = detection.of_class(Class::Primary).collect();
    primary.dedup_by_key(|sink| sink.position); // they are by position
    for (sink, i) in primary.into_iter().take(PRIMARY).zip(0..) {
        let symbol = [Symbol::Dot, Symbol::Square, Symbol::Plus][i % 3];
        chosen.push((
            Some(sink.position),
            Series::new(sink_label(run, sink), Color::Vermillion, symbol),
        ));
    }
    let mut seen: BTreeSet<usize> = chosen.iter().filter_map(|(position, _)| *position).collect();
    let secondary = secondary(run, trace).into_iter().filter(|sink| seen.insert(sink.position));
    for (i, sink) in secondary.enumerate() {
        chosen.push((Some(sink.position), Series::cycle(sink_label(run, sink), i)));
    }
    let reference = detection.scan.map_or(0, |note| note.reference);
    if detection.sinks.is_empty() {
        let label = format!("{reference}, the reference");
        chosen.push((Some(reference), Series::new(label, Color::Vermillion, Symbol::Dot)));
    }
    chosen.push((None, Series::new("average token that is no sink", Color::Ink, Symbol::Diamond)));

    let mut data = Table::new(vec![
        Column::number("trace", "Trace"),
        Column::text("token", "Token"),
        Column::number("layer", "Layer"),
        Column::number("hidden_norm", "Hidden norm"),
        Column::number("key_norm", "Key norm"),
        Column::number("value_norm", "Value norm"),
    ]);
    let mut by_position: BTreeMap<Option<usize>, Vec<&NormRow>> = BTreeMap::new();
    for row in &rows {
        by_position.entry(row.position).or_default().push(row);
    }
    for (position, series) in &chosen {
        for row in by_position.get(position).into_iter().flatten() {
            data.push(vec![
                Cell::new(detection.sample_index.to_string(), detection.sample_index),
                Cell::text(&series.label),
                Cell::count(row.layer),
                number(row.hidden.into()),
                number(row.key.into()),
                number(row.value.into()),
            ]);
        }
    }
    let panel = |title: &str, read: &dyn Fn(&NormRow) -> f32| {
        let curves = || chosen.iter().map(|(position, _)| by_position.get(position));
        let values = curves().flatten().flatten().map(|row| f64::from(read(row)));
        let mut panel = Panel::new(
            title,
            Axis::layers(run.layers()),
            Axis::new("norm (log)", Scale::log_over(values)),
        );
        for (series, curve) in curves().enumerate() {
            let label = &chosen[series].1.label;
            let dot = |row: &&NormRow| {
                let value = read(row);
                let tip = format!("{label}\nlayer {}\nnorm {}", row.layer, short(value.into()));
                Dot::new(row.layer as f64, value.into(), tip)
            };
            let dots = curve.into_iter().flatten().map(dot).collect();
            panel.marks.push(Mark::Line { series, dots, dashed: chosen[series].0.is_none() });
        }
        let rule = |clip: &Clip| Mark::Rule { x: clip.start as f64, label: layers_of(*clip) };
        panel.marks.extend(phases.iter().map(rule));
        panel
    };
    let panels = vec![
        panel("Hidden state ‖h‖ after the layer", &|row| row.hidden),
        panel("Key, all heads together", &|row| row.key),
        panel("Value, all heads together", &|row| row.value),
    ];
    let mut findings = vec![format!(
        "Shown is trace {} ({} tokens), {}.",
        detection.sample_index,
        detection.scan.map_or(detection.full_text_len, |note| note.tokens),
        match detection.sinks.is_empty() {
            true => "which has no sinks",
            false => "the one with sinks of most levels",
        }
    )];
    if phases.len() > 1 {
        let named: Vec<String> = phases.iter().map(|clip| layers_of(*clip)).collect();
        let unlisted = match detection.other_phases.is_empty() {
            true => "",
            false => "; only the sinks of the largest are listed and have curves",
        };
        findings.push(format!(
            "The norm of the reference is large in {} phases, {}{unlisted}.",
            phases.len(),
            named.join(" and ")
        ));
    }
    Ok(Ok(Figure {
        head: HEAD,
        reading: "A token becomes a sink at the layer where its hidden norm leaves the dashed line \
                  of the average token and jumps towards that of the primary sink. From then on \
                  its keys and values are smaller than those of other tokens. The axis is \
                  logarithmic.",
        findings,
        legend: chosen.iter().map(|(_, series)| series.clone()).collect(),
        panels,
        columns: 3,
        moving: None,
        quotes: Vec::new(),
        data,
    }))
}

/// The trace with sinks of the most levels; ties go to the one with more secondary sinks, then to
/// the first.
fn example(run: &RunData) -> usize {
    let mut found: BTreeMap<usize, (BTreeSet<(usize, usize)>, usize)> = BTreeMap::new();
    for (trace, sink) in run.secondary() {
        let (levels, count) = found.entry(trace).or_default();
        levels.insert((sink.l_start(), sink.lifetime()));
        *count += 1;
    }
    let best = found.iter().rev().max_by_key(|(_, (levels, count))| (levels.len(), *count));
    best.map_or(0, |(trace, _)| *trace)
}

/// A sink of each of the trace's most frequent levels, the one of median norm.
fn secondary(run: &RunData, trace: usize) -> Vec<&Sink> {
    let mut by_level: BTreeMap<(usize, usize), Vec<&Sink>> = BTreeMap::new();
    for sink in run.traces[trace].of_class(Class::Secondary) {
        by_level.entry((sink.l_start(), sink.lifetime())).or_default().push(sink);
    }
    let mut levels: Vec<_> = by_level.into_iter().collect();
    levels.sort_by_key(|(_, sinks)| std::cmp::Reverse(sinks.len()));
    levels.truncate(SECONDARY);
    levels.sort_by_key(|(level, _)| *level);
    let norm = |sink: &Sink| sink.measures.map_or(0.0, |measures| measures.mlp_out_norm);
    levels
        .into_iter()
        .filter_map(|(_, mut sinks)| {
            sinks.sort_by(|a, b| norm(a).total_cmp(&norm(b)));
            sinks.get(sinks.len() / 2).copied()
        })
        .collect()
}
