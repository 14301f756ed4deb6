//! One file per command.

pub mod bench;
pub mod bench_engine;
pub mod capture;
pub mod completions;
pub mod demo;
pub mod doctor;
pub mod explain;
pub mod generate;
pub mod man;
pub mod plant;
pub mod reference;
pub mod report;
pub mod scan;
#[cfg(feature = "serve")]
pub mod serve;
pub mod simulate;
pub mod table;
