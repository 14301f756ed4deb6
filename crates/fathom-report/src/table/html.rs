//! An HTML table.

use std::fmt::Write;

use super::{Align, Table};
use crate::escape::escape;

/// The first `rows` rows, with `caption` unless it is empty.
pub(crate) fn render(table: &Table, caption: &str, rows: usize) -> String {
    let class = |column: usize| match table.columns[column].align {
        Align::Left => "",
        Align::Right => " class=\"n\"",
    };
    let caption = match caption {
        "" => String::new(),
        caption => format!("<caption>{}</caption>", escape(caption)),
    };
    let mut out = format!("<div class=\"wide\"><table>{caption}");
    for (i, line) in table.lines(escape).into_iter().take(rows.saturating_add(1)).enumerate() {
        let tag = if i == 0 { "th scope=\"col\"" } else { "td" };
        out.push_str("<tr>");
        for (column, cell) in line.iter().enumerate() {
            let _ = write!(out, "<{tag}{}>{cell}</{}>", class(column), &tag[..2]);
        }
        out.push_str("</tr>");
    }
    out.push_str("</table></div>");
    out
}
