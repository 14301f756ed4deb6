//! The four measures of a sink, as tables.

use fathom_sinks::{
    Agreement, MassiveLayer, Measure, MeasuredToken, SinkRates, TokenMeasures, TokenScores,
};
use serde_json::{Value, json};

use crate::escape::token_label;
use crate::number::{factor, ranges};
use crate::{Cell, Column, Table, percent};

/// How often each combination of measures holds: one row per combination.
pub fn agreement_table(models: &[(&str, &Agreement)]) -> Table {
    let mut table = Table::new(vec![
        Column::text("model", "Model"),
        Column::text("alignment", "Alignment"),
        Column::text("attention", "Attention"),
        Column::text("massive", "Massive"),
        Column::text("norm", "Norm"),
        Column::number("pairs", "(Token, layer)"),
        Column::number("near_end", "Of these, near the end"),
        Column::number("tokens", "Tokens"),
    ]);
    for (model, agreement) in models {
        for combination in &agreement.combinations {
            let holds = |measure| match measure {
                Measure::Attention if !agreement.attention => Cell::unknown(),
                _ => yes(combination.set.contains(measure)),
            };
            let [alignment, attention, massive, norm] = Measure::ALL.map(holds);
            table.push(vec![
                Cell::text(*model),
                alignment,
                attention,
                massive,
                norm,
                Cell::count(combination.pairs),
                Cell::count(combination.near_end),
                Cell::count(combination.tokens),
            ]);
        }
    }
    table
}

/// The sink rate: one row per layer, and one of all layers. Models whose attention was not measured
/// have one row without numbers.
pub fn rate_table(models: &[(&str, &Agreement)]) -> Table {
    let mut table = Table::new(vec![
        Column::text("model", "Model"),
        Column::text("layer", "Layer"),
        Column::number("reference", "At the reference"),
        Column::number("anywhere", "At any token"),
        Column::text("reference_heads", "Heads, at the reference"),
        Column::text("anywhere_heads", "Heads, at any token"),
    ]);
    for (model, agreement) in models {
        let Some(rates) = &agreement.rates else {
            let unknown = [(); 4].map(|()| Cell::unknown());
            let row = [Cell::text(*model), Cell::new("all", Value::Null)];
            table.push(row.into_iter().chain(unknown).collect());
            continue;
        };
        let layers = rates.reference.iter().zip(&rates.anywhere).enumerate();
        for (layer, (reference, anywhere)) in layers {
            let mean = |heads: &Vec<f64>| share(SinkRates::mean(std::slice::from_ref(heads)));
            table.push(vec![
                Cell::text(*model),
                Cell::count(layer),
                mean(reference),
                mean(anywhere),
                heads(reference),
                heads(anywhere),
            ]);
        }
        table.push(vec![
            Cell::text(*model),
            Cell::new("all", Value::Null),
            share(SinkRates::mean(&rates.reference)),
            share(SinkRates::mean(&rates.anywhere)),
            Cell::new("", Value::Null),
            Cell::new("", Value::Null),
        ]);
    }
    table
}

/// The heads with a rate above 0: `0: 100%, 3: 50%`; for programs, the rate of every head.
fn heads(rates: &[f64]) -> Cell {
    let named = rates.iter().enumerate().filter(|(_, rate)| **rate > 0.0);
    let text = |(head, rate): (usize, &f64)| format!("{head}: {}", percent(100.0 * rate));
    Cell::new(named.map(text).collect::<Vec<_>>().join(", "), json!(rates))
}

