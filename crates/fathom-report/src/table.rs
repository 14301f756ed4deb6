//! A table, and its formats.

mod csv;
pub(crate) mod html;
mod latex;
mod markdown;

use serde_json::{Map, Value};

/// The format a table is printed in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// GitHub's Markdown, columns aligned for reading in a terminal.
    #[default]
    Markdown,
    /// RFC 4180.
    Csv,
    /// A `tabular` with rules of the `booktabs` package.
    Latex,
    /// A list of objects, one per row, with numbers as numbers.
    Json,
}

/// Alignment of a column's cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// A column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Its title.
    pub title: &'static str,
    /// Its key in JSON.
    pub key: &'static str,
    /// Alignment of its cells.
    pub align: Align,
}

/// A cell.
#[derive(Clone, Debug, PartialEq)]
pub struct Cell {
    text: String,
    value: Value,
}

/// Columns and rows; every row has a cell for every column.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
}

impl Column {
    /// A column of text.
    pub fn text(key: &'static str, title: &'static str) -> Column {
        Column { title, key, align: Align::Left }
    }

    /// A column of numbers.
    pub fn number(key: &'static str, title: &'static str) -> Column {
        Column { title, key, align: Align::Right }
    }
}

impl Cell {
    /// `text` for people and `value` for programs.
    pub fn new(text: impl Into<String>, value: impl Into<Value>) -> Cell {
        Cell { text: text.into(), value: value.into() }
    }

    /// The same text for both.
    pub fn text(text: impl Into<String>) -> Cell {
        let text = text.into();
        Cell { value: Value::from(text.as_str()), text }
    }

    /// A whole number.
    pub fn count(count: usize) -> Cell {
        Cell::new(count.to_string(), count)
    }

    /// No value: the paper's "X", `null` in JSON.
    pub fn none() -> Cell {
        Cell::new("X", Value::Null)
    }

    /// An unknown value: "?", `null` in JSON.
    pub fn unknown() -> Cell {
        Cell::new("?", Value::Null)
    }
}

impl Table {
    /// A table without rows.
    pub fn new(columns: Vec<Column>) -> Table {
        Table { columns, rows: Vec::new() }
    }

    /// Adds a row.
    ///
    /// # Panics
    /// If it does not have a cell for every column.
    pub fn push(&mut self, row: Vec<Cell>) {
        assert_eq!(row.len(), self.columns.len(), "a cell for every column");
        self.rows.push(row);
    }

    /// Whether it has no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The table as text, ending with a line end.
    pub fn render(&self, format: Format) -> String {
        match format {
            Format::Markdown => markdown::render(self),
            Format::Csv => csv::render(self),
            Format::Latex => latex::render(self),
            Format::Json => format!("{:#}\n", self.to_json()),
        }
    }

    /// The table as an HTML element.
    pub fn to_html(&self) -> String {
        html::render(self, "", usize::MAX)
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// The table as a list of objects.
    pub fn to_json(&self) -> Value {
        let object = |row: &Vec<Cell>| -> Value {
            let fields = self.columns.iter().zip(row);
            let fields = fields.map(|(column, cell)| (column.key.to_owned(), cell.value.clone()));
            Value::Object(fields.collect::<Map<_, _>>())
        };
        Value::Array(self.rows.iter().map(object).collect())
    }

    /// Titles, then rows, each cell passed through `escape`.
    fn lines(&self, escape: impl Fn(&str) -> String) -> Vec<Vec<String>> {
        let titles = self.columns.iter().map(|column| escape(column.title)).collect();
        let rows = self.rows.iter().map(|row| row.iter().map(|cell| escape(&cell.text)).collect());
        std::iter::once(titles).chain(rows).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let columns = vec![Column::text("token", "Token"), Column::number("count", "Count")];
        let mut table = Table::new(columns);
        table.push(vec![Cell::text(r#"a|b, "50%" \n <s>_"#), Cell::count(7)]);
        table.push(vec![Cell::text("ü"), Cell::none()]);
        table
    }

    #[test]
    fn markdown_lines_up_and_keeps_bars_inside_cells() {
        let expected = r#"
| Token                 | Count |
|-----------------------|------:|
| a\|b, "50%" \n \<s>\_ |     7 |
| ü                     |     X |
"#;
        assert_eq!(table().render(Format::Markdown), expected.trim_start());
    }

    #[test]
    fn a_backslash_is_escaped_where_markdown_would_take_it_for_an_escape() {
        let mut table = Table::new(vec![Column::text("a", "A")]);
        table.push(vec![Cell::text(r"\n \* \\ \")]);
        let text = table.render(Format::Markdown);
        // CommonMark 2.4: before anything but ASCII punctuation a backslash is just that.
        assert!(text.ends_with("| \\n \\\\\\* \\\\\\ \\\\ |\n"), "{text}");
    }

    #[test]
    fn csv_quotes_what_needs_quotes() {
        let expected = "Token,Count\r\n\"a|b, \"\"50%\"\" \\n <s>_\",7\r\nü,X\r\n";
        assert_eq!(table().render(Format::Csv), expected);
    }

    #[test]
    fn latex_escapes_its_own_characters() {
        let expected = r#"
\begin{tabular}{lr}
\toprule
Token & Count \\
\midrule
a|b, "50\%" \textbackslash{}n \textless{}s\textgreater{}\_ & 7 \\
ü & X \\
\bottomrule
\end{tabular}
"#;
        assert_eq!(table().render(Format::Latex), expected.trim_start());
    }

    #[test]
    fn json_has_numbers_as_numbers() {
        let rows: Value = table().to_json();
        assert_eq!(rows[0]["count"], 7);
        assert_eq!(rows[1], serde_json::json!({ "token": "ü", "count": null }));
    }

    #[test]
    fn a_table_without_rows_is_still_one() {
        let empty = Table::new(vec![Column::text("a", "A")]);
        assert_eq!(empty.render(Format::Markdown), "| A |\n|---|\n");
        assert_eq!(empty.render(Format::Json), "[]\n");
    }
}
