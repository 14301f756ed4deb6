//! How prompts are written down for the model: the arguments of every command that reads text.

use crate::{ModelOptions, PromptOptions};
use clap::{Args, ValueEnum};
use fathom_model::{parse_date, parse_template_kwargs};
use serde_json::{Map, Value};

/// What the user says about prompts, beside the checkpoint's own files.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Prompts")]
pub struct PromptArgs {
    /// Give prompts to the model as bare text even where it has a chat template
    #[arg(long)]
    pub no_chat_template: bool,
    /// Put this system message in front of conversations that have none
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Variables for the chat template, such as '{"enable_thinking": false}'; a line's own
    /// `chat_template_kwargs` come before these
    #[arg(long, value_name = "JSON", value_parser = kwargs)]
    template_kwargs: Option<Kwargs>,
    /// The day that chat templates are told it is, YYYY-MM-DD or `today` [default: 2024-07-26,
    /// always]
    #[arg(long, value_name = "DATE", value_parser = date)]
    date: Option<jiff::civil::Date>,
    /// Whether a bare text begins with the tokenizer's BOS [default: as HuggingFace transformers
    /// does]
    #[arg(long, value_enum, value_name = "YES|NO")]
    bos: Option<YesNo>,
}

/// The object of `--template-kwargs`.
#[derive(Clone, Debug)]
struct Kwargs(Map<String, Value>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum YesNo {
    /// Exactly one, in front
    Yes,
    /// None in front
    No,
}

impl PromptArgs {
    /// A model whose prompts are written down so.
    pub fn apply(&self, model: ModelOptions) -> ModelOptions {
        model.chat_template(!self.no_chat_template).prompt_options(self.options())
    }

    /// As the library takes it.
    pub fn options(&self) -> PromptOptions {
        PromptOptions {
            system: self.system.clone(),
            template_kwargs: self
                .template_kwargs
                .clone()
                .map(|kwargs| kwargs.0)
                .unwrap_or_default(),
            date: self.date,
            bos: self.bos.map(|bos| bos == YesNo::Yes),
        }
    }
}

fn kwargs(text: &str) -> Result<Kwargs, String> {
    parse_template_kwargs(text).map(Kwargs).map_err(|error| error.to_string())
}

fn date(text: &str) -> Result<jiff::civil::Date, String> {
    parse_date(text).map_err(|error| error.to_string())
}
