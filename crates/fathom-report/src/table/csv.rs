//! Comma-separated values, RFC 4180.

use super::Table;

pub(super) fn render(table: &Table) -> String {
    let lines = table.lines(quote);
    lines.into_iter().map(|line| line.join(",") + "\r\n").collect()
}

fn quote(text: &str) -> String {
    match text.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    }
}
