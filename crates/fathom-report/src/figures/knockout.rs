//! What changes when sinks are hidden from later tokens.

use std::collections::BTreeMap;

use fathom_sinks::explain::{
    Compensation, KnockedKeys, Knockout, KnockoutBy, KnockoutVariant, Share,
};

use super::changes::{capital, perplexity};
use super::{AnalysisFigure, Head, MaybeFigure, Method, number, share};
use crate::figure::{Axis, Color, Dot, Figure, Mark, Panel, Scale, Series, Symbol, short};
use crate::run_data::RunData;
use crate::{Cell, Column, Table, plural};

/// The figure of [`Knockout`].
pub(super) struct KnockoutFigure;

impl AnalysisFigure for KnockoutFigure {
    type Output = Knockout;
    const HEAD: Head = Head {
        name: "knockout",
        title: "What happens if later tokens do not see the sinks",
        paper: "beyond the paper",
    };
    const METHOD: Method = Method {
        term: "Knock-out",
        text: "Chosen keys are hidden from all later queries, or their values are set to zero. \
               Random keys are tokens that are not sinks, as many as there are secondary sinks, \
               of the same ids if possible; their whiskers span the draws.",
    };
    const SECONDARY_ONLY: bool = false;

    fn figure(run: &RunData, knockout: &Knockout) -> MaybeFigure {
        let rows = rows(knockout);
        if rows.is_empty() {
            return Err(Self::HEAD.absent("No trace has a token after its first sink.", None));
        }
        let names: Vec<String> = rows.iter().map(|row| row.name(run)).collect();
        let axis = || Axis::new("keys", Scale::Names(names.clone()));
        Ok(Figure {
            head: Self::HEAD,
            reading: "Each trace is run again with chosen keys hidden from later tokens (or their \
                      values zero). Left: how much the predictions after the first such key \
                      change. Middle: perplexity of the traces' tokens there, unchanged and \
                      without the keys. Right: which tokens gain the attention that the keys \
                      lose.",
            findings: findings(run, knockout, &rows),
            legend: vec![
                Series::new("without the keys", Color::Vermillion, Symbol::Dot),
                Series::new("unchanged", Color::Blue, Symbol::Square),
                Series::new("gained by BOS", Color::Ink, Symbol::Square),
                Series::new("by primary sinks", Color::Orange, Symbol::Square),
                Series::new("by secondary sinks", Color::Green, Symbol::Square),
                Series::new("by other tokens", Color::Grey, Symbol::Square),
            ],
            panels: vec![
                divergence(&rows, &names, axis()),
                perplexities(&rows, &names, axis()),
                attention(&rows, &names, axis()),
            ],
            columns: 3,
            moving: None,
            quotes: Vec::new(),
            data: table(run, knockout),
        })
    }

    fn finding(knockout: &Knockout) -> String {
        let rows = rows(knockout);
        let one = |row: &Row| {
            let keys = match row.keys {
                KnockedKeys::Level { .. } => return None,
                keys => plain_name(keys),
            };
            let (low, high) = row.kl_range;
            let range = if low < high { format!(" ({low:.4}–{high:.4})") } else { String::new() };
            let (before, after) = (row.nll_before.exp(), row.nll_after.exp());
            let (before, after) = (perplexity(before), perplexity(after));
            Some(format!("{keys} {:.4}{range}, perplexity {before} → {after}", row.kl))
        };
        let each: Vec<String> = rows.iter().filter_map(one).collect();
        match each.is_empty() {
            true => "no trace has a token after its first sink".to_owned(),
            false => format!("{}, KL in nats: {}", how(knockout), each.join("; ")),
        }
    }
}

/// A choice of keys; the draws of random ones are one row.
struct Row {
    keys: KnockedKeys,
    draws: usize,
    knocked: usize,
    of_same_ids: usize,
    positions: usize,
    kl: f64,
    /// The least and the largest of the draws.
    kl_range: (f64, f64),
    nll_before: f64,
    nll_after: f64,
    top1: f64,
    attention: Compensation,
}

impl Row {
    fn of(variants: &[&KnockoutVariant]) -> Option<Row> {
        let first = variants.first()?;
        let mean = |of: &dyn Fn(&KnockoutVariant) -> f64| {
            variants.iter().map(|variant| of(variant)).sum::<f64>() / variants.len() as f64
        };
        let kl = |variant: &KnockoutVariant| variant.kl.map_or(0.0, |kl| kl.mean);
        let all = || variants.iter().map(|variant| kl(variant));
        Some(Row {
            keys: first.keys,
            draws: variants.len(),
            knocked: variants.iter().map(|variant| variant.knocked).sum(),
            of_same_ids: variants.iter().map(|variant| variant.of_same_ids).sum(),
            positions: first.top1.n,
            kl: mean(&kl),
            kl_range: (
                all().fold(f64::INFINITY, f64::min),
                all().fold(f64::NEG_INFINITY, f64::max),
            ),
            nll_before: mean(&|variant| variant.nll_before),
            nll_after: mean(&|variant| variant.nll_after),
            top1: mean(&|variant| variant.top1.share),
            attention: Compensation {
                freed: mean(&|variant| variant.attention.freed),
                to_bos: mean(&|variant| variant.attention.to_bos),
                to_primary: mean(&|variant| variant.attention.to_primary),
                to_secondary: mean(&|variant| variant.attention.to_secondary),
                to_others: mean(&|variant| variant.attention.to_others),
                entropy_before: mean(&|variant| variant.attention.entropy_before),
                entropy_after: mean(&|variant| variant.attention.entropy_after),
            },
        })
    }

