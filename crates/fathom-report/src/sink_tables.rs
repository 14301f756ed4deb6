//! The paper's tables and figures about sinks, as tables.

use fathom_sinks::{Bin, LayerShare, Level, SinkRow, TokenCount, TokenRow};
use serde_json::json;

use crate::{Cell, Column, Table, percent};

/// The number of top layers that the paper's tables list.
const TOP_LAYERS: usize = 3;

/// Tables 1 and 2: one row per model.
pub fn sink_table(rows: &[SinkRow]) -> Table {
    let mut table = Table::new(vec![
        Column::text("model", "Model"),
        Column::number("rope_base", "RoPE base"),
        Column::number("primary_sink_layer", "Primary sink layer"),
        Column::number("primary_sink_count", "Primary sink count"),
        Column::text("top_secondary_sink_layers", "Top 3 secondary sink layers"),
        Column::number("secondary_sink_count", "Secondary sink count"),
    ]);
    for row in rows {
        table.push(vec![
            Cell::text(&row.model),
            row.rope_base.map_or(Cell::unknown(), |base| Cell::new(base.to_string(), base)),
            row.primary_layer.map_or(Cell::none(), Cell::count),
            some(row.primary_count),
            top_layers(&row.secondary_layers),
            some(row.secondary_count),
        ]);
    }
    table
}

/// `22: 99.53%, 23: 0.47%`.
fn top_layers(layers: &[LayerShare]) -> Cell {
    let top = &layers[..layers.len().min(TOP_LAYERS)];
    if top.is_empty() {
        return Cell::none();
    }
    let text = |share: &LayerShare| format!("{}: {}", share.layer, percent(share.percent));
    let text: Vec<String> = top.iter().map(text).collect();
    Cell::new(text.join(", "), json!(top))
}

/// A count; 0 is the paper's "X".
fn some(count: usize) -> Cell {
    if count == 0 { Cell::new("X", 0) } else { Cell::count(count) }
}

/// Table 3: the `top` most frequent tokens among each model's secondary sinks.
pub fn token_table(rows: &[TokenRow], top: usize) -> Table {
    let mut table = Table::new(vec![
        Column::text("model", "Model"),
        Column::text("token", "Token"),
        Column::number("token_id", "Token id"),
        Column::number("count", "Secondary sinks"),
        Column::number("percent", "Share"),
    ]);
    for row in rows {
        for share in row.tokens.iter().take(top) {
            let TokenCount { token_id, token_text, count } = &share.token;
            let quoted = |text: &String| Cell::new(json!(text).to_string(), text.as_str());
            table.push(vec![
                Cell::text(&row.model),
                token_text.as_ref().map_or(Cell::unknown(), quoted),
                Cell::new(token_id.to_string(), *token_id),
                Cell::count(*count),
                Cell::new(percent(share.percent), share.percent),
            ]);
        }
        if row.tokens.is_empty() {
            let model = Cell::text(&row.model);
            table.push(vec![model, Cell::none(), Cell::none(), some(0), Cell::none()]);
        }
    }
    table
}

/// Figure 2 as numbers: the count of each (l_start, lifetime).
pub fn level_table(models: &[(&str, Vec<Level>)]) -> Table {
    let mut table = Table::new(vec![
        Column::text("model", "Model"),
        Column::number("l_start", "First layer"),
        Column::number("lifetime", "Lifetime"),
        Column::number("count", "Sinks"),
        Column::number("percent", "Share"),
    ]);
    for (model, levels) in models {
        let total: usize = levels.iter().map(|level| level.count).sum();
        for level in levels {
            let share = 100.0 * level.count as f64 / total.max(1) as f64;
            table.push(vec![
                Cell::text(*model),
                Cell::count(level.l_start),
                Cell::count(level.lifetime),
                Cell::count(level.count),
                Cell::new(percent(share), share),
            ]);
        }
    }
    table
}

/// Figure 5 as numbers: the count of sinks by position.
pub fn position_table(models: &[(&str, Vec<Bin>)]) -> Table {
    let mut table = Table::new(vec![
        Column::text("model", "Model"),
        Column::number("from", "From position"),
        Column::number("to", "To position"),
        Column::number("count", "Sinks"),
    ]);
    for (model, bins) in models {
        for bin in bins {
            table.push(vec![
                Cell::text(*model),
                Cell::count(bin.start),
                Cell::count(bin.end - 1),
                Cell::count(bin.count),
            ]);
        }
    }
    table
}
