//! The output of `fathom bench`: a table and a time breakdown for each accounting.

use std::io::Write;
use std::path::Path;

use clap::ValueEnum;
use fathom_decode::{Placement, ThreadSplit};
use fathom_model::adapted_name;
use fathom_report::{Format, bench_table, bench_table_of_all, breakdown_table, placement_json};
use serde_json::json;

use super::{Accounting, Args, Setup};
use crate::cli::failure::Failure;
use crate::cli::output::Output;
use crate::cli::pair_args::PairArgs;

impl Args {
    pub(super) fn print(
        &self,
        setups: &[Setup],
        output: Output,
        out: &mut dyn Write,
    ) -> Result<(), Failure> {
        let name = |model: &str| {
            let file = Path::new(model).file_name().map(|name| name.to_string_lossy().into_owned());
            file.unwrap_or_else(|| model.to_owned())
        };
        let PairArgs { target, adapter, draft_adapter, .. } = &self.pair;
        let draft = adapted_name(&name(self.draft.name()), draft_adapter.as_deref());
        let target = adapted_name(&name(target), adapter.as_deref());
        if self.csv {
            let rows = setups.iter().map(|setup| (setup.accounting.key(), setup.rows.as_slice()));
            let all: Vec<_> = rows.collect();
            let table = bench_table_of_all(&draft, &target, &all);
            write!(out, "{}", table.render(Format::Csv))?;
            return Ok(());
        }
        let tables = |setup: &Setup| {
            (bench_table(&draft, &target, &setup.rows), breakdown_table(&setup.rows))
        };
        if output.json {
            let report = |setup: &Setup| {
                let (table, breakdown) = tables(setup);
                json!({
                    "accounting": setup.accounting.key(),
                    "threads": placement_json(&setup.placement),
                    "rows": table.to_json(),
                    "breakdown": breakdown.to_json(),
                })
            };
            let reports: Vec<_> = setups.iter().map(report).collect();
            let protocol = self.protocol.to_possible_value();
            let protocol = protocol.map(|value| value.get_name().to_owned());
            writeln!(out, "{}", json!({ "protocol": protocol, "accountings": reports }))?;
            return Ok(());
        }
        for (index, setup) in setups.iter().enumerate() {
            let gap = if index > 0 { "\n" } else { "" };
            let (table, breakdown) = tables(setup);
            let (table, breakdown) =
                (table.render(Format::Markdown), breakdown.render(Format::Markdown));
            write!(out, "{gap}{}\n\n{table}\n{breakdown}", setup.heading())?;
        }
        Ok(())
    }
}

impl Setup {
    /// The threads of each mode, as a sentence.
    fn heading(&self) -> String {
        let Placement { alone, together: ThreadSplit { target, draft }, pinned } = self.placement;
        let mut heading = match self.accounting {
            Accounting::OneCoreEach => format!(
                "One core each: {target} threads for the target and {draft} for the draft. AR uses \
                 the target's, and the draft's are idle; SD uses them in turn."
            ),
            Accounting::WholeMachine => format!(
                "Whole machine: AR has {} threads; SD has {} for the target and {} for the draft, \
                 in turn; PEARL has {target} for the target and {draft} for the draft at the same \
                 time.",
                alone.target, alone.target, alone.draft
            ),
        };
        if pinned {
            heading += " Every thread is pinned to its own core.";
        }
        heading
    }
}

impl Accounting {
    /// The name in CSV and JSON.
    fn key(self) -> &'static str {
        match self {
            Accounting::OneCoreEach => "one_core_each",
            Accounting::WholeMachine => "whole_machine",
        }
    }
}
