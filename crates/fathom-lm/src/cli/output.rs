//! The options of every command.

use clap::Args;

/// How a command speaks.
#[derive(Clone, Copy, Debug, Args)]
pub struct Output {
    /// Print results as JSON
    #[arg(long, global = true, help_heading = "Output")]
    pub json: bool,
    /// No progress and no remarks on standard error; errors are still told
    #[arg(short, long, global = true, help_heading = "Output")]
    pub quiet: bool,
    /// Refuse input that a remark would be made about: what would be ignored, repaired or is
    /// doubtful
    #[arg(long, global = true, help_heading = "Output")]
    pub strict: bool,
}
