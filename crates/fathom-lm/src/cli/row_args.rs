//! How the rows of a data set are read: the arguments of every command that reads traces.

use clap::Args;
use fathom_model::RowFields;

/// How rows are read.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Rows")]
pub struct RowArgs {
    /// Field of a row that holds the prompt, or a dotted path such as `example.question` [default:
    /// the fields of published data sets]
    #[arg(long, value_name = "FIELD")]
    prompt_field: Option<String>,
    /// Field of a row that holds the output: one text, or a list of texts, each of which is a trace
    #[arg(long, value_name = "FIELD")]
    output_field: Option<String>,
    /// Skip rows that cannot be read; their number and the first of them are reported
    #[arg(long)]
    pub skip_bad_lines: bool,
    /// Report which fields rows were read from
    #[arg(short, long)]
    pub verbose: bool,
}

impl RowArgs {
    /// The fields for the library.
    pub fn fields(&self) -> RowFields {
        RowFields { prompt: self.prompt_field.clone(), output: self.output_field.clone() }
    }
}
