//! Levels: first layer and lifetime of secondary sinks.

use super::{Drawn, Head, NO_SECONDARY};
use crate::figure::{Axis, Dot, Figure, HeatCell, Mark, Panel, Scale};
use crate::source::Source;
use crate::{Cell, Column, Table, percent, plural};

const HEAD: Head = Head { name: "fig2-levels", title: "Sink levels", paper: "Figure 2" };

/// A heat map for each of `sources`, in one scale of shades. Cells lead to `#rN-level-I`, N
/// counting the sources of the report.
pub fn levels(sources: &[&Source]) -> Drawn {
    let count = |source: &&Source| source.levels.entries().iter().map(|e| e.level.count).max();
    let Some(most) = sources.iter().filter_map(count).max() else {
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
    for source in sources {
        let entries = source.levels.entries();
        let all: usize = entries.iter().map(|entry| entry.level.count).sum();
        let longest = entries.iter().map(|entry| entry.level.lifetime).max().unwrap_or(1);
        let last = source.layers().saturating_sub(1);
        let mut panel = Panel::new(
            format!("{}: {}", source.name, plural(all, "secondary sink")),
            Axis::new("first layer, l_start", Scale::whole(0, last)),
            Axis::new("lifetime in layers", Scale::whole(1, longest + 1)),
        );
        panel.height = 270.0;
        let cell = |(i, entry): (usize, &crate::source::LevelEntry)| {
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
                link: Some(format!("#{}", level_anchor(source, i))),
            }
        };
        panel.marks.push(Mark::Cells(entries.iter().enumerate().map(cell).collect()));
        if entries.is_empty() {
            panel.note = "no secondary sinks".to_owned();
        }
        panels.push(panel);
        for entry in entries {
            data.push(vec![
                Cell::text(&source.name),
                Cell::text(&entry.letter),
                Cell::count(entry.level.l_start),
                Cell::count(entry.level.lifetime),
                Cell::count(entry.level.count),
            ]);
        }
        if let (1, Some(main)) = (sources.len(), entries.iter().max_by_key(|e| e.level.count)) {
            let share = percent(100.0 * main.level.count as f64 / all as f64);
            findings.push(format!(
                "{} in {}; the most frequent, {}, starts at layer {}, lasts {} layers and has {share} of them.",
                plural(all, "secondary sink"),
                plural(entries.len(), "level"),
                main.letter,
                main.level.l_start,
                main.level.lifetime,
            ));
        }
    }
    Ok(Figure {
        name: HEAD.name,
        title: HEAD.title,
        paper: HEAD.paper,
        reading: "Each square is a level: secondary sinks that start at the same layer and last equally long. \
                  The brighter, the more of them, on a logarithmic scale; letters name levels throughout this \
                  page. Choose a square to see its tokens.",
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
pub fn level_anchor(source: &Source, index: usize) -> String {
    format!("{}-level-{index}", source.anchor)
}
