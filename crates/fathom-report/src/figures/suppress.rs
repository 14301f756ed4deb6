//! The run without what makes its sinks.

use fathom_sinks::explain::{
    Continuation, LaterLayer, LevelChange, Suppress, SuppressedLayer, Written,
};

use super::{Drawn, Head, NO_SECONDARY, number, of_secondary};
use crate::figure::{Axis, Color, Dot, Figure, Mark, Panel, Quote, Scale, Series, Symbol, short};
use crate::source::{LevelBook, Source};
use crate::{Cell, Column, Table, plural};

const HEAD: Head =
    Head { name: "suppression", title: "What happens without the sinks", paper: "definition 2.11" };

pub(super) fn suppress(source: &Source) -> Drawn {
    let suppress: &Suppress = of_secondary(HEAD, source, &source.explained.suppress)?;
    if suppress.layers.is_empty() {
        return Err(HEAD.absent(NO_SECONDARY, None));
    }
    let mut panels = Vec::new();
    let mut findings = Vec::new();
    for layer in &suppress.layers {
        let l = layer.layer;
        let cosines = later(
            source,
            layer,
            format!("Clamped at layer {l}: cosine"),
            "cosine with the reference",
            Scale::between(-0.25, 1.08),
            &|x| (x.cosine_before, x.cosine_after),
        );
        let norms = layer.later.iter().flat_map(|x| [x.norm_before, x.norm_after]);
        let norms = Scale::log_over(norms);
        let norms = later(
            source,
            layer,
            format!("Clamped at layer {l}: norm"),
            "‖h‖ (log)",
            norms,
            &|x| (x.norm_before, x.norm_after),
        );
        panels.extend([
            cosines,
            norms,
            changes(&source.levels, &format!("Clamped at layer {l}: levels"), &layer.levels, 2),
        ]);
        let gone: usize = layer.levels.iter().map(|level| level.gone + level.changed).sum();
        let before: usize = layer.levels.iter().map(|level| level.before).sum();
        findings.push(format!(
            "Layer {l}: {} cut down to the norm {}; {gone} of {} are gone or changed{}; {}mean negative \
             log-likelihood {} before, {} after.",
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
        name: HEAD.name,
        title: HEAD.title,
        paper: HEAD.paper,
        reading: "The traces are scanned again while, at one layer, every MLP output that points along the sink direction \
                  is cut down to an ordinary token's norm. Solid: as the model is; dashed: clamped. The bars say what \
                  became of the sinks of each level.",
        findings,
        legend: vec![
            Series::new("as it is", Color::Vermillion, Symbol::Dot),
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

/// What the model goes on to write, with and without the clamp: of each layer the first places
/// where the two differ.
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
                before: ("As it is", text(&one.before)),
                after: ("Clamped", text(&one.after)),
            }
        };
        written.iter().take(SHOWN).map(quote).collect::<Vec<_>>()
    };
    suppress.layers.iter().flat_map(of).collect()
}

/// `, 3 new ones appeared`
pub(super) fn appeared(count: usize) -> String {
    if count == 0 { String::new() } else { format!(", {count} appeared that were none before") }
}

fn later(
    source: &Source,
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
            Scale::whole(layer.layer, source.layers().saturating_sub(1).max(layer.layer + 1)),
        ),
        Axis::new(name, scale),
    );
    let kinds = [(0, "as it is"), (1, "clamped")];
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

/// Bars of what became of each level; `series` is that of the kept, changed and gone following it.
pub(super) fn changes(
    book: &LevelBook,
    title: &str,
    levels: &[LevelChange],
    series: usize,
) -> Panel {
    let most = levels.iter().map(|level| level.before).max().unwrap_or(0);
    let mut levels: Vec<&LevelChange> = levels.iter().collect();
    if levels.len() > 12 {
        levels.sort_by_key(|level| std::cmp::Reverse(level.before));
        levels.truncate(12);
        levels.sort_by_key(|level| (level.l_start, level.lifetime));
    }
    let name = |level: &&LevelChange| match book.of(level.l_start, level.lifetime) {
        Some((_, entry)) if entry.letter != "·" => entry.letter.clone(),
        _ => format!("{}·{}", level.l_start, level.lifetime),
    };
    let mut panel = Panel::new(
        title,
        Axis::new("level", Scale::Names(levels.iter().map(name).collect())),
        Axis::new("secondary sinks", Scale::from_zero([most as f64].into_iter())),
    );
    let mut bases = vec![0; levels.len()];
    for (kind, what) in ["kept", "at other layers", "gone"].into_iter().enumerate() {
        let read = |level: &LevelChange| [level.kept, level.changed, level.gone][kind];
        let mut bars = Vec::new();
        for (i, level) in levels.iter().enumerate().filter(|(_, level)| read(level) > 0) {
            let (x, base) = (i as f64, bases[i]);
            bases[i] += read(level);
            let tip = format!(
                "level {}: from layer {}, {} layers\n{} of {} {what}",
                name(level),
                level.l_start,
                level.lifetime,
                read(level),
                level.before
            );
            bars.push((x - 0.35, x + 0.35, base as f64, Dot::new(x, bases[i] as f64, tip)));
        }
        panel.marks.push(Mark::Bars { series: series + kind, bars });
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
