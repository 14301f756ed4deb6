//! GitHub's Markdown.

use super::{Align, Table};

pub(super) fn render(table: &Table) -> String {
    let lines = table.lines(escape);
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max();
    let widths: Vec<usize> = (0..table.columns.len()).map(|c| width(c).unwrap_or(0)).collect();

    let mut text = String::new();
    for (i, line) in lines.iter().enumerate() {
        for ((cell, column), width) in line.iter().zip(&table.columns).zip(&widths) {
            text += &match column.align {
                Align::Left => format!("| {cell:<width$} "),
                Align::Right => format!("| {cell:>width$} "),
            };
        }
        text += "|\n";
        if i == 0 {
            for (column, width) in table.columns.iter().zip(&widths) {
                let dashes = "-".repeat(width + 1);
                text += &match column.align {
                    Align::Left => format!("|{dashes}-"),
                    Align::Right => format!("|{dashes}:"),
                };
            }
            text += "|\n";
        }
    }
    text
}

/// Escapes characters that are special in Markdown.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    let chars: Vec<char> = text.chars().collect();
    for (i, c) in chars.iter().enumerate() {
        let inside_word = i > 0 && chars[i - 1].is_alphanumeric();
        let inside_word =
            inside_word && chars.get(i + 1).is_some_and(|next| next.is_alphanumeric());
        match c {
            '_' if inside_word => {} // names stay as they are
            // Markdown keeps a backslash before anything but punctuation: "\n" stays readable.
            '\\' if chars.get(i + 1).is_some_and(|next| !next.is_ascii_punctuation()) => {}
            '|' | '\\' | '`' | '*' | '_' | '<' | '[' => escaped.push('\\'),
            '\n' | '\r' => {
                escaped.push(' ');
                continue;
            }
            _ => {}
        }
        escaped.push(*c);
    }
    escaped
}