    fn name(&self, run: &RunData) -> String {
        name(run, self.keys)
    }
}

fn rows(knockout: &Knockout) -> Vec<Row> {
    let mut groups: BTreeMap<KnockedKeys, Vec<&KnockoutVariant>> = BTreeMap::new();
    for variant in &knockout.variants {
        let keys = match variant.keys {
            KnockedKeys::Random { .. } => KnockedKeys::Random { draw: 0 },
            keys => keys,
        };
        groups.entry(keys).or_default().push(variant);
    }
    groups.values().filter_map(|variants| Row::of(variants)).collect()
}

fn name(run: &RunData, keys: KnockedKeys) -> String {
    match keys {
        KnockedKeys::Level { l_start, lifetime } => match run.levels.of(l_start, lifetime) {
            Some((_, entry)) if entry.letter != "·" => format!("level {}", entry.letter),
            _ => format!("level {l_start}·{lifetime}"),
        },
        keys => plain_name(keys).to_owned(),
    }
}

fn plain_name(keys: KnockedKeys) -> &'static str {
    match keys {
        KnockedKeys::Bos => "BOS",
        KnockedKeys::Primary => "primary",
        KnockedKeys::Secondary => "secondary",
        KnockedKeys::Level { .. } => "level",
        KnockedKeys::Both => "both",
        KnockedKeys::Random { .. } => "random",
    }
}

/// `hidden at all layers`
fn how(knockout: &Knockout) -> String {
    let how = match knockout.by {
        KnockoutBy::Hide => "hidden",
        KnockoutBy::Zero => "values zero",
    };
    format!("{how} at {}", plural(knockout.layers.len(), "layer"))
}

fn divergence(rows: &[Row], names: &[String], x: Axis) -> Panel {
    let ends = rows.iter().flat_map(|row| [row.kl_range.0, row.kl_range.1]);
    let scale = Scale::log_over(ends);
    let mut panel = Panel::new("Predictions", x, Axis::new("KL, nats (log)", scale));
    let dot = |(i, row): (usize, &Row)| {
        let tip = format!(
            "{}\nKL {} nats\ntop token unchanged at {} of positions",
            names[i],
            short(row.kl),
            share(row.top1)
        );
        Dot::new(i as f64, row.kl, tip)
    };
    for (i, row) in rows.iter().enumerate().filter(|(_, row)| row.kl_range.0 > 0.0) {
        panel.marks.push(Mark::Whisker { series: 0, x: i as f64, range: row.kl_range });
    }
    let dots = rows.iter().enumerate().filter(|(_, row)| row.kl > 0.0).map(dot).collect();
    panel.marks.push(Mark::Dots { series: 0, dots });
    panel
}

fn perplexities(rows: &[Row], names: &[String], x: Axis) -> Panel {
    let values = rows.iter().flat_map(|row| [row.nll_before.exp(), row.nll_after.exp()]);
    let scale = Scale::log_over(values);
    let mut panel = Panel::new("Perplexity", x, Axis::new("perplexity (log)", scale));
    for (series, what) in ["without the keys", "unchanged"].into_iter().enumerate() {
        let dot = |(i, row): (usize, &Row)| {
            let nll = if series == 0 { row.nll_after } else { row.nll_before };
            let tip = format!("{}\n{what}: perplexity {}", names[i], perplexity(nll.exp()));
            Dot::new(i as f64, nll.exp(), tip)
        };
        panel.marks.push(Mark::Dots { series, dots: rows.iter().enumerate().map(dot).collect() });
    }
    panel
}

