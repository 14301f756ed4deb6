//! Levels: first layer and lifetime of secondary sinks.

use std::collections::BTreeMap;

use super::{Head, MaybeFigure, NO_SECONDARY};
use crate::figure::{Axis, Dot, Figure, HeatCell, Mark, Panel, Scale};
use crate::run_data::{LevelEntry, RunData};
use crate::run_phases::{layers_of, unlisted};
use crate::{Cell, Column, Table, percent, plural};

const HEAD: Head = Head { name: "fig2-levels", title: "Sink levels", paper: "Figure 2" };

/// Maximum number of phases that are marked.
const RULES: usize = 4;

/// A heat map for each of `runs`, with one scale of shades. Cells link to `#rN-level-I`, where N is
/// the number of the run.
pub fn levels(runs: &[&RunData]) -> MaybeFigure {
    let others: Vec<Unlisted> = runs.iter().map(|run| unlisted_levels(run)).collect();
    let listed = runs.iter().flat_map(|run| run.levels.entries()).map(|entry| entry.level.count);
    let counts = listed.chain(others.iter().flat_map(|levels| levels.values().copied()));
    let Some(most) = counts.max() else {
        return Err(HEAD.absent(NO_SECONDARY, None));
    };
    let several = runs.iter().any(|run| !run.phases.most_frequent(1).is_empty());
    let phase_column = several.then(|| Column::text("phase", "Phase"));
    let columns = vec![
        Column::text("model", "Model"),
        Column::text("level", "Level"),
        Column::number("l_start", "First layer"),
        Column::number("lifetime", "Layers"),
    ];
    let count_column = Column::number("count", "Secondary sinks");
    let columns = columns.into_iter().chain(phase_column).chain([count_column]);
    let mut data = Table::new(columns.collect());
    let mut row = |[name, letter]: [&str; 2], level: [usize; 2], phase: String, count: usize| {
        let mut row = vec![Cell::text(name), Cell::text(letter)];
        row.extend(level.map(Cell::count));
        row.extend(several.then(|| Cell::text(phase)));
        row.push(Cell::count(count));
        data.push(row);
    };
    let mut findings = Vec::new();
    let mut panels = Vec::new();
    for (run, others) in runs.iter().zip(&others) {
        let entries = run.levels.entries();
        let all: usize = entries.iter().map(|entry| entry.level.count).sum();
        let lifetimes = entries.iter().map(|entry| entry.level.lifetime);
        let lifetimes = lifetimes.chain(others.keys().map(|(_, lifetime, _)| *lifetime));
        let longest = lifetimes.max().unwrap_or(1);
        let last = run.layers().saturating_sub(1);
        let mut panel = Panel::new(
            format!("{}: {}", run.name, plural(all, "secondary sink")),
            Axis::new("first layer, l_start", Scale::whole(0, last)),
            Axis::new("lifetime in layers", Scale::whole(1, longest + 1)),
        );
        panel.height = 270.0;
        let shade = |count: usize| (1.0 + count as f64).ln() / (1.0 + most as f64).ln();
        let cell = |(i, entry): (usize, &LevelEntry)| {
            let level = entry.level;
            let tip = format!(
                "level {}\nfrom layer {}, {} layers\n{} ({})",
                entry.letter,
                level.l_start,
                level.lifetime,
                plural(level.count, "sink"),
                percent(100.0 * level.count as f64 / all as f64),
            );
            HeatCell {
                dot: Dot::new(level.l_start as f64, level.lifetime as f64, tip),
                shade: shade(level.count),
                text: if entry.letter == "·" { String::new() } else { entry.letter.clone() },
                link: Some(format!("#{}", level_anchor(run, i))),
            }
        };
        panel.marks.push(Mark::Cells(entries.iter().enumerate().map(cell).collect()));
        let other = |((l_start, lifetime, phase), count): (&(usize, usize, String), &usize)| {
            let sinks = plural(*count, "sink");
            let tip =
                format!("{phase}, not listed\nfrom layer {l_start}, {lifetime} layers\n{sinks}");
            HeatCell {
                dot: Dot::new(*l_start as f64, *lifetime as f64, tip),
                shade: shade(*count),
                text: String::new(),
                link: None,
            }
        };
        panel.marks.push(Mark::Cells(others.iter().map(other).collect()));
        for phase in run.phases.most_frequent(RULES) {
            let (x, label) = (phase.clip.start as f64 - 0.5, layers_of(phase.clip));
            panel.marks.push(Mark::Rule { x, label });
        }
        if entries.is_empty() && others.is_empty() {
            panel.note = "no secondary sinks".to_owned();
        }
        panels.push(panel);
        for entry in entries {
            let level = entry.level;
            let phase = entry.phase.map_or(String::new(), layers_of);
            let names = [run.name.as_str(), &entry.letter];
            row(names, [level.l_start, level.lifetime], phase, level.count);
        }
        for ((l_start, lifetime, phase), count) in others {
            row([&run.name, "not listed"], [*l_start, *lifetime], phase.clone(), *count);
        }
        if !others.is_empty() {
            findings.push(format!(
                "{} of other phases are shown without a letter; `--phases all` lists them.",
                plural(others.values().sum(), "secondary sink")
            ));
        }
        if let (1, Some(main)) = (runs.len(), entries.iter().max_by_key(|e| e.level.count)) {
            let share = percent(100.0 * main.level.count as f64 / all as f64);
            findings.push(format!(
                "{} in {}; the most frequent, {}, starts at layer {}, lasts {} layers and has \
                 {share} of the sinks.",
                plural(all, "secondary sink"),
                plural(entries.len(), "level"),
                main.letter,
                main.level.l_start,
                main.level.lifetime,
            ));
        }
    }
    Ok(Figure {
        head: HEAD,
        reading: "Each square is a level: secondary sinks that start at the same layer and last \
                  for the same number of layers. Brighter squares have more sinks, on a \
                  logarithmic scale. Letters name levels throughout this page. Click a square to \
                  see its tokens.",
        findings,
        legend: Vec::new(),
        columns: panels.len().min(3),
        panels,
        moving: None,
        quotes: Vec::new(),
        data,
    })
}

/// Number of sinks by (first layer, lifetime, phase).
type Unlisted = BTreeMap<(usize, usize, String), usize>;

/// The levels of secondary sinks of phases that are not listed.
fn unlisted_levels(run: &RunData) -> Unlisted {
    let mut levels = Unlisted::new();
    for (_, phase, sink) in unlisted(&run.traces) {
        let key = (sink.l_start(), sink.lifetime(), layers_of(phase));
        *levels.entry(key).or_default() += 1;
    }
    levels
}

/// The anchor of a level in the page.
pub fn level_anchor(run: &RunData, index: usize) -> String {
    format!("{}-level-{index}", run.anchor)
}
