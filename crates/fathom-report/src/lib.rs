//! What people look at: tables and a summary of what the analysis found.
//!
//! A [`Table`] is rows of [`Cell`]s and renders as Markdown, CSV, LaTeX or JSON. [`sink_table`] is the
//! paper's Table 1 and 2, [`token_table`] its Table 3, [`level_table`] its Figure 2 and
//! [`position_table`] its Figure 5 as numbers; [`summary`] says in words what a scan found.
//! [`Report`] is all of it as one page with figures.
//! [`Decoding`] says where the time of a generation went,
//! [`bench_table`] and [`breakdown_table`] compare ways of decoding.

mod bench_tables;
mod decoding;
mod escape;
mod figure;
mod figures;
mod findings;
mod number;
mod page;
mod report;
mod sink_tables;
mod source;
mod summary;
mod table;

pub use bench_tables::{BenchRow, bench_table, bench_table_of_all, breakdown_table};
pub use decoding::{Decoding, placement_json};
pub use findings::finding;
pub use number::{percent, plural};
pub use report::{Report, ReportFiles};
pub use sink_tables::{level_table, position_table, sink_table, token_table};
pub use summary::summary;
pub use table::{Align, Cell, Column, Format, Table};
