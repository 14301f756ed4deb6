//! Output options, common to all commands.

use clap::Args;

/// The format and verbosity of a command's output.
#[derive(Clone, Copy, Debug, Args)]
pub struct Output {
    /// Print results as JSON
    #[arg(long, global = true, help_heading = "Output")]
    pub json: bool,
    /// Print no progress and no remarks to standard error, only errors
    #[arg(short, long, global = true, help_heading = "Output")]
    pub quiet: bool,
    /// Treat every remark about input as an error, so that nothing is silently ignored or repaired
    #[arg(long, global = true, help_heading = "Output")]
    pub strict: bool,
}
