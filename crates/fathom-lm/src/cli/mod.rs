//! The `fathom` command line. Each command is one file under `commands/`, which reads arguments,
//! calls the library and prints.
//!
//! # Exit codes
//! - `0`: success. Also if the reader of standard output closed the pipe (`fathom table … | head`).
//! - `1`: the command ran and a check failed: `fathom demo` does not find what was planted, or the
//!   texts of `fathom bench` differ between modes; or the engine of `fathom serve` failed.
//! - `2`: unusable input or usage. One sentence on standard error; no existing file is overwritten.

mod command;
mod commands;
mod decoding_args;
mod detect_args;
mod draft_arg;
mod failure;
mod gamma_arg;
mod indices;
mod kernel_speed;
mod mode_arg;
mod model_args;
mod output;
mod pair_args;
mod phases_arg;
mod preset_arg;
mod progress;
mod prompt_args;
mod row_args;
mod sampling_args;
mod sink_args;
mod speed_tables;
mod subject;
mod suppress_args;
mod watch_args;

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;

use crate::cli::command::Cli;
use crate::cli::failure::Failure;

/// Runs the command line `args`, with the program's name first.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    ExitCode::from(run(args))
}

/// As [`main`], but returns the exit code as a number, for a process that continues afterwards.
pub fn run(args: impl IntoIterator<Item = OsString>) -> u8 {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(usage) => {
            // Help goes to stdout, usage errors to stderr. A failed write cannot be reported.
            let _ = usage.print();
            return u8::try_from(usage.exit_code()).unwrap_or(2);
        }
    };
    let result = cli.run(&mut io::stdout().lock()).and_then(|()| Ok(io::stdout().flush()?));
    match result {
        Ok(()) => 0,
        // The reader closed the pipe. This is not an error: exit silently, like tools that die of
        // SIGPIPE.
        Err(Failure::Stdout(error)) if error.kind() == io::ErrorKind::BrokenPipe => 0,
        Err(failure) => {
            // A closed stderr cannot be reported.
            let _ = writeln!(io::stderr(), "fathom: error: {}", failure.one_line());
            failure.exit_code()
        }
    }
}
