//! `fathom man`: man pages.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

use clap::Command;
use clap_mangen::Man;
use serde_json::json;

use crate::cli::command::{Cli, is_documented};
use crate::cli::failure::Failure;
use crate::cli::output::Output;
use crate::{Error, Result};

/// Print the man page, or write the pages of all commands
///
/// Without --out, prints fathom(1). With --out, writes fathom.1 and one page per command, such as
/// fathom-scan.1, and prints their paths. Existing pages with these names are replaced.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    fathom man | man -l -\n  \
    fathom man --out ~/.local/share/man/man1")]
pub struct Args {
    /// Write the pages of all commands to this directory, which is created if needed
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

pub fn run(args: &Args, output: Output, out: &mut dyn Write) -> Result<(), Failure> {
    let cli = Cli::definition();
    let Some(dir) = &args.out else {
        let page = page(cli)?;
        if output.json {
            writeln!(out, "{}", json!({ "page": String::from_utf8_lossy(&page) }))?;
        } else {
            out.write_all(&page)?;
        }
        return Ok(());
    };

    fs::create_dir_all(dir).map_err(Error::io(dir, "cannot be created"))?;
    let commands = cli.get_subcommands().filter(|command| is_documented(command));
    let mut files = Vec::new();
    for command in std::iter::once(&cli).chain(commands) {
        let name = command.get_display_name().unwrap_or(command.get_name());
        let path = dir.join(format!("{name}.1"));
        fs::write(&path, page(command.clone())?).map_err(Error::io(&path, "cannot be written"))?;
        files.push(path);
    }
    if output.json {
        writeln!(out, "{}", json!({ "files": files }))?;
    } else {
        for path in &files {
            writeln!(out, "{}", path.display())?;
        }
    }
    Ok(())
}

/// The page of one command, in roff.
fn page(command: Command) -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    let source = concat!("Fathom ", env!("CARGO_PKG_VERSION"));
    Man::new(command).source(source).manual("Fathom manual").render(&mut page)?;
    Ok(page)
}
