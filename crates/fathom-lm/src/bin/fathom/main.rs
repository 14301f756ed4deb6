//! The `fathom` command line: one file per command under `commands/`, which reads arguments, calls
//! the library and prints.
//!
//! # Exit codes
//! - `0`: done. Also when whoever reads our output has seen enough and closed the pipe (`fathom table … | head`).
//! - `1`: it ran, and the answer is no: `fathom demo` does not find what was planted.
//! - `2`: input or usage that cannot be used, one sentence on stderr; nothing was written over.

mod cli;
mod commands;
mod failure;
mod gamma_arg;
mod indices;
mod kernel_speed;
mod model_args;
mod output;
mod pair_args;
mod preset_arg;
mod progress;
mod prompt_args;
mod row_args;
mod sampling_args;
mod speed_tables;
mod subject;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;

use crate::cli::Cli;
use crate::failure::Failure;

fn main() -> ExitCode {
    let cli = Cli::parse(); // usage errors end here, with exit code 2
    let result = cli.run(&mut io::stdout().lock()).and_then(|()| Ok(io::stdout().flush()?));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of a pipe decides when it has seen enough. That is no failure of ours, so we
        // leave quietly, as tools killed by SIGPIPE do.
        Err(Failure::Stdout(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(failure) => {
            // Nothing is left to do where stderr is gone as well.
            let _ = writeln!(io::stderr(), "fathom: error: {}", failure.one_line());
            ExitCode::from(failure.exit_code())
        }
    }
}