/// Massive activations: one row per dimension.
pub fn massive_table(models: &[(&str, &Agreement)]) -> Table {
    let mut table = Table::new(vec![
        Column::text("model", "Model"),
        Column::number("dim", "Dimension"),
        Column::number("tokens", "Tokens"),
        Column::text("layers", "Layers"),
        Column::number("largest", "Largest value"),
        Column::number("largest_layer", "At layer"),
    ]);
    for (model, agreement) in models {
        for dim in &agreement.massive {
            let layers: Vec<usize> = dim.layers.keys().copied().collect();
            let value = |(layer, at): (&usize, &MassiveLayer)| {
                let (tokens, largest) = (at.tokens, at.largest);
                json!({ "layer": layer, "tokens": tokens, "largest": largest })
            };
            let values: Vec<Value> = dim.layers.iter().map(value).collect();
            let largest = dim.layers.iter().map(|(layer, at)| (*layer, at.largest));
            let largest = largest.rev().max_by(|a, b| a.1.abs().total_cmp(&b.1.abs()));
            let (layer, largest) = largest.unwrap_or_default();
            table.push(vec![
                Cell::text(*model),
                Cell::count(dim.dim),
                Cell::count(dim.tokens),
                Cell::new(ranges(&layers), values),
                Cell::new(format!("{largest:.1}"), largest),
                Cell::count(layer),
            ]);
        }
    }
    table
}

/// Tokens that draw attention at layers at which they are not aligned: the first `top` of each
/// model.
pub fn unaligned_table(models: &[(&str, &Agreement)], top: usize) -> Table {
    let mut table = Table::new(vec![
        Column::text("model", "Model"),
        Column::number("trace", "Trace"),
        Column::number("position", "Position"),
        Column::text("token", "Token"),
        Column::text("layers", "Draws at layers"),
        Column::number("max_score", "Largest score"),
        Column::text("at", "Layer, head"),
        Column::text("aligned", "Aligned at layers"),
    ]);
    for (model, agreement) in models {
        for token in agreement.unaligned.iter().take(top) {
            let draws = token.layers.iter().filter(|at| at.draws_unaligned());
            let scores = draws.filter_map(|at| Some((at.layer, at.scores.as_ref()?)));
            let best = scores.rev().max_by(|a, b| a.1.max.total_cmp(&b.1.max));
            let best = |read: fn(usize, &TokenScores) -> Cell| {
                best.map_or(Cell::unknown(), |(layer, scores)| read(layer, scores))
            };
            let aligned = token.layers_where(|at| at.aligned);
            let [trace, position, text] = named(token);
            table.push(vec![
                Cell::text(*model),
                trace,
                position,
                text,
                layers_cell(&token.layers_where(TokenMeasures::draws_unaligned), "none"),
                best(|_, scores| score(scores.max)),
                best(|layer, scores| {
                    let head = scores.max_head;
                    let value = json!({ "layer": layer, "head": head });
                    Cell::new(format!("{layer}, {head}"), value)
                }),
                layers_cell(&aligned, "none"),
            ]);
        }
    }
    table
}

/// The strongest tokens by any measure, with the layers at which each holds: the first `top` of
/// each model.
pub fn measured_token_table(models: &[(&str, &Agreement)], top: usize) -> Table {
    let mut table = Table::new(vec![
        Column::text("model", "Model"),
        Column::number("trace", "Trace"),
        Column::number("position", "Position"),
        Column::text("token", "Token"),
        Column::text("alignment", "Aligned at layers"),
        Column::text("attention", "Draws attention"),
        Column::text("massive", "Massive"),
        Column::text("norm", "Large norm"),
        Column::text("mean_score", "Largest mean score"),
    ]);
    for (model, agreement) in models {
        for token in agreement.strongest.iter().take(top) {
            let layers = |measure| match measure {
                Measure::Attention if !agreement.attention => Cell::unknown(),
                _ => layers_cell(&token.layers_where(|at| at.holds().contains(measure)), ""),
            };
            let [alignment, attention, massive, norm] = Measure::ALL.map(layers);
            let scores = token.layers.iter().filter_map(|at| Some((at.layer, at.scores.as_ref()?)));
            let values: Vec<Value> = scores
                .clone()
                .map(|(layer, scores)| json!({ "layer": layer, "mean": scores.mean }))
                .collect();
            let best = scores.rev().max_by(|a, b| a.1.mean.total_cmp(&b.1.mean));
            let text =
                |(layer, scores): (usize, &TokenScores)| format!("{:.3} at {layer}", scores.mean);
            let [trace, position, name] = named(token);
            table.push(vec![
                Cell::text(*model),
                trace,
                position,
                name,
                alignment,
                attention,
                massive,
                norm,
                best.map_or(Cell::unknown(), |best| Cell::new(text(best), values)),
            ]);
        }
    }
    table
}

