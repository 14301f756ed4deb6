//! The `fathom` command line: one file per command under `commands/`, which reads arguments, calls
//! the library and prints.
//!
//! # Exit codes
//! - `0`: done. Also when whoever reads our output has seen enough and closed the pipe (`fathom
//! table … | head`).
//! - `1`: it ran, and the answer is no: `fathom demo` does not find what was planted.
//! - `2`: input or usage that cannot be used, one sentence on stderr; nothing was written over.

mod command;
mod commands;
mod failure;
mod gamma_arg;
mod indices;
mod kernel_speed;
mod model_args;
mod output;
mod pair_args;
mod phases_arg;
mod preset_arg;
mod progress;
mod prompt_args;
mod row_args;
mod sampling_args;
mod speed_tables;
mod subject;
mod watch_args;

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;

use crate::cli::command::Cli;
use crate::cli::failure::Failure;

/// Runs the command line `args`, the program's name first.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    ExitCode::from(run(args))
}

/// As [`main`], for a process that goes on afterwards: gives its exit code.
pub fn run(args: impl IntoIterator<Item = OsString>) -> u8 {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(usage) => {
            // Help goes to stdout, what is wrong to stderr; nothing is left to do where that is
            // gone.
            let _ = usage.print();
            return u8::try_from(usage.exit_code()).unwrap_or(2);
        }
    };
    let result = cli.run(&mut io::stdout().lock()).and_then(|()| Ok(io::stdout().flush()?));
    match result {
        Ok(()) => 0,
        // The reader of a pipe decides when it has seen enough. That is no failure of ours, so we
        // leave quietly, as tools killed by SIGPIPE do.
        Err(Failure::Stdout(error)) if error.kind() == io::ErrorKind::BrokenPipe => 0,
        Err(failure) => {
            // Nothing is left to do where stderr is gone as well.
            let _ = writeln!(io::stderr(), "fathom: error: {}", failure.one_line());
            failure.exit_code()
        }
    }
}
