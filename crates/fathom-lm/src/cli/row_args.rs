//! Where in the rows of a data set prompt and output are: the arguments of every command that reads
//! one.

use clap::Args;
use fathom_model::RowFields;

/// How rows are read.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Rows")]
pub struct RowArgs {
    /// Where a row's prompt is: a field, or a dotted path such as `example.question` [default: the
    /// fields of published data sets]
    #[arg(long, value_name = "FIELD")]
    prompt_field: Option<String>,
    /// Where a row's output is: a text, or several, each a trace
    #[arg(long, value_name = "FIELD")]
    output_field: Option<String>,
    /// Pass over rows that cannot be read, count them and list them
    #[arg(long)]
    pub skip_bad_lines: bool,
    /// Say from which fields rows were read
    #[arg(short, long)]
    pub verbose: bool,
}

impl RowArgs {
    /// As the library takes them.
    pub fn fields(&self) -> RowFields {
        RowFields { prompt: self.prompt_field.clone(), output: self.output_field.clone() }
    }
}
