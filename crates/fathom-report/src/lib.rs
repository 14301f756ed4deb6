#![doc = include_str!("../README.md")]

mod bench_tables;
mod decoding;
mod escape;
mod figure;
mod figures;
mod measure_tables;
mod number;
mod page;
mod phases;
mod report;
mod run_data;
mod run_phases;
mod sink_tables;
mod summary;
mod table;

pub use bench_tables::{BenchRow, bench_table, bench_table_of_all, breakdown_table};
pub use decoding::{Decoding, placement_json};
pub use figures::finding;
pub use measure_tables::{
    agreement_table, massive_table, measured_layer_table, measured_token_table, rate_table,
    unaligned_table,
};
pub use number::{percent, plural};
pub use report::{Report, ReportFiles};
pub use sink_tables::{level_table, position_table, sink_table, token_table};
pub use summary::{summary, unaligned_sentence};
pub use table::{Align, Cell, Column, Format, Table};
