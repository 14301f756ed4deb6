//! Levels: first layer and lifetime of secondary sinks.

use super::{Head, MaybeFigure, NO_SECONDARY};
use crate::figure::{Axis, Dot, Figure, HeatCell, Mark, Panel, Scale};
use crate::run_data::RunData;
use crate::{Cell, Column, Table, percent, plural};

const HEAD: Head = Head { name: "fig2-levels", title: "Sink levels", paper: "Figure 2" };

/// A heat map for each of `runs`, with one scale of shades. Cells link to `#rN-level-I`, where N is
/// the number of the run.
pub fn levels(runs: &[&RunData]) -> MaybeFigure {
    let count = |run: &&RunData| run.levels.entries().iter().map(|e| e.level.count).max();
    let Some(most) = runs.iter().filter_map(count).max() else {
        return Err(HEAD.absent(NO_SECONDARY, None));
    };
    let mut data = Table::new(vec![
        Column::text("model", "Model"),
        Column::text("level", "Level"),
        Column::number("l_start", "First layer"),
        Column::number("lifetime", "Layers"),
        Column::number("count", "Secondary sinks"),
    ]);
    let mut findings = Vec::new();
    let mut panels = Vec::new();
    for run in runs {
        let entries = run.levels.entries();
        let all: usize = entries.iter().map(|entry| entry.level.count).sum();
        let longest = entries.iter().map(|entry| entry.level.lifetime).max().unwrap_or(1);
        let last = run.layers().saturating_sub(1);
        let mut panel = Panel::new(
            format!("{}: {}", run.name, plural(all, "secondary sink")),
            Axis::new("first layer, l_start", Scale::whole(0, last)),
            Axis::new("lifetime in layers", Scale::whole(1, longest + 1)),
        );
        panel.height = 270.0;
        let cell = |(i, entry): (usize, &crate::run_data::LevelEntry)| {
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
                shade: (1.0 + level.count as f64).ln() / (1.0 + most as f64).ln(),
                text: if entry.letter == "·" { String::new() } else { entry.letter.clone() },
                link: Some(format!("#{}", level_anchor(run, i))),
            }
        };
        panel.marks.push(Mark::Cells(entries.iter().enumerate().map(cell).collect()));
        if entries.is_empty() {
            panel.note = "no secondary sinks".to_owned();
        }
        panels.push(panel);
        for entry in entries {
            data.push(vec![
                Cell::text(&run.name),
                Cell::text(&entry.letter),
                Cell::count(entry.level.l_start),
                Cell::count(entry.level.lifetime),
                Cell::count(entry.level.count),
            ]);
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

/// The anchor of a level in the page.
pub fn level_anchor(run: &RunData, index: usize) -> String {
    format!("{}-level-{index}", run.anchor)
}