/// Who gains, as shares of the attention that the keys lose.
fn gains(attention: &Compensation) -> [(&'static str, f64); 4] {
    let Compensation { freed, to_bos, to_primary, to_secondary, to_others, .. } = *attention;
    let gains = [
        ("BOS", to_bos),
        ("primary sinks", to_primary),
        ("secondary sinks", to_secondary),
        ("other tokens", to_others),
    ];
    gains.map(|(who, gained)| (who, if freed > 0.0 { gained / freed } else { 0.0 }))
}

fn attention(rows: &[Row], names: &[String], x: Axis) -> Panel {
    // More than 100 % where other tokens lose attention too.
    let gained =
        |row: &Row| -> f64 { gains(&row.attention).iter().map(|(_, gain)| gain.max(0.0)).sum() };
    let scale = Scale::from_zero(rows.iter().map(|row| 100.0 * gained(row)));
    let mut panel = Panel::new("Attention", x, Axis::new("% of the attention lost", scale));
    let mut bases = vec![0.0; rows.len()];
    for kind in 0..4 {
        let mut bars = Vec::new();
        for (i, row) in rows.iter().enumerate() {
            let (who, gain) = gains(&row.attention)[kind];
            if gain <= 0.0 {
                continue;
            }
            let (x, base) = (i as f64, bases[i]);
            bases[i] += 100.0 * gain;
            let tip = format!("{}\n{} go to {who}", names[i], share(gain));
            bars.push((x - 0.35, x + 0.35, base, Dot::new(x, bases[i], tip)));
        }
        panel.marks.push(Mark::Bars { series: 2 + kind, bars });
    }
    panel
}

fn findings(run: &RunData, knockout: &Knockout, rows: &[Row]) -> Vec<String> {
    let one = |row: &Row| {
        let (who, most) = gains(&row.attention)
            .into_iter()
            .max_by(|a, b| a.1.total_cmp(&b.1))
            .unwrap_or(("other tokens", 0.0));
        let gained = match row.attention.freed > 0.0 {
            true => format!(
                " They lose {} of all attention; {} of it goes to {who}, and the entropy of \
                 attention changes from {} to {} nats.",
                share(row.attention.freed),
                share(most),
                short(row.attention.entropy_before),
                short(row.attention.entropy_after)
            ),
            false => String::new(),
        };
        let draws = match row.keys {
            KnockedKeys::Random { .. } => format!(
                ", from {} to {} in {}; {} of the {} tokens have the id of a secondary sink",
                short(row.kl_range.0),
                short(row.kl_range.1),
                plural(row.draws, "draw"),
                row.of_same_ids,
                row.knocked
            ),
            _ => String::new(),
        };
        format!(
            "{} {}: KL {} nats on average{draws}; perplexity {} before, {} after; the top token \
             stays the same at {} of {}.{gained}",
            capital(&row.name(run)),
            how(knockout),
            short(row.kl),
            perplexity(row.nll_before.exp()),
            perplexity(row.nll_after.exp()),
            share(row.top1),
            plural(row.positions, "position"),
        )
    };
    rows.iter().map(one).collect()
}

fn table(run: &RunData, knockout: &Knockout) -> Table {
    let mut data = Table::new(vec![
        Column::text("keys", "Keys"),
        Column::number("draw", "Draw"),
        Column::number("traces", "Traces"),
        Column::number("knocked", "Keys knocked out"),
        Column::number("of_same_ids", "Of the same ids"),
        Column::number("positions", "Positions"),
        Column::number("kl", "KL"),
        Column::number("kl_median", "KL (median)"),
        Column::number("perplexity_before", "Perplexity before"),
        Column::number("perplexity_after", "Perplexity after"),
        Column::number("top1", "Top token unchanged"),
        Column::number("freed", "Attention lost"),
        Column::number("to_bos", "To BOS"),
        Column::number("to_primary", "To primary"),
        Column::number("to_secondary", "To secondary"),
        Column::number("to_others", "To others"),
        Column::number("entropy_before", "Entropy before"),
        Column::number("entropy_after", "Entropy after"),
        Column::number("sinks_gone", "Secondary sinks gone"),
        Column::number("sinks_appeared", "Appeared"),
    ]);
    for variant in &knockout.variants {
        let Share { n, share, .. } = variant.top1;
        let draw = match variant.keys {
            KnockedKeys::Random { draw } => Cell::count(draw),
            _ => Cell::new("", serde_json::Value::Null),
        };
        let kl = |of: fn(&fathom_sinks::explain::Summary) -> f64| {
            variant.kl.as_ref().map_or(Cell::none(), |kl| number(of(kl)))
        };
        let attention = &variant.attention;
        data.push(vec![
            Cell::text(name(run, variant.keys)),
            draw,
            Cell::count(variant.traces),
            Cell::count(variant.knocked),
            Cell::count(variant.of_same_ids),
            Cell::count(n),
            kl(|kl| kl.mean),
            kl(|kl| kl.median),
            number(variant.nll_before.exp()),
            number(variant.nll_after.exp()),
            number(share),
            number(attention.freed),
            number(attention.to_bos),
            number(attention.to_primary),
            number(attention.to_secondary),
            number(attention.to_others),
            number(attention.entropy_before),
            number(attention.entropy_after),
            Cell::count(variant.levels.iter().map(|level| level.gone).sum()),
            Cell::count(variant.appeared),
        ]);
    }
    data
}
