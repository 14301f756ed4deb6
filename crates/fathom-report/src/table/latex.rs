//! LaTeX, with rules of the `booktabs` package.

use super::{Align, Table};

pub(super) fn render(table: &Table) -> String {
    let align = |align| match align {
        Align::Left => 'l',
        Align::Right => 'r',
    };
    let columns: String = table.columns.iter().map(|column| align(column.align)).collect();
    let lines: Vec<String> =
        table.lines(escape).into_iter().map(|line| line.join(" & ") + r" \\" + "\n").collect();
    let (titles, rows) = lines.split_at(1);
    let (titles, rows) = (titles.concat(), rows.concat());
    format!(
        "\\begin{{tabular}}{{{columns}}}\n\\toprule\n{titles}\\midrule\n{rows}\\bottomrule\n\
         \\end{{tabular}}\n"
    )
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' | '%' | '$' | '#' | '_' | '{' | '}' => escaped.extend(['\\', c]),
            '\\' => escaped += r"\textbackslash{}",
            '~' => escaped += r"\textasciitilde{}",
            '^' => escaped += r"\textasciicircum{}",
            '<' => escaped += r"\textless{}",
            '>' => escaped += r"\textgreater{}",
            '\n' | '\r' => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}
