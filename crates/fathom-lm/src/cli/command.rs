//! The top-level command line. Each command's arguments are defined with the command.

use std::io::Write;

use clap::{CommandFactory, Parser, Subcommand};

#[cfg(feature = "serve")]
use crate::cli::commands::serve;
use crate::cli::commands::{
    bench, bench_engine, capture, completions, demo, doctor, explain, generate, man, plant,
    reference, report, scan, simulate, table,
};
use crate::cli::failure::Failure;
use crate::cli::output::Output;

/// Fathom: a language-model engine you can see into while it runs fast.
#[derive(Debug, Parser)]
#[command(
    name = "fathom",
    version,
    arg_required_else_help = true,
    max_term_width = 100,
    after_help = "Results go to standard output, progress and remarks to standard error.\n\
        Exit codes: 0: success. 1: the command ran and a check failed. 2: unusable input or \
        usage.\n\n\
        New here? `fathom demo` shows everything on a built-in model in under a minute."
)]
pub struct Cli {
    #[command(flatten)]
    output: Output,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::Args),
    Scan(scan::Args),
    Table(table::Args),
    Capture(capture::Args),
    Explain(explain::Args),
    Report(report::Args),
    Generate(Box<generate::Args>),
    #[cfg(feature = "serve")]
    Serve(serve::Args),
    Bench(bench::Args),
    Simulate(simulate::Args),
    Plant(plant::Args),
    Doctor(doctor::Args),
    BenchEngine(bench_engine::Args),
    Completions(completions::Args),
    Man(man::Args),
    #[command(hide = true)]
    Reference(reference::Args),
}

impl Cli {
    /// The definition of the command line, with usage and page names of all commands filled in.
    pub fn definition() -> clap::Command {
        let mut definition = Cli::command();
        definition.build();
        definition
    }

    /// Runs the command and writes its results to `out`.
    pub fn run(&self, out: &mut dyn Write) -> Result<(), Failure> {
        match &self.command {
            Command::Demo(args) => demo::run(args, self.output, out),
            Command::Scan(args) => scan::run(args, self.output, out),
            Command::Table(args) => table::run(args, self.output, out),
            Command::Capture(args) => capture::run(args, self.output, out),
            Command::Explain(args) => explain::run(args, self.output, out),
            Command::Report(args) => report::run(args, self.output, out),
            Command::Generate(args) => generate::run(args, self.output, out),
            #[cfg(feature = "serve")]
            Command::Serve(args) => serve::run(args, self.output, out),
            Command::Bench(args) => bench::run(args, self.output, out),
            Command::Simulate(args) => simulate::run(args, self.output, out),
            Command::Plant(args) => plant::run(args, self.output, out),
            Command::Doctor(args) => doctor::run(args, self.output, out),
            Command::BenchEngine(args) => bench_engine::run(args, self.output, out),
            Command::Completions(args) => completions::run(args, self.output, out),
            Command::Man(args) => man::run(args, self.output, out),
            Command::Reference(args) => reference::run(args, out),
        }
    }
}

/// Whether a command belongs in the documentation: not hidden, and not clap's own `help`.
pub fn is_documented(command: &clap::Command) -> bool {
    !command.is_hide_set() && command.get_name() != "help"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
