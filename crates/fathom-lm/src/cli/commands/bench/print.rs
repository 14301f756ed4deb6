//! What `fathom bench` prints: a table for each accounting, and where the time went.

use std::io::Write;
use std::path::Path;

use clap::ValueEnum;
use fathom_decode::{Placement, ThreadSplit};
use fathom_model::adapted_name;
use fathom_report::{Format, bench_table, bench_table_of_all, breakdown_table, placement_json};
use serde_json::json;

use super::{Accounted, Accounting, Args};
use crate::cli::failure::Failure;
use crate::cli::output::Output;
use crate::cli::pair_args::PairArgs;

impl Args {
    pub(super) fn print(
        &self,
        accountings: &[Accounted],
        output: Output,
        out: &mut dyn Write,
    ) -> Result<(), Failure> {
        let name = |model: &str| {
            let file = Path::new(model).file_name().map(|name| name.to_string_lossy().into_owned());
            file.unwrap_or_else(|| model.to_owned())
        };
        let PairArgs { target, adapter, draft_adapter, .. } = &self.pair;
        let draft = adapted_name(&name(&self.draft), draft_adapter.as_deref());
        let target = adapted_name(&name(target), adapter.as_deref());
        if self.csv {
            let all: Vec<_> =
                accountings.iter().map(|a| (a.accounting.key(), a.rows.as_slice())).collect();
            let table = bench_table_of_all(&draft, &target, &all);
            write!(out, "{}", table.render(Format::Csv))?;
            return Ok(());
        }
        let tables =
            |a: &Accounted| (bench_table(&draft, &target, &a.rows), breakdown_table(&a.rows));
        if output.json {
            let report = |a: &Accounted| {
                let (table, breakdown) = tables(a);
                json!({
                    "accounting": a.accounting.key(),
                    "threads": placement_json(&a.placement),
                    "rows": table.to_json(),
                    "breakdown": breakdown.to_json(),
                })
            };
            let reports: Vec<_> = accountings.iter().map(report).collect();
            let protocol = self.protocol.to_possible_value();
            let protocol = protocol.map(|value| value.get_name().to_owned());
            writeln!(out, "{}", json!({ "protocol": protocol, "accountings": reports }))?;
            return Ok(());
        }
        for (index, accounted) in accountings.iter().enumerate() {
            let gap = if index > 0 { "\n" } else { "" };
            let (table, breakdown) = tables(accounted);
            let (table, breakdown) =
                (table.render(Format::Markdown), breakdown.render(Format::Markdown));
            write!(out, "{gap}{}\n\n{table}\n{breakdown}", accounted.heading())?;
        }
        Ok(())
    }
}

impl Accounted {
    /// Who has which threads.
    fn heading(&self) -> String {
        let Placement { alone, together: ThreadSplit { target, draft }, pinned } = self.placement;
        let mut heading = match self.accounting {
            Accounting::OneCoreEach => format!(
                "One core each: {target} of the threads are the target's and {draft} the draft's. AR has the \
                 target's, and the draft's idle; SD takes turns on them."
            ),
            Accounting::WholeMachine => format!(
                "Whole machine: AR has {} threads; SD has {} for the target and {} for the draft, in turns; \
                 PEARL has {target} for the target and {draft} for the draft at the same time.",
                alone.target, alone.target, alone.draft
            ),
        };
        if pinned {
            heading += " Every thread has a core of its own.";
        }
        heading
    }
}

impl Accounting {
    /// Its name in CSV and JSON.
    fn key(self) -> &'static str {
        match self {
            Accounting::OneCoreEach => "one_core_each",
            Accounting::WholeMachine => "whole_machine",
        }
    }
}
