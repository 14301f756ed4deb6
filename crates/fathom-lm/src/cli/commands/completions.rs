//! `fathom completions`: shell completion scripts.

use std::io::Write;

use clap_complete::Shell;
use serde_json::json;

use crate::cli::command::Cli;
use crate::cli::failure::Failure;
use crate::cli::output::Output;

/// Print a completion script for a shell
///
/// Load the script in the shell's startup file, or install it where the shell looks for
/// completions.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    source <(fathom completions bash)\n  \
    fathom completions zsh > ~/.zfunc/_fathom\n  \
    fathom completions fish > ~/.config/fish/completions/fathom.fish\n  \
    fathom completions powershell >> $PROFILE")]
pub struct Args {
    /// The shell
    #[arg(value_enum, value_name = "SHELL")]
    shell: Shell,
}

pub fn run(args: &Args, output: Output, out: &mut dyn Write) -> Result<(), Failure> {
    // Written to memory first: clap_complete panics if its writer fails.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::definition(), "fathom", &mut script);
    if output.json {
        let script = String::from_utf8_lossy(&script);
        writeln!(out, "{}", json!({ "shell": args.shell.to_string(), "script": script }))?;
    } else {
        out.write_all(&script)?;
    }
    Ok(())
}