/// The strongest tokens layer by layer, where at least one measure holds: those of the first `top`
/// tokens of each model.
pub fn measured_layer_table(models: &[(&str, &Agreement)], top: usize) -> Table {
    let mut table = Table::new(vec![
        Column::text("model", "Model"),
        Column::number("trace", "Trace"),
        Column::number("position", "Position"),
        Column::text("token", "Token"),
        Column::number("layer", "Layer"),
        Column::text("alignment", "Aligned"),
        Column::text("attention", "Draws attention"),
        Column::text("massive", "Massive"),
        Column::text("norm", "Large norm"),
        Column::number("mean_score", "Mean score"),
        Column::number("max_score", "Largest score"),
        Column::text("heads_above", "Heads above 0.3"),
        Column::text("massive_dims", "Massive dimensions"),
        Column::number("norm_ratio", "Norm ratio"),
    ]);
    for (model, agreement) in models {
        for token in agreement.strongest.iter().take(top) {
            for at in &token.layers {
                let [trace, position, text] = named(token);
                let holds = at.holds();
                let scores = at.scores.as_ref();
                let flag = |measure| match measure {
                    Measure::Attention if scores.is_none() => Cell::unknown(),
                    _ => yes(holds.contains(measure)),
                };
                let [alignment, attention, massive, norm] = Measure::ALL.map(flag);
                table.push(vec![
                    Cell::text(*model),
                    trace,
                    position,
                    text,
                    Cell::count(at.layer),
                    alignment,
                    attention,
                    massive,
                    norm,
                    scores.map_or(Cell::unknown(), |scores| score(scores.mean)),
                    scores.map_or(Cell::unknown(), |scores| score(scores.max)),
                    scores.map_or(Cell::unknown(), |scores| layers_cell(&scores.heads_above, "")),
                    massive_cell(at),
                    Cell::new(factor(at.norm_ratio), at.norm_ratio),
                ]);
            }
        }
    }
    table
}

/// Trace, position and token.
fn named(token: &MeasuredToken) -> [Cell; 3] {
    let text = token.token_text.as_deref();
    [
        Cell::new(token.sample_index.to_string(), token.sample_index),
        Cell::count(token.position),
        Cell::new(token_label(text, token.token_id), json!(text)),
    ]
}

fn yes(holds: bool) -> Cell {
    Cell::new(if holds { "yes" } else { "" }, holds)
}

fn score(score: f32) -> Cell {
    Cell::new(format!("{score:.3}"), score)
}

fn share(rate: f64) -> Cell {
    Cell::new(percent(100.0 * rate), rate)
}

/// `3–8, 10`, or `none` if there are no layers.
fn layers_cell(layers: &[usize], none: &str) -> Cell {
    let text = if layers.is_empty() { none.to_owned() } else { ranges(layers) };
    Cell::new(text, json!(layers))
}

/// `17: 3012, 71: -1799`
fn massive_cell(at: &TokenMeasures) -> Cell {
    let massive = &at.massive;
    let text = |(dim, value): &(usize, f32)| format!("{dim}: {value:.0}");
    let mut texts: Vec<String> = massive.largest.iter().map(text).collect();
    let more = massive.count.saturating_sub(massive.largest.len());
    if more > 0 {
        texts.push(format!("{more} more"));
    }
    let values = massive.largest.iter().map(|(dim, value)| json!({ "dim": dim, "value": value }));
    Cell::new(texts.join(", "), values.collect::<Vec<Value>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_without_a_rate_are_left_out_for_people_only() {
        let rates = [1.0, 0.0, 0.5];
        let mut table = Table::new(vec![Column::text("heads", "Heads")]);
        table.push(vec![heads(&rates)]);
        assert!(table.render(crate::Format::Csv).contains("0: 100%, 2: 50%"));
        assert_eq!(table.to_json()[0]["heads"], json!(rates));
    }
}
